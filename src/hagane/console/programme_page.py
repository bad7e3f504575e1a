"""The page of a programme: milestones on a time line, spend by fiscal year; in English and in Japanese."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from hagane.console import plan_rows as rows
from hagane.console.plan_page import STYLES, Segment, number_like, segments
from hagane.console.report import render_page, write_page
from hagane.plan.cost import fiscal_start
from hagane.plan.programme import Programme, Reached
from hagane.terms.amount import floor_count

MILESTONES_JA = (
    *("目標", "規模", "トークン", "計算機", "試行開始"),
    *("本学習", "学習完了", "達成", "期限", "本学習の費用"),
)
MACHINES_JA = ("計算機", "GPU", "納入", "購入額", "電力(MW)", "目標と試行の占める日数")


@dataclass(frozen=True)
class Strip:
    """A milestone on the time line, in percent of the whole."""

    name: str
    """In English."""
    name_ja: str
    """In Japanese."""
    start: float
    """Trials begin."""
    main: float
    """The main run begins."""
    trained: float
    """It ends."""
    reached: float
    """Evaluated."""
    due: float
    """Promised."""
    text: str
    """Dates in words."""


@dataclass(frozen=True)
class Column:
    """One fiscal year's spending, as a stacked column."""

    year: int
    """Fiscal year."""
    parts: list[Segment]
    """Kinds, in percent of the tallest column."""
    spent: str
    """Billions of yen."""
    left: str
    """Billions of yen left at its end."""


def write_programme_page(out: Path, programme: Programme) -> None:
    """Write the page of a programme.

    Raises:
        StoreError: it cannot be written.
    """
    html = render_page("programme.html.j2", STYLES, (), _context(programme))
    write_page(out, html.encode("utf-8"))


def _context(programme: Programme) -> Mapping[str, Any]:
    scenario = programme.scenario
    first, after = fiscal_start(scenario.years[0]), fiscal_start(scenario.years[-1] + 1)
    assumed = sum(programme.hours[scenario.years[-1]].share(s) for s in ("pledged", "assumed"))
    years = [f"FY{y}" for y in scenario.years]
    return {
        "programme": programme,
        "number_like": number_like,
        "names_ja": _names_ja(programme),
        "milestones_ja": MILESTONES_JA,
        "machines_ja": MACHINES_JA,
        "spend_ja": ("10億円", *(f"{y}年度" for y in scenario.years), "合計"),
        "collected_ja": ("データ", *(f"{y}年度末" for y in scenario.years)),
        "scenario": scenario,
        "strips": [_strip(m, first, after) for m in programme.milestones],
        "columns": _columns(programme),
        "kinds": [(row.name, row.name_ja, k % 9, rows.billions(row.total)) for k, row in enumerate(programme.spend)],
        "total": rows.billions(programme.total),
        "budget": rows.billions(programme.budget),
        "unspent": rows.billions(programme.budget - programme.total),
        "last_tokens": floor_count(programme.hours[scenario.years[-1]].tokens),
        "not_held": f"{assumed:.0%}",
        "milestones": (rows.MILESTONE_HEAD, list(rows.milestone_rows(programme))),
        "machines": (rows.MACHINE_HEAD, list(rows.machine_rows(programme))),
        "spend": (("billion yen", *years, "in all"), rows.spend_rows(programme)),
        "collected": (("data set", *years), rows.token_rows(programme)),
        "grounds": [(f"FY{y.fiscal}", y.basis) for y in scenario.year]
        + [(row.name, row.basis) for row in programme.spend]
        + [(f"{d.owner} / {d.dataset}", d.basis) for d in scenario.data],
    }


def _names_ja(programme: Programme) -> Mapping[str, str]:
    """Japanese names of table rows."""
    names = {row.name: row.name_ja for row in programme.spend}
    names |= {m.milestone.name: m.milestone.name_ja for m in programme.milestones}
    return names | {"in all": "合計", "new money": "新規予算", "left at the end of the year": "年度末残額"}


def _strip(m: Reached, first: date, after: date) -> Strip:
    def at(day: date) -> float:
        return round(min(max(100 * ((day - first) / (after - first)), 0.0), 100.0), 2)

    return Strip(
        m.milestone.name,
        m.milestone.name_ja,
        at(m.start),
        at(m.main_start),
        at(m.trained),
        at(m.reached),
        at(m.milestone.due),
        f"{m.start} / {m.main_start} / {m.trained} / {m.reached}",
    )


def _columns(programme: Programme) -> list[Column]:
    scenario = programme.scenario
    tallest = max(programme.spent(y) for y in scenario.years)
    columns = []
    for y in scenario.years:
        parts = {row.name: row.yen.get(y, 0.0) for row in programme.spend}
        columns.append(
            Column(
                y,
                segments(parts, tallest, "bn yen", 1e9),
                rows.billions(programme.spent(y)),
                rows.billions(programme.left(y)),
            )
        )
    return columns
