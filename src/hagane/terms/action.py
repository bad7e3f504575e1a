"""ActionChunk and the Policy protocol: what every controller of a machine looks like from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hagane.terms.embodiment import Embodiment
from hagane.terms.observation import Observation


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """The next H actions of N machines."""

    actions_NHA: NDArray[np.float32]
    """[N, H, A] in the action channels' units."""
    start_ns: NDArray[np.int64]
    """[N] time of the first action."""
    step_ns: int
    """Nanoseconds between two actions."""
    checkpoint_id: str
    """Digest of the weights that decided; "" for a controller without weights."""


def action_limits(embodiment: Embodiment) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[A] lowest and [A] highest value of each action column; infinite where the embodiment states none."""
    low_A = np.concatenate([_column(c.low, c.columns, -np.inf) for c in embodiment.act])
    high_A = np.concatenate([_column(c.high, c.columns, np.inf) for c in embodiment.act])
    return low_A, high_A


def _column(values: tuple[float, ...], columns: int, unknown: float) -> NDArray[np.float64]:
    return np.broadcast_to(np.array(values or (unknown,)), (columns,))


@runtime_checkable
class Policy(Protocol):
    """Decides actions from observations. Model, remote server, recorder and guard share this shape.

    A policy serves N machines of one embodiment at once; a single machine is N = 1. History travels inside
    the observation, so `act` keeps no state about a machine between calls.
    """

    def reset(self, embodiment: Embodiment, task: str) -> None:
        """Prepare for a machine and its instruction.

        Raises:
            ConfigError: the policy was not made for this embodiment.
        """

    def act(self, observation: Observation) -> ActionChunk:
        """Decide the next chunk for each of the N machines."""
