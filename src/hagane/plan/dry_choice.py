"""Which layouts a dry run looks at: those of the planner's search, estimated again with loads gated by owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hagane.engine.layout import Compute, Layout
from hagane.model import ModelConfig
from hagane.model.packing import pack
from hagane.plan.consortium import Reading, deal
from hagane.plan.dry import Question
from hagane.plan.rates import Assumptions, Gpu
from hagane.plan.routing import plan_routing
from hagane.plan.search import Choice, Problem, choices_of, nearest_that_fit, search
from hagane.plan.work import shape_of
from hagane.terms import ConfigError

LOOKED_AT = 16
"""Layouts that are estimated again with the owners' gates."""


@dataclass(frozen=True)
class Wish:
    """What a layout is chosen for."""

    config: ModelConfig
    """The model."""
    gpus: int
    """GPUs."""
    gpu: Gpu
    """The accelerator."""
    tokens: int
    """Tokens of one microbatch on one data rank."""
    imbalance: float
    """What the busiest rank's experts receive, beyond the gates."""
    assumed: Assumptions
    """Rates."""

    @property
    def problem(self) -> Problem:
        """The same for the planner's search. Memory is decided by the rank whose samples have the most tokens."""
        reading = deal(self.config, len(self.config.embodiments) * 16, self.tokens)
        lengths = reading.lengths
        training = replace(self.assumed.training, microbatch_tokens=max(reading.tokens))
        links = replace(self.assumed.links, imbalance=self.imbalance)
        assumed = replace(self.assumed, training=training, links=links)
        row, padding = packed_rows(self.config, reading)
        shape = replace(shape_of(self.config, sum(lengths) / len(lengths)), row=row, padding=padding)
        return Problem(shape, self.config.widths, self.gpus, self.gpu, "bf16", assumed)


def packed_rows(config: ModelConfig, reading: Reading) -> tuple[int, float]:
    """Places of a packed row, and of all rows over the tokens in them, of the data rank with the most tokens."""
    samples = {row: n for row, n in reading.samples[reading.tokens.index(max(reading.tokens))].items() if n}
    lengths = tuple(reading.lengths[row] for row in samples)
    packing = pack(tuple(samples.values()), lengths, config.widths.pack_tokens)
    return packing.tokens, packing.rows * packing.tokens / max(reading.tokens)


def gated_imbalance(config: ModelConfig, layout: Layout, tokens: int, imbalance: float) -> float:
    """Rows of the busiest rank over the mean: by the gates, times what balancing leaves."""
    routing = plan_routing(config, layout, deal(config, layout.data_ranks, tokens), 0, 1.0)
    return routing.spread()[1] * imbalance


def candidates(wish: Wish) -> list[Choice]:
    """Layouts that fit in closed form, each with its fastest setup, fastest first under gated loads.

    Raises:
        ConfigError: none fits.
    """
    problem = wish.problem
    first: dict[Layout, Choice] = {}
    for choice in search(problem):
        first.setdefault(choice.setup.layout, choice)
        if len(first) == LOOKED_AT:
            break
    again: list[Choice] = []
    for layout in first:
        gated = gated_imbalance(wish.config, layout, wish.tokens, wish.imbalance)
        assumed = replace(problem.assumed, links=replace(problem.assumed.links, imbalance=gated))
        again += choices_of(replace(problem, assumed=assumed), layout)[:1]
    return sorted(again or first.values(), key=lambda c: -c.step.tokens_s_gpu)


def questions(wish: Wish) -> Iterator[Question]:
    """Dry runs worth trying, best first."""
    for choice in candidates(wish):
        setup = choice.setup
        compute = Compute(
            schedule="interleaved" if setup.virtual > 1 else "1f1b",
            recompute=setup.recompute == "layers",
            regather=setup.gather == "microbatch",
        )
        yield Question(wish.config, choice.setup.layout, compute, tokens=wish.tokens, imbalance=wish.imbalance)


def least_microbatches(layout: Layout, stage: int) -> int:
    """As many as fill a pipeline rank's places; each more adds only its samples.

    A stage holds the most when all its places are taken and gradients have begun to add up. The first stage, or the
    only one, has a place a stage, so that takes more microbatches than there are stages.
    """
    return layout.pp if stage else 2 * layout.pp


def instead(wish: Wish, layout: Layout) -> str:
    """The nearest layouts that fit in closed form, in words; what to do instead when there is none."""
    try:
        return f"nearest that fit by the closed form: {nearest_that_fit(wish.problem, layout)}"
    except ConfigError as e:
        return e.next_step
