"""Search: every layout of so many GPUs that fits the model and the memory, fastest first."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from hagane.engine.layout import NEAREST, Layout, distance, divisors, misfit
from hagane.model import Size
from hagane.plan.memory import Memory, worst_memory
from hagane.plan.rates import Assumptions, Gpu, Precision
from hagane.plan.roofline import Gather, Recompute, Setup, StepTime, estimate_step
from hagane.plan.shape import Shape
from hagane.terms import ConfigError

NODE = 8
"""GPUs of a server: a run uses whole ones."""
MOST = 65_536
"""GPUs up to which a refusal looks for a number that is enough."""
MOST_BATCH = 1.25
"""A step may have so many times the tokens that were asked for, where microbatches do not divide."""
LEAST_TOKENS = 512
"""Tokens of a microbatch that a rank has at least where the sequence is cut: fewer make products too small."""
RECOMPUTES: tuple[Recompute, ...] = ("none", "layers")
GATHERS: tuple[Gather, ...] = ("step", "microbatch")
"""What a pipeline's stages can do with sharded weights."""
VIRTUALS = (1, 2)
"""Parts of the trunk a pipeline rank: what the engine's schedules give."""


@dataclass(frozen=True)
class Choice:
    """One way to run a step, with what it needs and takes."""

    setup: Setup
    """Layout and how it is run."""
    memory: Memory
    """The fullest rank."""
    step: StepTime
    """One step."""


@dataclass(frozen=True)
class Problem:
    """What a layout is searched for."""

    shape: Shape
    """The model."""
    size: Size
    """Its widths, which decide what axes divide."""
    gpus: int
    """GPUs."""
    gpu: Gpu
    """The accelerator."""
    precision: Precision
    """Arithmetic of the trunk's products."""
    assumed: Assumptions
    """Rates."""

    def layouts(self) -> Iterator[Layout]:
        """Layouts that are searched."""
        return layouts(self.gpus, self.size, self.gpu.domain, self.assumed.training.microbatch_tokens)

    @property
    def room(self) -> float:
        """Bytes of a GPU that a plan may fill."""
        return self.gpu.memory_gib * 2**30 * (1 - self.assumed.training.reserve)


def search(problem: Problem) -> list[Choice]:
    """All choices that fit, fastest first.

    Raises:
        ConfigError: the number of GPUs is impossible, or nothing fits; the message names a number that is enough.
    """
    check_count(problem.gpus)
    among = list(problem.layouts())
    found = list(_choices(problem, among))
    if not found and not any(fills(problem, layout) for layout in among):
        raise too_small(problem, problem.gpus)
    if not found:
        enough = _enough(problem)
        what = f"size {problem.shape.name} does not fit {problem.gpus:,} x {problem.gpu.name} with any layout"
        step = f"{enough:,} are enough" if enough else f"even {MOST:,} are too few: use a gpu with more memory"
        raise ConfigError(what, next_step=step)
    return sorted(found, key=lambda c: (-c.step.tokens_s_gpu, c.memory.total, str(c.setup)))


def choose(problem: Problem, layout: Layout) -> list[Choice]:
    """The choices of one layout, fastest first.

    Raises:
        ConfigError: it needs another number of GPUs, does not divide the model, or does not fit the memory; the
            message names the nearest layouts that do.
    """
    check_count(problem.gpus)
    odd = misfit(layout, problem.size)
    if layout.ranks != problem.gpus:
        odd = f"it has {layout.ranks:,} ranks, not {problem.gpus:,}"
    if not odd and not fills(problem, layout):
        raise too_small(problem, layout.pp * layout.data_ranks)
    found = [] if odd else choices_of(problem, layout)
    if found:
        return found
    if not odd:
        least = min((_memory(problem, s) for s in _setups(problem, layout)), key=lambda m: m.total)
        odd = f"it needs {least.total / 2**30:.0f} GiB a GPU; {problem.room / 2**30:.0f} GiB may be used"
    near = nearest_that_fit(problem, layout)
    raise ConfigError(odd, where=f"layout ({layout})", next_step=f"nearest that fit: {near}")


def choices_of(problem: Problem, layout: Layout) -> list[Choice]:
    """The setups of one layout that fit the memory, fastest first; empty for none."""
    return sorted(_choices(problem, [layout]), key=lambda c: -c.step.tokens_s_gpu)


def nearest_that_fit(problem: Problem, layout: Layout) -> str:
    """Other layouts that fit the memory, nearest first, in words.

    Raises:
        ConfigError: none does; the message names a number of GPUs that is enough.
    """
    fitting = {c.setup.layout for c in search(problem)} - {layout}
    near = sorted(fitting, key=lambda other: (distance(layout, other), str(other)))[:NEAREST]
    return " or ".join(f"({n})" for n in near)


