"""`hagane plan run`: what one run takes, before a GPU is rented."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from hagane.terms import ConfigError

if TYPE_CHECKING:
    from hagane.catalog.record import DatasetRecord
    from hagane.plan.run import RunPlan


@dataclass(frozen=True)
class PlanRun:
    """Search layouts and estimate step time, days, failures, energy and yen of one run.

    Nothing is measured here: every assumption is printed, and can be changed in one TOML file (--assume). A budget of
    tokens needs named sources.
    """

    size: str = "1t"
    """Model: 1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    tokens: str = ""
    """Tokens to train on, like 500b or 10t; without it, all that the sources hold."""
    gpus: int = 4096
    """GPUs."""
    gpu: str = "b200"
    """Accelerator: h100, h800, h200, b200, b300, gb200, gb300, or one of the file for --assume."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """Arithmetic of the trunk's matrix products."""
    layout: str = "auto"
    """auto, or axes like pp=16,ep=64 (dp_shard takes what is left)."""
    sources: Path | None = None
    """TOML file that names where the tokens come from; examples/plan-sources.toml shows how."""
    home: Path | None = None
    """Site folder whose catalog and contracts held sources are checked against."""
    assume: Path | None = None
    """TOML file with assumptions that replace ours, any part of them."""
    start: str = ""
    """First day, like 2027-04-01; today if not given."""
    budget: str = ""
    """Yen that the run may cost, like 800m or 12b; more is refused."""
    html: Path | None = None
    """Write the plan as one HTML file with charts."""


def main(argv: list[str]) -> int:
    """Run `hagane plan run`.

    Raises:
        HaganeError: a budget without sources or beyond them, an unknown gpu, a layout that does not fit, or too little
            money.
    """
    o = tyro.cli(PlanRun, args=argv, prog="hagane plan run")
    plan = make_plan(o)
    from hagane.cli.plan_tables import print_run

    if o.html is not None:
        from hagane.console.plan_page import write_run_page

        write_run_page(o.html, plan)
    print_run(plan)
    if o.html is not None:
        print(f"\n{o.html}  (one file; open it in a browser)")
    return 0


def make_plan(o: PlanRun) -> RunPlan:
    """The plan that the options ask for.

    Raises:
        HaganeError: see `main`.
    """
    from hagane.model.sizes import size_named
    from hagane.plan.rates import gpu_named, load_assumptions
    from hagane.plan.run import RunRequest, plan_run, require_budget
    from hagane.plan.search import check_count, parse_layout
    from hagane.plan.sources import read_sources
    from hagane.plan.tokens import count_tokens, parse_amount, refuse_unnamed

    size_named(o.size)
    tokens = parse_amount(o.tokens, "--tokens") if o.tokens else 0.0
    if o.sources is None:
        raise refuse_unnamed(tokens)
    assumed = load_assumptions(o.assume)
    gpu = gpu_named(o.gpu, assumed)
    check_count(o.gpus)
    layout = None if o.layout == "auto" else parse_layout(o.layout, o.gpus)
    records = _records(o.home) if o.home is not None else None
    account = count_tokens(read_sources(o.sources).source, o.size, o.sources.parent, records)
    start = parse_day(o.start, "--start") if o.start else date.today()
    request = RunRequest(o.size, tokens or account.tokens, o.gpus, gpu, o.precision, start, layout)
    plan = plan_run(request, account, assumed)
    if o.budget:
        require_budget(plan, parse_amount(o.budget, "--budget"))
    return plan


def parse_day(text: str, what: str) -> date:
    """A day.

    Raises:
        ConfigError: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no day", where=what, next_step="write it as 2027-04-01") from None


def _records(home: Path) -> dict[str, DatasetRecord]:
    from hagane.cli.site import open_catalog

    return {r.name: r for r in open_catalog(home, noted=False).ls()}
