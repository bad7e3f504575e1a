"""Sources: whose logs a budget of tokens stands on. A budget without them is refused: nobody can audit a number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hagane.terms import PURPOSES, ConfigError, load_toml

Status = Literal["held", "pledged", "assumed"]
TRAINING = ("anchor", "member-training")
"""Purposes under which data may be trained on."""


@dataclass(frozen=True)
class Source:
    """Logs of one owner from one kind of machine.

    Raises:
        ConfigError: neither hours nor bytes or both, a purpose that is not training, data called held without the
            contract that says so.
    """

    owner: str
    """The member whose data it is."""
    dataset: str
    """Name of the data set, as in the contract and in the catalog."""
    embodiment: str
    """The machine: a TOML file beside this one, or one that is shipped (car, bench-robot, steel-line, arm ...)."""
    status: Status
    """held: in a catalog under a signed contract; pledged: promised in writing; assumed: nobody has agreed yet."""
    purpose: str
    """What the contract allows: anchor or member-training."""
    hours: float = 0.0
    """Hours of one machine's operation, all machines together."""
    bytes: int = 0
    """Bytes of logs instead, where nobody counted hours."""
    bytes_per_hour: float = 0.0
    """Bytes of an hour's log; 0 estimates it from the channels."""
    every: int = 1
    """Train on every n-th control step."""
    passes: float = 1.0
    """Times that each sample is read."""
    contract: str = ""
    """sha256 of the signed contract's text; a held source must have it."""
    basis: str = ""
    """For what is not held: who says so, and on what ground."""

    def __post_init__(self) -> None:
        where = f"source {self.owner}/{self.dataset}"
        if (self.hours > 0) == (self.bytes > 0) or min(self.hours, self.bytes, self.bytes_per_hour) < 0:
            raise ConfigError("give hours or bytes, one of them, above 0", where=where)
        if not self.owner or not self.dataset:
            raise ConfigError("a source names its owner and its data set", where=where)
        if self.purpose not in TRAINING:
            known = "is no purpose of a contract" if self.purpose not in PURPOSES else "does not allow training"
            raise ConfigError(
                f"purpose {self.purpose!r} {known}", where=where, next_step=f"use {' or '.join(TRAINING)}"
            )
        if self.contract and not re.fullmatch(r"[0-9a-f]{64}", self.contract):
            raise ConfigError(f"contract {self.contract!r} is no sha256 digest", where=where)
        if self.status == "held" and not self.contract:
            raise ConfigError(
                "held data needs the digest of its contract",
                where=where,
                next_step="`hagane contract show FILE` prints it; or call the data pledged or assumed",
            )
        if self.status != "held" and not self.basis:
            raise ConfigError(f"{self.status} data needs a `basis`: who says so, and on what ground", where=where)
        if self.every < 1 or self.passes <= 0:
            raise ConfigError("every is at least 1 and passes above 0", where=where)


@dataclass(frozen=True)
class Sources:
    """A file of sources.

    Raises:
        ConfigError: none, or the same data set of an owner twice.
    """

    source: tuple[Source, ...]
    """The sources."""

    def __post_init__(self) -> None:
        names = [(s.owner, s.dataset) for s in self.source]
        if not names:
            raise ConfigError("no source is named")
        if twice := sorted({f"{o}/{d}" for o, d in names if names.count((o, d)) > 1}):
            raise ConfigError(f"counted twice: {', '.join(twice)}")


def read_sources(path: Path) -> Sources:
    """A file of sources.

    Raises:
        ConfigError: it is not of that form.
    """
    return load_toml(path, Sources)
