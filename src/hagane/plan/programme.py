"""Programme: when each milestone is reached, from its own run's plan, and what each fiscal year costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

from hagane.plan.cost import HOURS_YEAR, add_days, by_fiscal_year, fiscal_start, fiscal_year
from hagane.plan.rates import Assumptions, gpu_named
from hagane.plan.run import RunPlan, RunRequest, plan_run, yen
from hagane.plan.scenario import Data, Machine, Milestone, Scenario
from hagane.plan.sources import Source
from hagane.plan.tokens import Account, count_tokens, parse_amount
from hagane.terms import ConfigError

HARDWARE, HOUSING, ENERGY, DATA = "machines", "housing", "energy", "data"
NAMES_JA = {HARDWARE: "計算機(購入)", HOUSING: "設置・運用", ENERGY: "電力", DATA: "データ収集"}


@dataclass(frozen=True)
class Reached:
    """A milestone with its dates."""

    milestone: Milestone
    """What was asked for."""
    plan: RunPlan
    """Its main run."""
    start: date
    """First day: trials begin."""
    main_start: date
    """First day of the main run."""
    trained: date
    """Last day of the main run."""
    reached: date
    """Evaluated."""


@dataclass(frozen=True)
class SpendRow:
    """One kind of spending."""

    name: str
    """What, in English."""
    name_ja: str
    """In Japanese."""
    yen: Mapping[int, float]
    """By fiscal year."""
    basis: str
    """From what it is computed, or on what ground it was written."""

    @property
    def total(self) -> float:
        """All years."""
        return sum(self.yen.values())


@dataclass(frozen=True)
class Programme:
    """The answer."""

    scenario: Scenario
    """What was asked for."""
    milestones: tuple[Reached, ...]
    """In the scenario's order."""
    spend: tuple[SpendRow, ...]
    """By kind."""
    hours: Mapping[int, Account]
    """Tokens of all data collected up to the end of each fiscal year, for the last milestone's size."""

    def occupied(self, machine: Machine) -> float:
        """Share of a machine's days, from delivery to the programme's end, that milestones and their trials take."""
        days = (fiscal_start(self.scenario.years[-1] + 1) - machine.delivered).days
        taken = sum(
            (1 + m.milestone.trials) * m.plan.days for m in self.milestones if m.milestone.machine == machine.name
        )
        return taken / days

    def spent(self, year: int) -> float:
        """Yen of a fiscal year."""
        return sum(row.yen.get(year, 0.0) for row in self.spend)

    @property
    def total(self) -> float:
        """Yen of all years."""
        return sum(row.total for row in self.spend)

    @property
    def budget(self) -> float:
        """New money of all years."""
        return sum(y.budget_yen for y in self.scenario.year)

    def left(self, year: int) -> float:
        """Money at the end of a fiscal year; lost at its end where nothing carries over."""
        money = 0.0
        for y in self.scenario.year:
            money = (money if self.scenario.carry_over else 0.0) + y.budget_yen - self.spent(y.fiscal)
            if y.fiscal == year:
                break
        return money


def plan_programme(scenario: Scenario, folder: Path) -> Programme:
    """Plan a programme.

    Args:
        scenario: what is wanted.
        folder: where its embodiment files are looked for.

    Raises:
        ConfigError: a milestone after its due day or after the programme, data that is not there in time, a machine
            that does not hold a model, a fiscal year that spends more than it has.
    """
    free = {m.name: m.delivered for m in scenario.machine}
    reached = []
    for milestone in scenario.milestone:
        at = _reach(scenario, milestone, free[milestone.machine], folder)
        free[milestone.machine] = at.trained + timedelta(days=1)
        reached.append(at)
    last = scenario.milestone[-1].size
    hours = {y: _account(scenario, fiscal_start(y + 1), last, folder) for y in scenario.years}
    programme = Programme(scenario, tuple(reached), tuple(_spend(scenario)), hours)
    for year in scenario.years:
        if programme.left(year) < -0.5:
            raise ConfigError(
                f"fiscal {year} spends {yen(programme.spent(year))} and lacks {yen(-programme.left(year))}",
                where=scenario.title,
                next_step="buy or collect later, or less, in the scenario",
            )
    return programme


