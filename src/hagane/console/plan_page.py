"""The page of a run's plan: one file with charts, nothing in it that asks a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.console import plan_rows as rows
from hagane.console.report import render_page, write_page
from hagane.plan.rates import lines_of
from hagane.plan.run import RunPlan, sweep, yen
from hagane.terms.amount import floor_count

STYLES = ("report.css", "plan.css")


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar."""

    name: str
    """What."""
    share: float
    """Of the bar, percent."""
    text: str
    """Its value in words."""
    colour: int
    """Number of a colour."""


def write_run_page(out: Path, plan: RunPlan) -> None:
    """Write the page of a plan.

    Raises:
        StoreError: it cannot be written.
    """
    html = render_page("plan.html.j2", STYLES, (), _context(plan))
    write_page(out, html.encode("utf-8"))


def segments(values: Mapping[str, float], whole: float, unit: str, scale: float = 1.0) -> list[Segment]:
    """Parts of a bar of `whole`; values of nothing are left out, colours stay with their names."""
    return [
        Segment(name, 100 * value / whole, f"{value / scale:,.1f} {unit}".strip(), place % 9)
        for place, (name, value) in enumerate(values.items())
        if value > 0
    ]


def number_like(cell: str) -> bool:
    """Whether a cell stands at the right."""
    return cell[:1] in set("-0123456789") and len(cell) < 24


def _context(plan: RunPlan) -> Mapping[str, Any]:
    step, memory, gpu = plan.best.step, plan.best.memory, plan.request.gpu
    parts = {**vars(step.work), "waiting": step.waiting, "once": step.once}
    kinds = {**vars(memory), "free": max(gpu.memory_gib * 2**30 - memory.total, 0.0)}
    money = {"hardware": plan.cost.hardware_yen, "housing": plan.cost.site_yen, "energy": plan.cost.energy_yen}
    statuses = {s: plan.account.share(s) for s in ("held", "pledged", "assumed")}
    swept = sweep(plan)
    return {
        "plan": plan,
        "number_like": number_like,
        "head": rows.headline(plan),
        "tokens": floor_count(plan.request.tokens),
        "cost": yen(plan.cost.total_yen),
        "mfu": f"{step.mfu(gpu, plan.request.precision):.1%}",
        "step": segments({rows.STEP_WORDS[k]: v for k, v in parts.items()}, step.seconds, "s"),
        "memory": segments(kinds, gpu.memory_gib * 2**30, "GiB", 2**30),
        "money": segments(money, plan.cost.total_yen, "M yen", 1e6),
        "statuses": segments(statuses, 1.0, "%", 0.01),
        "layouts": (rows.LAYOUT_HEAD, rows.layout_rows(plan)),
        "sweep": (rows.SWEEP_HEAD, rows.sweep_rows(swept)),
        "sources": (rows.SOURCE_HEAD, rows.source_rows(plan.account)),
        "years": (("fiscal year", "yen"), rows.money_rows(plan)),
        "gpu": (("of the accelerator", "value"), rows.gpu_rows(plan)),
        "assumed": (("key", "value", "unit", "why"), list(lines_of(plan.assumed))),
    }
