"""`hagane plan dry-run`: the real step of one rank, without a GPU and without the other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from hagane.terms import ConfigError

if TYPE_CHECKING:
    from hagane.plan.dry import Question, RankReport
    from hagane.plan.dry_choice import Wish

TRIES = 4
"""Layouts that `--layout auto` runs dry before it gives up."""


@dataclass(frozen=True)
class DryRun:
    """Run the real step of a rank on fake tensors among fake ranks: memory by kind, operations, bytes by axis.

    The samples are those of a made-up consortium's machines; routing is gated by their owners. Allocator fragments,
    kernels' workspaces and NCCL's buffers are not in it.
    """

    size: str = "1t"
    """Model: 1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    gpus: int = 1024
    """GPUs."""
    gpu: str = "h200"
    """Accelerator, for its memory: h100, h800, h200, b200, b300, gb200, gb300, or one of the file for --assume."""
    layout: str = "auto"
    """auto, or axes like pp=16,ep=32 (dp_shard takes what is left)."""
    rank: str = "fullest"
    """A rank, "fullest" (of the first stage, which keeps the most microbatches), "ends" (of the first, a middle
    and the last stage) or "every" (of each stage)."""
    tokens: int = 4096
    """Tokens of one microbatch on one data rank, about: whole samples are dealt."""
    microbatches: int = 0
    """Microbatches of the step; 0 takes the fewest that fill a rank's places with gradients begun. Each more adds its
    samples only."""
    recompute: Literal["layers", "none"] = "layers"
    """Computed again in the backward, where --layout names axes; auto chooses."""
    members: int = 0
    """Members of the consortium; 0 takes 16 from 400b up, fewer below."""
    imbalance: float = 1.2
    """Rows that reach the busiest rank's experts, over what the owners' gates alone would send it."""
    assume: Path | None = None
    """TOML file with assumptions that replace ours, as for `plan run`."""
    out: Path | None = None
    """Write everything as JSON."""


def main(argv: list[str]) -> int:
    """Run `hagane plan dry-run`.

    Raises:
        ConfigError: an unknown size or gpu, a layout or rank that is impossible, or one that does not fit the memory.
    """
    o = tyro.cli(DryRun, args=argv, prog="hagane plan dry-run")
    wish = make_wish(o)
    question, reports = run(o, wish)
    print_reports(wish, question, reports)
    if o.out is not None:
        from hagane.plan.dry_report import write_json

        write_json(o.out, question, wish.gpu, reports)
        print(f"\n{o.out}")
    refuse_overfull(wish, question, reports)
    return 0


def make_wish(o: DryRun) -> Wish:
    """The options, checked.

    Raises:
        ConfigError: see `main`.
    """
    from hagane.plan.consortium import consortium_config
    from hagane.plan.dry_choice import Wish
    from hagane.plan.rates import gpu_named, load_assumptions
    from hagane.plan.search import check_count

    assumed = load_assumptions(o.assume)
    gpu = gpu_named(o.gpu, assumed)
    check_count(o.gpus)
    if o.imbalance < 1:
        raise ConfigError(f"--imbalance is at least 1, not {o.imbalance:g}", next_step="1 is what the gates alone send")
    if o.microbatches < 0 or o.members < 0:
        raise ConfigError("--microbatches and --members cannot be negative", next_step="0 lets the dry run choose")
    return Wish(consortium_config(o.size, o.members), o.gpus, gpu, o.tokens, o.imbalance, assumed)


