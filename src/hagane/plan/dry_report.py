"""A dry run's report: rows for tables, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hagane.plan.dry import Question, RankReport
from hagane.plan.meter import KINDS
from hagane.plan.rates import Gpu
from hagane.terms.files import write_whole

GIB = 2**30
Table = tuple[Sequence[str], Iterable[Sequence[str]]]


def headline(question: Question, gpu: Gpu, reports: list[RankReport]) -> list[str]:
    """What was asked, and the answer."""
    peak, tokens = max(reports, key=lambda r: r.peak.nbytes), question.tokens
    recompute = "layers computed again" if question.compute.recompute else "nothing computed again"
    return [
        f"size {question.config.size} on {question.layout.ranks:,} x {gpu.name}: layout ({question.layout}), "
        f"{question.compute.schedule}, microbatches of about {tokens:,} tokens, {recompute}",
        f"the fullest of {len(reports)} ranks, {peak.rank}, peaks at {peak.peak.nbytes / GIB:.1f} GiB of "
        f"{gpu.memory_gib:g}, in {peak.peak.at}",
        "an estimate by fake tensors: allocator fragments, kernels' workspaces and NCCL's buffers are not in it\n",
    ]


def memory_table(reports: list[RankReport]) -> Table:
    """Bytes by kind, between steps and at the peak."""
    heads = [f"rank {r.rank} {when}" for r in reports for when in ("static", "peak")]
    rows = [
        ["layers", *(span(r.layers) for r in reports for _ in range(2))],
        ["microbatches", *(str(r.microbatches) for r in reports for _ in range(2))],
    ]
    for kind in KINDS:
        values = [n for r in reports for n in (r.static[kind], r.peak.kinds[kind])]
        if any(values):
            rows.append([kind, *map(gib, values)])
    totals = [n for r in reports for n in (sum(r.static.values()), r.peak.nbytes)]
    return ["kind", *heads], [*rows, ["in all", *map(gib, totals)]]


def activation_table(reports: list[RankReport]) -> Table:
    """What made the activations of the fullest moment."""
    rows = [[str(r.rank), words, gib(n)] for r in reports for words, n in r.peak.largest[:5]]
    return ["rank", "operator", "GiB"], rows


def flop_table(reports: list[RankReport]) -> Table:
    """Operations counted and in closed form, and the closed form by part."""
    rows = []
    for r in reports:
        for group, n in r.expected.items():
            seen = r.flops.get(group, 0)
            rows.append([str(r.rank), group, tera(seen), tera(n), f"{seen / n:.4f}" if n else "-", "", "", ""])
        total = sum(r.expected.values())
        rows.append([str(r.rank), "in all", tera(sum(r.flops.values())), tera(total), f"{r.ratio:.4f}", "", "", ""])
        rows += [[str(r.rank), f"  {part}", "", tera(sum(n)), "", *map(tera, n)] for part, n in r.parts.items()]
    return ["rank", "operators", "counted", "closed form", "ratio", "forward", "backward", "again"], rows


def traffic_table(reports: list[RankReport]) -> Table:
    """Bytes by axis of the mesh and kind of collective."""
    rows = []
    for r in reports:
        for (axis, kind), flow in sorted(r.flows.items(), key=lambda item: -item[1].wire):
            rows.append([str(r.rank), axis, kind, f"{flow.calls:,}", gib(flow.payload), gib(flow.wire)])
    return ["rank", "axis", "collective", "calls", "payload", "through the link"], rows


def routing_table(reports: list[RankReport]) -> Table:
    """Received rows, and what the owners' gates do to their spread over ranks."""
    rows = [
        [str(r.rank), f"{r.received:,}", f"{r.spread[0]:.2f}", f"{r.spread[1]:.2f}", f"{r.tokens:,}"] for r in reports
    ]
    return ["rank", "rows", "least / mean by the gates", "most / mean by the gates", "tokens of its samples"], rows


def span(layers: tuple[int, ...]) -> str:
    """ "0-3", or "0-1, 32-33" for two stages."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def gib(n: int) -> str:
    """Bytes in GiB."""
    return f"{n / GIB:.2f}"


def tera(n: int) -> str:
    """Operations in TFLOP."""
    return f"{n / 1e12:,.2f}"


def write_json(path: Path, question: Question, gpu: Gpu, reports: list[RankReport]) -> None:
    """Everything, for other programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = {
        "size": question.config.size,
        "gpus": question.layout.ranks,
        "gpu": asdict(gpu),
        "layout": asdict(question.layout),
        "compute": asdict(question.compute),
        "precision": question.step.precision,
        "tokens": question.tokens,
        "imbalance": question.imbalance,
    }
    text = json.dumps({"asked": asked, "ranks": [as_json(r) for r in reports]}, indent=1)
    write_whole(path, [text.encode()])


def as_json(report: RankReport) -> dict[str, Any]:
    """One rank; traffic as a list, since JSON has no pairs as keys."""
    table = asdict(report)
    table["flows"] = [{"axis": a, "collective": c, **asdict(f)} for (a, c), f in report.flows.items()]
    return table
