"""Tables of plans on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hagane.console import plan_rows as rows

if TYPE_CHECKING:
    from rich.console import Console

    from hagane.plan.programme import Programme
    from hagane.plan.run import RunPlan


def print_run(plan: RunPlan) -> None:
    """A run's plan: the answer, its layouts, the step, the sources, and all assumptions."""
    from hagane.plan.rates import lines_of

    console = console_of()
    for line in rows.headline(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table(console, "layouts that fit, fastest first", rows.LAYOUT_HEAD, rows.layout_rows(plan))
    table(console, "one step of the first", ("part", "seconds", "share"), rows.step_rows(plan))
    table(console, "memory of its fullest GPU", ("kind", "GiB"), rows.memory_rows(plan))
    table(console, "where the tokens come from", rows.SOURCE_HEAD, rows.source_rows(plan.account))
    table(console, "yen", ("fiscal year", "yen"), rows.money_rows(plan))
    gpu = plan.request.gpu
    table(console, f"assumed of {gpu.name}", ("value", ""), rows.gpu_rows(plan))
    table(
        console,
        "assumed (each can be set in the file for --assume)",
        ("key", "value", "unit", "why"),
        lines_of(plan.assumed),
    )


def print_programme(programme: Programme) -> None:
    """A programme: milestones, tokens, spend."""
    console = console_of()
    scenario = programme.scenario
    for text in (scenario.title, scenario.title_ja):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    years = [f"FY{y}" for y in scenario.years]
    title = "milestones (dates follow from each run's plan)"
    table(console, title, rows.MILESTONE_HEAD, rows.milestone_rows(programme))
    table(console, "machines", rows.MACHINE_HEAD, rows.machine_rows(programme))
    table(console, "billion yen by fiscal year", ("", *years, "in all"), rows.spend_rows(programme))
    table(console, "tokens collected by the end of the year", ("data set", *years), rows.token_rows(programme))
    for line in scenario.year:
        console.print(f"FY{line.fiscal}: {line.basis}", markup=False, highlight=False, soft_wrap=True)
    for row in programme.spend:
        console.print(f"{row.name}: {row.basis}", markup=False, highlight=False, soft_wrap=True)


def console_of() -> Console:
    """The terminal, or 140 columns where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def table(console: Console, title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print one table; numbers stand at the right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    body = [tuple(r) for r in lines]
    for place, name in enumerate(head):
        right = bool(body) and place > 0 and all(r[place].strip("-")[:1].isdigit() or not r[place] for r in body)
        made.add_column(name, justify="right" if right else "left")
    for row in body:
        made.add_row(*row)
    console.print(made)
