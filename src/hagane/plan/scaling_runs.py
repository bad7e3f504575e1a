"""Finished runs as points of a scaling law: what was trained, on how much data, and how well it did.

One JSON object a line, so that a measurement that is killed keeps what it has.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from hagane.terms import ConfigError


@dataclass(frozen=True)
class Score:
    """Closed-loop result of a run on one machine."""

    mean: float
    """Mean over trials, in the world's measure."""
    low: float
    """Lower end of the 95% interval over trials."""
    high: float
    """Upper end."""
    trials: int
    """Seeds flown."""
    expert: float
    """Mean of the demonstrations' expert on the same seeds: what perfect imitation would reach."""
    measure: str = ""
    """What the score means, with unit and direction."""


@dataclass(frozen=True)
class ScaledRun:
    """One training run and what it reached.

    Data is counted in data tokens: the tokens that carry a machine's readings and past actions. Prompts and the
    instruction are left out, since larger sizes have more of them for the same data.

    Raises:
        ConfigError: a count below 1, or a loss that is no positive number.
    """

    name: str
    """Cell of the grid: size, data amount, steps, seed."""
    size: str
    """1m, 4m, 40m ..."""
    seed: int
    """Seed of weights, order and noise."""
    parameters: int
    """All parameters."""
    active: int
    """Parameters that one token uses."""
    steps: int
    """Optimiser steps."""
    tokens: int
    """Data tokens seen in training, repeats included."""
    unique_tokens: int
    """Different data tokens in the training data."""
    trunk_tokens: int
    """All tokens that passed the trunk: data, prompts and instruction."""
    flops: float
    """Useful floating-point operations of training, in closed form."""
    cpu_s: float
    """CPU seconds of training, one thread."""
    held_out: Mapping[str, float]
    """By machine, error of the served actions on episodes of their own, in standard deviations of the action."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """By machine, the closed loop."""
    episodes: Mapping[str, int] = field(default_factory=dict)
    """By machine, different episodes in the training data."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Versions, date, machine, checkpoint, seeds."""

    def __post_init__(self) -> None:
        counts = (self.parameters, self.active, self.steps, self.tokens, self.unique_tokens, self.trunk_tokens)
        if min(counts) < 1:
            raise ConfigError("a run needs parameters, steps and tokens of at least 1", where=f"run {self.name!r}")
        bad = [m for m, loss in self.held_out.items() if not (math.isfinite(loss) and loss > 0)]
        if bad or not self.held_out:
            what = f"the held-out loss of {bad[0]!r} is {self.held_out[bad[0]]}" if bad else "there is no held-out loss"
            raise ConfigError(
                f"{what}, not a positive number",
                where=f"run {self.name!r}",
                next_step="take the run out of the file, or train it again",
            )

    @property
    def loss(self) -> float:
        """Mean of the held-out losses over machines."""
        return sum(self.held_out.values()) / len(self.held_out)


def read_runs(path: Path) -> tuple[ScaledRun, ...]:
    """The runs of a measurement, strictly; a torn last line (a killed measurement) is left out.

    Raises:
        ConfigError: no such file, or a line that is no run; names the line.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), next_step="measure with `make bench-scaling`")
    runs: list[ScaledRun] = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n") or not line.strip():
            continue
        try:
            runs.append(msgspec.json.decode(line, type=ScaledRun))
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise ConfigError(f"line {number} is no run: {e}", where=str(path)) from None
    if len({r.name for r in runs}) < len(runs):
        raise ConfigError("a run is in the file twice", where=str(path), next_step="keep one line of each name")
    return tuple(runs)


def append_run(path: Path, run: ScaledRun) -> None:
    """Add one line and bring it to the disk; a torn line before it is taken away first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if path.exists() else "wb") as f:
        f.truncate(kept.rfind(b"\n") + 1)
        f.seek(0, os.SEEK_END)
        f.write(json.dumps(asdict(run), sort_keys=True).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
