"""Scenario: what a programme of several fiscal years wants, as people write it in TOML."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from importlib.resources import files
from pathlib import Path

from hagane.plan.rates import Assumptions, Precision
from hagane.plan.sources import Status
from hagane.terms import ConfigError, load_toml


@dataclass(frozen=True)
class Year:
    """A fiscal year's money."""

    fiscal: int
    """Fiscal year: April of it to March of the next."""
    budget_yen: float
    """New money, yen."""
    basis: str
    """Where the figure is from."""


@dataclass(frozen=True)
class Machine:
    """GPUs that are bought, or of a rented hall: one machine a run uses whole."""

    name: str
    """Name, for milestones."""
    gpu: str
    """Accelerator, as for `plan run --gpu`."""
    gpus: int
    """How many."""
    delivered: date
    """First day on which it can run; paid in that fiscal year."""
    yen_per_gpu: float = 0.0
    """Price of one with its share of servers, network and storage; 0 takes that of gpus.toml."""


@dataclass(frozen=True)
class Data:
    """Logs that a kind of member collects, by fiscal year."""

    owner: str
    """Whose."""
    dataset: str
    """Name."""
    embodiment: str
    """Machine, as in a file of sources."""
    hours: tuple[float, ...]
    """Hours collected in each fiscal year of the programme."""
    status: Status
    """held, pledged or assumed."""
    purpose: str
    """anchor or member-training."""
    basis: str
    """On what ground."""
    yen_per_hour: float = 0.0
    """What an hour costs the programme."""
    every: int = 1
    """Train on every n-th control step."""


@dataclass(frozen=True)
class Line:
    """Another kind of spending."""

    name: str
    """What, in English."""
    name_ja: str
    """In Japanese."""
    yen: tuple[float, ...]
    """By fiscal year of the programme."""
    basis: str
    """On what ground."""


@dataclass(frozen=True)
class Milestone:
    """A model to be trained. When it ends is computed, never written."""

    name: str
    """What, in English."""
    name_ja: str
    """In Japanese."""
    size: str
    """Of the model."""
    tokens: str
    """Tokens of the run, like 10t."""
    machine: str
    """Where it runs."""
    earliest: date
    """It does not start before, for reasons other than machine and data."""
    due: date
    """It is promised for this day; later is refused."""
    trials: float = 3.0
    """Compute for recipes, ablations and repeats before it, in main runs."""
    evaluation_days: float = 30.0
    """Days of closed-loop evaluation after training, before it counts as reached."""
    precision: Precision = "bf16"
    """Arithmetic of the trunk's products."""


@dataclass(frozen=True)
class Scenario:
    """A programme.

    Raises:
        ConfigError: years that do not follow one another, lists of another length, names that nothing has.
    """

    title: str
    """In English."""
    title_ja: str
    """In Japanese."""
    year: tuple[Year, ...]
    """Fiscal years in order."""
    machine: tuple[Machine, ...]
    """Machines."""
    data: tuple[Data, ...]
    """Data."""
    milestone: tuple[Milestone, ...]
    """Models, in order of time."""
    line: tuple[Line, ...] = ()
    """Other spending."""
    carry_over: bool = True
    """Money left in a year may be spent in the next (a fund), or is lost."""
    assumed: Assumptions = field(default_factory=Assumptions)
    """Rates and prices that replace ours."""

    def __post_init__(self) -> None:
        years = [y.fiscal for y in self.year]
        if not years or years != list(range(years[0], years[0] + len(years))):
            raise ConfigError(f"fiscal years must follow one another, not {years}")
        for name, values in [(d.dataset, d.hours) for d in self.data] + [(x.name, x.yen) for x in self.line]:
            if len(values) != len(years) or any(v < 0 for v in values):
                raise ConfigError(f"{name!r} needs {len(years)} amounts, one a fiscal year, none below 0")
        machines = [m.name for m in self.machine]
        for what, names in (("machine", machines), ("data set", [d.dataset for d in self.data])):
            if len(set(names)) < len(names):
                raise ConfigError(f"a {what} is named twice: {', '.join(names)}")
        for m in self.milestone:
            if m.machine not in machines:
                raise ConfigError(f"no machine {m.machine!r}", where=m.name, next_step=f"one of {', '.join(machines)}")
            if m.due < m.earliest or m.trials < 0 or m.evaluation_days < 0:
                raise ConfigError("due before earliest, or less than nothing of trials or evaluation", where=m.name)
        if not self.milestone or not self.data:
            raise ConfigError("a programme needs a milestone and data")

    @property
    def years(self) -> tuple[int, ...]:
        """Fiscal years."""
        return tuple(y.fiscal for y in self.year)


def default_scenario() -> Path:
    """The scenario that comes with hagane."""
    return Path(str(files("hagane.plan"))) / "programme.toml"


def read_scenario(path: Path) -> Scenario:
    """A scenario's file.

    Raises:
        ConfigError: it is not of that form.
    """
    return load_toml(path, Scenario)
