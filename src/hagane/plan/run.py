"""A run's plan: layout, step time, days, faults, energy and yen of one model on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

from hagane.engine.layout import Layout
from hagane.model import ModelConfig, make_config
from hagane.plan.cost import Cost, add_days, by_fiscal_year, run_cost
from hagane.plan.goodput import Goodput, estimate_goodput
from hagane.plan.rates import Assumptions, Gpu, Precision
from hagane.plan.search import Choice, Problem, choose, search
from hagane.plan.shape import Shape
from hagane.plan.tokens import Account, require
from hagane.plan.work import shape_of
from hagane.terms import ConfigError
from hagane.terms.amount import floor_count

SHOWN = 5
"""Layouts that are kept beside the best."""


@dataclass(frozen=True)
class RunRequest:
    """What is asked for."""

    size: str
    """1m to 1t."""
    tokens: float
    """Tokens to train on."""
    gpus: int
    """GPUs."""
    gpu: Gpu
    """The accelerator."""
    precision: Precision
    """Arithmetic of the trunk's products."""
    start: date
    """First day."""
    layout: Layout | None = None
    """A layout; None searches."""


@dataclass(frozen=True)
class RunPlan:
    """The answer."""

    request: RunRequest
    """What was asked for."""
    shape: Shape
    """The model."""
    account: Account
    """Where the tokens come from."""
    choices: tuple[Choice, ...]
    """Layouts that fit, fastest first; the first is planned with."""
    fitting: int
    """How many fit in all."""
    goodput: Goodput
    """Failures and checkpoints."""
    cost: Cost
    """Money and energy."""
    days: float
    """Days from the first step to the last."""
    assumed: Assumptions
    """Everything that was assumed."""

    @property
    def best(self) -> Choice:
        """The layout that is planned with."""
        return self.choices[0]

    @property
    def end(self) -> date:
        """Last day."""
        return add_days(self.request.start, self.days).date()

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return round(self.request.tokens / self.best.step.tokens)

    @property
    def by_year(self) -> Mapping[int, float]:
        """Yen by fiscal year."""
        return by_fiscal_year(self.request.start, self.days, self.cost.total_yen)


def plan_run(request: RunRequest, account: Account, assumed: Assumptions) -> RunPlan:
    """Plan a run.

    Args:
        request: size, tokens, machine, start.
        account: named sources; they must hold the tokens.
        assumed: rates and prices.

    Raises:
        ConfigError: sources that do not cover the tokens, an impossible number of GPUs, a layout that does not fit.
    """
    require(account, request.tokens)
    problem, shape = problem_of(request, account, assumed)
    found = choose(problem, request.layout) if request.layout else search(problem)
    goodput = estimate_goodput(request.gpus, assumed.faults)
    days = days_of(request, found[0], goodput)
    cost = run_cost(request.gpus, days, request.gpu, assumed.prices)
    return RunPlan(request, shape, account, tuple(_different(found)), len(found), goodput, cost, days, assumed)


def problem_of(request: RunRequest, account: Account, assumed: Assumptions) -> tuple[Problem, Shape]:
    """What is searched for, and the model's shape on those sources."""
    config = config_of(request.size, account)
    shape = shape_of(config, account.sample_tokens)
    return Problem(shape, config.widths, request.gpus, request.gpu, request.precision, assumed), shape


def config_of(size: str, account: Account) -> ModelConfig:
    """The model with the sources' machines."""
    machines = {c.embodiment.name: c.embodiment for c in account.counted}
    return make_config(size, tuple(machines.values()))


def days_of(request: RunRequest, choice: Choice, goodput: Goodput) -> float:
    """Days of a run.

    Raises:
        ConfigError: the machine fails faster than it can restart.
    """
    if goodput.share < 0.01:
        raise ConfigError(
            f"{request.gpus:,} GPUs are interrupted every {goodput.mtbf_s:,.0f} s: such a run does not end",
            next_step="a shorter restart_s or a longer mtbf_gpu_hours in the file for --assume, or fewer GPUs",
        )
    return request.tokens / (choice.step.tokens_s_gpu * request.gpus * goodput.share) / 86_400


@dataclass(frozen=True)
class Sweep:
    """The same run on another number of GPUs."""

    gpus: int
    """GPUs."""
    layout: Layout
    """Its fastest layout."""
    days: float
    """Days."""
    mfu: float
    """MFU."""
    goodput: float
    """Goodput."""
    yen: float
    """Cost."""


def sweep(plan: RunPlan) -> tuple[Sweep, ...]:
    """The run on a quarter, half, twice and four times the GPUs, where it fits."""
    found = []
    for factor in (0.25, 0.5, 1, 2, 4):
        gpus = round(plan.request.gpus * factor)
        request = replace(plan.request, gpus=gpus, layout=None)
        try:
            other = plan if factor == 1 else plan_run(request, plan.account, plan.assumed)
        except ConfigError:
            continue
        step = other.best.step
        mfu = step.mfu(request.gpu, request.precision)
        layout = other.best.setup.layout
        found.append(Sweep(gpus, layout, other.days, mfu, other.goodput.share, other.cost.total_yen))
    return tuple(found)


def require_budget(plan: RunPlan, budget_yen: float) -> None:
    """Refuse a run that costs more than its budget.

    Raises:
        ConfigError: with what is missing, and how many tokens the budget pays for.
    """
    cost = plan.cost.total_yen
    if cost > budget_yen:
        enough = plan.request.tokens * budget_yen / cost
        raise ConfigError(
            f"the run costs {yen(cost)}; the budget of {yen(budget_yen)} lacks {yen(cost - budget_yen)}",
            where="--budget",
            next_step=f"it pays for {floor_count(enough)} tokens on this machine; or use another --gpu or --precision",
        )


def yen(amount: float) -> str:
    """1.2e10 to "12.0 billion yen"."""
    for scale, word in ((1e12, "trillion "), (1e9, "billion "), (1e6, "million ")):
        if abs(amount) >= scale:
            return f"{amount / scale:,.{3 if scale == 1e12 else 1}f} {word}yen"
    return f"{amount:,.0f} yen"


def _different(choices: list[Choice]) -> list[Choice]:
    """The best choice of each of the best few layouts; copies of the weights do not make another layout."""
    kept: dict[tuple[int, int, int], Choice] = {}
    for choice in choices:
        layout = choice.setup.layout
        kept.setdefault((layout.pp, layout.tp, layout.ep), choice)
    return list(kept.values())[: SHOWN + 1]
