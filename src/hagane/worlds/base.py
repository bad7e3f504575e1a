"""World: N seeded copies of one machine, stepped together; and the pilots that steer them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Embodiment, Reading


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a replay needs to draw one copy at one step: numbers only, a few dozen, in world units."""

    kind: str
    """arm, road, mill or a name of its own; the page picks the painter."""
    values: Mapping[str, Any]
    """JSON-plain lists and numbers (metres, radians, plant units)."""


class Pilot(Protocol):
    """Steers all copies of a world, one control step at a time: an expert or a classical baseline."""

    def reset(self, world: World) -> None:
        """Forget everything; called right after `World.reset`."""

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, A] commands for the present step. Only pilots named "expert" look behind `observe`."""
        ...


@runtime_checkable
class HearsApplied(Protocol):
    """A pilot that wants to know what the actuators did, as a model with past actions in its history does."""

    def applied(self, applied_NA: NDArray[np.float32]) -> None:
        """[N, A] actions as applied in the step just taken."""


class World(Protocol):
    """N copies of a machine. `reset`, then `observe` and `step` until no copy is alive."""

    embodiment: Embodiment
    """The machine."""
    cases: tuple[str, ...]
    """Names of task variants, at least one; a score card has rows for each."""
    measure: str
    """What `scores` means, with unit and direction."""
    step_limit: int
    """Control steps after which a copy ends."""
    pilots: Mapping[str, Callable[[], Pilot]]
    """Row names to pilots; "expert" and at least one "constant"/"simplest" and one "classical: ...". """

    def reset(self, case: str, seeds_N: Sequence[int]) -> None:
        """Start N = len(seeds_N) copies; a copy depends on nothing but (case, its own seed)."""

    def observe(self) -> dict[str, Reading]:
        """The newest reading of every observed channel (not text); finite values only."""
        ...

    def step(self, commands_NA: NDArray[np.float32]) -> NDArray[np.float32]:
        """Advance every living copy by one control step; [N, A] commands in, [N, A] as applied out."""
        ...

    def tasks(self) -> tuple[str, ...]:
        """The instruction of each copy, in words."""
        ...

    def alive(self) -> NDArray[np.bool_]:
        """[N] True while a copy goes on."""
        ...

    def scores(self) -> NDArray[np.float64]:
        """[N] score so far; final once a copy is no longer alive."""
        ...

    def details(self) -> dict[str, NDArray[np.float64]]:
        """Terms of the score by name, [N] each; may be empty."""
        ...

    def draw(self, copy: int) -> Drawing:
        """The present state of one copy, to be drawn."""
        ...