def _reach(scenario: Scenario, milestone: Milestone, free: date, folder: Path) -> Reached:
    """One milestone's run and dates.

    Raises:
        ConfigError: see `plan_programme`.
    """
    machine = next(m for m in scenario.machine if m.name == milestone.machine)
    start = max(milestone.earliest, free)
    assumed = scenario.assumed
    request = RunRequest(
        milestone.size,
        parse_amount(milestone.tokens, milestone.name),
        machine.gpus,
        gpu_named(machine.gpu, assumed),
        milestone.precision,
        start,
    )
    try:
        # trials read what is there when they begin; so does the main run, which makes its plan the same every time
        plan = plan_run(request, _account(scenario, start, milestone.size, folder), assumed)
    except ConfigError as e:
        raise ConfigError(e.what, where=f"{milestone.name}, from {start}", next_step=e.next_step) from None
    main_start = add_days(start, milestone.trials * plan.days).date()
    plan = replace(plan, request=replace(request, start=main_start))
    reached = plan.end + timedelta(days=round(milestone.evaluation_days))
    if reached > milestone.due:
        raise ConfigError(
            f"is reached on {reached}, after {milestone.due}",
            where=milestone.name,
            next_step=f"its main run takes {plan.days:,.0f} days on {machine.gpus:,} x {machine.gpu}: start earlier, "
            "use a larger machine, fewer tokens or fewer trials",
        )
    if fiscal_year(reached) > scenario.years[-1]:
        raise ConfigError(f"is reached on {reached}, after the programme's last fiscal year", where=milestone.name)
    return Reached(milestone, plan, start, main_start, plan.end, reached)


def _account(scenario: Scenario, day: date, size: str, folder: Path) -> Account:
    """Tokens of the data collected before a day; collection is even within a fiscal year.

    Raises:
        ConfigError: nothing was collected before that day.
    """
    sources = []
    for d in scenario.data:
        hours = sum(h * _gone(year, day) for year, h in zip(scenario.years, d.hours, strict=True))
        if hours > 0:
            sources.append(_source(d, hours))
    if not sources:
        raise ConfigError(f"no data is collected before {day}")
    return count_tokens(sources, size, folder)


def _source(d: Data, hours: float) -> Source:
    return Source(d.owner, d.dataset, d.embodiment, d.status, d.purpose, hours=hours, every=d.every, basis=d.basis)


def _gone(year: int, day: date) -> float:
    """Share of a fiscal year that lies before a day."""
    first, after = fiscal_start(year), fiscal_start(year + 1)
    return min(max((day - first) / (after - first), 0.0), 1.0)


def _spend(scenario: Scenario) -> list[SpendRow]:
    """All spending by fiscal year: machines in the year of delivery, housing and energy from then to the end."""
    years, assumed = scenario.years, scenario.assumed
    totals: dict[str, dict[int, float]] = {k: dict.fromkeys(years, 0.0) for k in (HARDWARE, HOUSING, ENERGY, DATA)}
    for machine in scenario.machine:
        for kind, amounts in _machine_spend(machine, assumed, years[-1]).items():
            for year, amount in amounts.items():
                if year not in totals[kind]:
                    raise ConfigError(f"machine {machine.name!r} is delivered outside of the programme's years")
                totals[kind][year] += amount
    for d in scenario.data:
        for year, h in zip(years, d.hours, strict=True):
            totals[DATA][year] += h * d.yen_per_hour
    words = {
        HARDWARE: "GPUs x price, in the year of delivery",
        HOUSING: "power x price of housing, from delivery",
        ENERGY: "power x PUE x hours used x price of energy, from delivery",
        DATA: "hours x price of an hour",
    }
    rows = [SpendRow(k, NAMES_JA[k], totals[k], words[k]) for k in totals]
    return rows + [SpendRow(x.name, x.name_ja, dict(zip(years, x.yen, strict=True)), x.basis) for x in scenario.line]


def _machine_spend(machine: Machine, assumed: Assumptions, last: int) -> dict[str, Mapping[int, float]]:
    gpu, prices = gpu_named(machine.gpu, assumed), assumed.prices
    days = (fiscal_start(last + 1) - machine.delivered).days
    kilowatts = machine.gpus * gpu.watts / 1000
    housing = kilowatts * prices.site_yen_per_kw_month * 12 * 24 * days / HOURS_YEAR
    energy = kilowatts * prices.pue * 24 * days * prices.used * prices.yen_per_kwh
    if prices.rent_yen_per_gpu_hour:
        rent = machine.gpus * 24 * days * prices.rent_yen_per_gpu_hour
        return {HARDWARE: by_fiscal_year(machine.delivered, days, rent)}
    return {
        HARDWARE: {fiscal_year(machine.delivered): machine.gpus * (machine.yen_per_gpu or gpu.yen)},
        HOUSING: by_fiscal_year(machine.delivered, days, housing),
        ENERGY: by_fiscal_year(machine.delivered, days, energy),
    }