def run(o: DryRun, wish: Wish) -> tuple[Question, list[RankReport]]:
    """The first layout whose ranks fit, or the last that was tried."""
    from itertools import islice

    from hagane.engine.layout import Compute
    from hagane.plan.dry import Question, dry_run
    from hagane.plan.dry_choice import questions
    from hagane.plan.search import parse_layout

    tried: Iterator[Question]
    if o.layout == "auto":
        tried = islice(questions(wish), TRIES)
    else:
        layout = parse_layout(o.layout, o.gpus)
        if layout.ranks != o.gpus:
            raise ConfigError(
                f"layout ({layout}) has {layout.ranks:,} ranks, not {o.gpus:,}",
                next_step="leave dp_shard out: it takes what is left",
            )
        compute = Compute(recompute=o.recompute == "layers")
        tried = iter([Question(wish.config, layout, compute, tokens=o.tokens, imbalance=o.imbalance)])
    last: tuple[Question, list[RankReport]] | None = None
    for question in tried:
        if last is not None:
            need = max(r.peak.nbytes for r in last[1]) / 2**30
            print(f"({last[0].layout}) needs {need:.0f} GiB; trying ({question.layout})", flush=True)
        last = (
            question,
            [dry_run(with_micros(question, rank, o.microbatches), rank) for rank in ranks_of(o.rank, question)],
        )
        if max(r.peak.nbytes for r in last[1]) <= wish.problem.room:
            break
    assert last is not None
    return last


def with_micros(question: Question, rank: int, microbatches: int) -> Question:
    """The question with the microbatches that were asked for, or as many as a rank's peak takes."""
    from hagane.plan.dry_choice import least_microbatches

    stage = rank // (question.layout.dp_replicate * question.layout.fsdp)
    enough = microbatches or least_microbatches(question.layout, stage)
    return replace(question, compute=replace(question.compute, microbatches=enough))


def ranks_of(text: str, question: Question) -> list[int]:
    """The ranks that --rank asks for.

    Raises:
        ConfigError: there is no such rank.
    """
    from hagane.plan.dry import fullest_rank

    stages, ranks = question.layout.pp, question.layout.ranks
    if text == "every":
        return [fullest_rank(question, s) for s in range(stages)]
    if text == "fullest":
        return [fullest_rank(question, 0)]
    if text == "ends":
        return [fullest_rank(question, s) for s in sorted({0, stages // 2, stages - 1})]
    if text.isdecimal() and int(text) < ranks:
        return [int(text)]
    raise ConfigError(f"no rank {text!r}", next_step=f'use 0 to {ranks - 1}, "fullest", "ends" or "every"')


def print_reports(wish: Wish, question: Question, reports: list[RankReport]) -> None:
    """Tables: the question, then for each rank memory, operations and traffic."""
    from hagane.cli.plan_tables import console_of, table
    from hagane.plan import dry_report as rows

    console = console_of()
    for line in rows.headline(question, wish.gpu, reports):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table(console, f"memory, GiB ({wish.problem.room / 2**30:.1f} may be used)", *rows.memory_table(reports))
    table(console, "the largest activations at the peak, GiB", *rows.activation_table(reports))
    table(console, "operations of the step, TFLOP", *rows.flop_table(reports))
    table(console, "bytes of the step by axis and collective, GiB", *rows.traffic_table(reports))
    table(console, "rows that reach a rank's experts, a layer and microbatch", *rows.routing_table(reports))
    for line in closing(reports):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def closing(reports: list[RankReport]) -> Iterator[str]:
    """What the dry run itself took."""
    seconds, resident = sum(r.seconds for r in reports), max(r.resident for r in reports)
    yield f"dry run: {seconds:.0f} CPU seconds for {len(reports)} ranks, {resident / 2**30:.2f} GiB at most"


def refuse_overfull(wish: Wish, question: Question, reports: list[RankReport]) -> None:
    """Say so when a rank does not fit.

    Raises:
        ConfigError: with the nearest layouts that do.
    """
    from hagane.plan.dry_choice import instead

    full = max(reports, key=lambda r: r.peak.nbytes)
    if full.peak.nbytes > wish.problem.room:
        raise ConfigError(
            f"rank {full.rank} needs {full.peak.nbytes / 2**30:.1f} GiB of a {wish.gpu.name}; "
            f"{wish.problem.room / 2**30:.1f} GiB of {wish.gpu.memory_gib:g} may be used",
            where=f"layout ({question.layout})",
            next_step=instead(wish, question.layout),
        )
