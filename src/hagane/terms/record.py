"""RunRecord and Scorecard: what was done, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunRecord:
    """One training run, enough to repeat it and to trace it."""

    id: str
    """Name of the run; its folder is runs/<id>."""
    config_digest: str
    """sha256 of the resolved configuration."""
    code_digest: str
    """sha256 over the package's own source files."""
    datasets: Mapping[str, str]
    """Data set name to content digest."""
    contracts: Mapping[str, str]
    """Data set name to contract digest."""
    owners: Mapping[str, str]
    """Data set name to owner."""
    seed: int
    """Seed of everything random in the run."""
    steps: int
    """Optimiser steps done."""
    checkpoint_id: str = ""
    """Digest of the last complete checkpoint."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python, torch, NumPy and the platform."""


@dataclass(frozen=True)
class Row:
    """One row of a score card: one controller on one case.

    `low` and `high` bound the 95% interval of `score`: Wilson's for success rates, a bootstrap over seeds
    for means.
    """

    case: str
    """Task or world variant: "pick-place-v3", "road", "mill"."""
    who: str
    """untrained, constant, classical, ours or expert, with a detail after a colon."""
    score: float
    """Mean score; its meaning is the card's `measure`."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end of the 95% interval."""
    n: int
    """Trials."""
    detail: Mapping[str, float] = field(default_factory=dict)
    """Terms of the score, by name."""


@dataclass(frozen=True)
class Scorecard:
    """Closed-loop results of one embodiment on seeds that no data and no tuning used."""

    embodiment: str
    """Name of the embodiment."""
    measure: str
    """What the score means, with unit and direction: "success rate, higher is better"."""
    rows: tuple[Row, ...]
    """All rows; every card has untrained, constant or simplest, classical, ours, expert."""
    seeds: tuple[int, ...]
    """Seeds of the trials."""
    checkpoint_id: str
    """The checkpoint under test."""

    def row(self, who: str, case: str = "") -> Row:
        """The row of that controller (and case, if given).

        Raises:
            KeyError: there is none.
        """
        for r in self.rows:
            if r.who.split(":")[0] == who.split(":")[0] and case in ("", r.case):
                return r
        raise KeyError(f"no row {who!r} {case!r} in the card of {self.embodiment!r}")
