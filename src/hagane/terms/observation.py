"""What a policy is given: windows of readings of N machines of one kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Reading:
    """The newest sample of one channel of N machines."""

    values: NDArray[Any]
    """[N, *shape]."""
    valid: NDArray[np.bool_]
    """[N], or [N, n] for sets."""
    age_s: NDArray[np.float32]
    """[N] seconds since the sample was taken."""


@dataclass(frozen=True, eq=False)
class Window:
    """The last S samples of one channel of N machines, newest first. Values are 0 where not valid."""

    values: NDArray[Any]
    """[N, S, *shape] float32 in the channel's unit (images uint8)."""
    valid: NDArray[np.bool_]
    """[N, S], or [N, S, n] for sets."""
    age_s: NDArray[np.float32]
    """[N, S] seconds before now at which each sample was taken."""


@dataclass(frozen=True, eq=False)
class Observation:
    """All that a policy may look at, for N machines of one embodiment.

    `channels` holds a window for every observed channel and, under the action channels' names, for the past
    applied actions. Text channels are not here: the instruction is `tasks`.
    """

    embodiment: str
    """Name of the embodiment."""
    time_ns: NDArray[np.int64]
    """[N] control time."""
    channels: Mapping[str, Window]
    """Windows by channel name."""
    tasks: tuple[str, ...]
    """N instructions; "" where there is none."""

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one embodiment in a training batch."""

    observation: Observation
    """N observations."""
    actions_NHA: NDArray[np.float32]
    """[N, H, A] commands from now on, in the channels' units."""
    action_valid_NH: NDArray[np.bool_]
    """[N, H] False past the episode's end or where the log has no usable action."""
    next: Mapping[str, Window]
    """Targets of the second loss: each observed channel one control step later (S = 1)."""
    sample_ids_N: NDArray[np.uint64]
    """[N] stable identity of each sample: seeds its noise."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One training step's samples over all embodiments: a pure function of (seed, mixture, step)."""

    step: int
    """Optimiser step this batch belongs to."""
    parts: tuple[Part, ...]
    """One part an embodiment present, in the order of names."""
    rank: int = 0
    """Whose share this is."""
    ranks: int = 1
    """Shares that the step's samples are divided into: this is every `ranks`-th sample of each part."""