def parse_layout(text: str, gpus: int) -> Layout:
    """A layout from "pp=16,ep=64"; dp_shard takes the GPUs that are left unless it is given.

    Raises:
        ConfigError: an unknown axis, no number, or axes that do not divide the GPUs.
    """
    axes = [f.name for f in dataclasses.fields(Layout)]
    given: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = (p.strip() for p in part.partition("="))
        if name not in axes:
            near = difflib.get_close_matches(name, axes, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"no axis {name!r} in --layout", next_step=f"{hint}axes: {', '.join(axes)}")
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"axis {name} of --layout is {number or 'empty'!r}", next_step="write it as pp=16,ep=64")
        given[name] = int(number)
    others = 1
    for name, n in given.items():
        others *= n if name not in ("ep", "dp_shard") else 1
    if "dp_shard" not in given:
        if gpus % others:
            raise ConfigError(
                f"{gpus:,} GPUs cannot be dealt to axes of {others:,}",
                where=f"layout ({text})",
                next_step=f"their product must divide the GPUs: {', '.join(map(str, divisors(gpus)[:12]))} ... do",
            )
        given["dp_shard"] = gpus // others
    return Layout(**given)


def check_count(gpus: int) -> None:
    """Refuse a number of GPUs that is no number of whole servers.

    Raises:
        ConfigError: with the nearest numbers that are.
    """
    if gpus >= 1 and (gpus % NODE == 0 or NODE % gpus == 0):
        return
    low = max(gpus // NODE * NODE, NODE)
    raise ConfigError(
        f"{gpus:,} GPUs are no whole servers of {NODE}",
        next_step=f"use {low:,}" + (f" or {low + NODE:,}" if gpus > NODE else ""),
    )


def layouts(gpus: int, size: Size, domain: int, tokens: int = 4096) -> Iterator[Layout]:
    """Layouts of so many GPUs whose axes divide the model, those that share tokens within an NVLink domain.

    Args:
        gpus: ranks.
        size: widths of the model.
        domain: GPUs of an NVLink domain.
        tokens: of a microbatch; with cp a rank keeps `LEAST_TOKENS` of them.
    """
    for pp, cp, tp in product(divisors(gpus), divisors(size.kv_heads), divisors(size.kv_heads)):
        together = cp * tp
        if gpus % (pp * together) or together > domain or (cp > 1 and tokens < LEAST_TOKENS * together):
            continue
        data = gpus // (pp * together)
        for shard in divisors(data):
            for ep in divisors(shard * together):
                layout = Layout(pp=pp, dp_replicate=data // shard, dp_shard=shard, cp=cp, tp=tp, ep=ep)
                if not misfit(layout, size):
                    yield layout


def fills(problem: Problem, layout: Layout) -> bool:
    """Whether a step has a microbatch for every stage of every pipeline."""
    training = problem.assumed.training
    return layout.pp * layout.data_ranks * training.microbatch_tokens <= MOST_BATCH * training.batch_tokens


def too_small(problem: Problem, microbatches: int) -> ConfigError:
    """The refusal of a batch that leaves ranks without work."""
    training = problem.assumed.training
    return ConfigError(
        f"a step of {training.batch_tokens:,} tokens has no microbatch of {training.microbatch_tokens:,} for each of "
        f"{microbatches:,} pipeline stages",
        next_step="use fewer GPUs, more cp or tp, or a larger training.batch_tokens in the file for --assume",
    )


def _setups(problem: Problem, layout: Layout) -> Iterator[Setup]:
    """How our engine can run a step on a layout."""
    piped = layout.pp > 1
    gathers: tuple[Gather, ...] = GATHERS if piped else ("pass",)
    for recompute, virtual, gather in product(RECOMPUTES, VIRTUALS if piped else (1,), gathers):
        if layout.pp * virtual <= problem.size.layers:
            yield Setup(layout, virtual, problem.precision, recompute, "weights", gather)


def _memory(problem: Problem, setup: Setup) -> Memory:
    return worst_memory(problem.shape, setup, problem.assumed.training, imbalance=problem.assumed.links.imbalance)


def _choices(problem: Problem, among: Iterable[Layout]) -> Iterator[Choice]:
    for layout in among:
        if not fills(problem, layout):
            continue
        for setup in _setups(problem, layout):
            memory = _memory(problem, setup)
            if memory.total <= problem.room:
                yield Choice(setup, memory, estimate_step(problem.shape, setup, problem.gpu, problem.assumed))


def _enough(problem: Problem) -> int:
    """The least power-of-two multiple of a server that fits; 0 for none up to MOST."""
    n = NODE
    while n <= MOST:
        more = replace(problem, gpus=n)
        if n > problem.gpus and next(_choices(more, more.layouts()), None):
            return n
        n *= 2
    return 0
