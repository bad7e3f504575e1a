"""The arm world: five Meta-World v3 tasks, stepped copy by copy on one core.

Meta-World: Yu et al. 2019, arXiv 1910.10897; v3 of the Farama Foundation. Three things differ from its
benchmark, so figures are not to be compared with published ones: the goal is visible, an episode has 200 steps
instead of 500 and ends at success, and states are observed instead of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hagane.terms import ConfigError, Embodiment, Reading, load_toml
from hagane.worlds.arm_pilots import Expert, Hold, Straight
from hagane.worlds.base import Drawing, Pilot
from hagane.worlds.rollout import Noise

if TYPE_CHECKING:
    from hagane.worlds.arm_cell import Cell, TaskModel

TASKS: Mapping[str, str] = {
    "reach-v3": "reach the goal with the hand",
    "drawer-open-v3": "open the drawer",
    "button-press-topdown-v3": "press the button from above",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "peg-insert-side-v3": "push the peg into the hole of the box",
}
"""Instruction by case. peg-insert is the hard one: Meta-World's own expert manages 84% of it in 200 steps, while a
small network trained on 40 demonstrations a task manages all of the others."""


def make() -> ArmWorld:
    """The world behind the entry point "arm".

    Raises:
        ModuleNotFoundError: mujoco or metaworld is not installed; the registry says what to install.
    """
    import hagane.worlds.arm_cell  # noqa: F401  fail here, not at the first reset

    return ArmWorld()


class ArmWorld:
    """N arms at N tables, all at the same task. See `hagane.worlds.base.World`."""

    embodiment: Embodiment
    cases: tuple[str, ...] = tuple(TASKS)
    measure = "success rate within 200 steps (2.5 s), higher is better"
    step_limit = 200
    default_noise = Noise("white", (0.1,))
    """Noise on executed actions that demonstrations are recorded with."""
    pilots: Mapping[str, Callable[[], Pilot]]

    def __init__(self) -> None:
        self.embodiment = load_toml(Path(__file__).with_name("arm.toml"), Embodiment)
        self.pilots = {"constant: hold still": Hold, "classical: straight lines": Straight, "expert": Expert}
        self.case = ""
        self._models: dict[str, TaskModel] = {}
        self._cells: dict[str, list[Cell]] = {}
        self.cells: list[Cell] = []

    def reset(self, case: str, seeds_N: Sequence[int]) -> None:
        """Start N copies of a task; environments are kept and used again.

        Raises:
            ConfigError: no such case, or a negative seed.
        """
        if case not in self.cases:
            raise ConfigError(f"no case {case!r}", where="world 'arm'", next_step=f"use one of {', '.join(self.cases)}")
        if any(seed < 0 for seed in seeds_N):
            raise ConfigError("seeds must not be negative", where="world 'arm'")
        from hagane.worlds.arm_cell import Cell, TaskModel

        if case not in self._models:
            self._models[case] = TaskModel(case)
        kept = self._cells.setdefault(case, [])
        kept += [Cell(self._models[case]) for _ in range(len(seeds_N) - len(kept))]
        self.case, self.cells = case, kept[: len(seeds_N)]
        for cell, seed in zip(self.cells, seeds_N, strict=True):
            cell.reset(int(seed))

    def observe(self) -> dict[str, Reading]:
        """Hand and gripper, object pose, goal; copies that ended keep showing their last state."""
        full = self.full()
        valid, age_s = np.ones(len(full), np.bool_), np.zeros(len(full), np.float32)
        parts = {"arm": full[:, :4], "object": full[:, 4:11], "goal": full[:, 36:]}
        return {name: Reading(part.astype(np.float32), valid, age_s) for name, part in parts.items()}

    def full(self) -> NDArray[np.float64]:
        """[N, 39] Meta-World's own observations with the goal shown; for the expert."""
        return np.stack([cell.full() for cell in self.cells]) if self.cells else np.zeros((0, 39))

    def step(self, commands_NA: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, 4] commands in; out: clipped to [-1, 1], and 0 where not finite or where a copy has ended."""
        finite = np.where(np.isfinite(commands_NA), commands_NA, 0.0)
        applied_NA: NDArray[np.float32] = np.clip(finite, -1.0, 1.0).astype(np.float32)
        alive_N = self.alive()
        applied_NA[~alive_N] = 0.0
        for i in np.flatnonzero(alive_N):
            self.cells[i].step(applied_NA[i])
        return applied_NA

    def tasks(self) -> tuple[str, ...]:
        """The instruction of each copy."""
        return (TASKS[self.case],) * len(self.cells)

    def alive(self) -> NDArray[np.bool_]:
        """[N] True until success, the step limit, or physics that went unstable."""
        ended = [c.success or c.unstable or c.steps >= self.step_limit for c in self.cells]
        return ~np.array(ended, np.bool_)

    def scores(self) -> NDArray[np.float64]:
        """[N] 1 after success, else 0."""
        return np.array([float(c.success) for c in self.cells])

    def details(self) -> dict[str, NDArray[np.float64]]:
        """[N] steps taken so far."""
        return {"steps": np.array([float(c.steps) for c in self.cells])}

    def draw(self, copy: int) -> Drawing:
        """See `hagane.worlds.arm_draw`."""
        from hagane.worlds.arm_draw import draw

        return draw(self.cells[copy])
