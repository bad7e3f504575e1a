"""Who steers the arm beside the model: nobody, straight lines, and Meta-World's scripted experts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hagane.worlds.base import World

if TYPE_CHECKING:
    from hagane.worlds.arm import ArmWorld


class Hold:
    """Holds still: the floor of the table."""

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, 4] zeros."""
        return np.zeros((len(world.alive()), 4), np.float32)


class Straight:
    """Proportional control along straight lines, the same for all tasks: above the object, down, shut, to the goal.

    It looks at `observe` only. Gains are in cm of set point a metre of error.
    """

    gain = 10.0
    """As Meta-World's experts mostly have it."""
    above_m = 0.1
    near_m = 0.02
    low_m = 0.045
    """How far above the object's centre the hand's frame stops: its fingers reach down further."""
    shut_steps = 15
    """Control steps that the gripper is given to close."""

    def reset(self, world: World) -> None:
        """Every copy begins above its object."""
        self.phase_N = np.zeros(len(world.alive()), np.int64)

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, 4] commands. Phases: 0 above, 1 down, 2 and on shut, then carry to the goal."""
        seen = world.observe()
        hand_N3 = seen["arm"].values[:, :3]
        object_N3, goal_N3 = seen["object"].values[:, :3], seen["goal"].values
        above_N3 = object_N3 + np.array([0.0, 0.0, self.above_m], np.float32)
        flat_m = np.linalg.norm(hand_N3[:, :2] - object_N3[:, :2], axis=1)
        high_m = np.abs(hand_N3[:, 2] - object_N3[:, 2])
        self.phase_N[(self.phase_N == 0) & (flat_m < self.near_m)] = 1
        arrived_N = (self.phase_N == 1) & (high_m < self.low_m)
        self.phase_N[arrived_N | (self.phase_N > 1)] += 1
        carry_N = self.phase_N > 2 + self.shut_steps
        target_N3 = np.where((self.phase_N == 0)[:, None], above_N3, object_N3)
        target_N3 = np.where(carry_N[:, None], goal_N3, target_N3)
        steps_cm = np.clip(self.gain * (target_N3 - hand_N3), -1, 1)
        grip = np.where(self.phase_N > 1, 1.0, -1.0)
        return np.concatenate([steps_cm, grip[:, None]], 1).astype(np.float32)


class Expert:
    """Meta-World's scripted policy of the task, on the full observation; clipped to what the arm can do."""

    def reset(self, world: World) -> None:
        """Take the policy of the world's task."""
        from metaworld.policies import ENV_POLICY_MAP

        arm: ArmWorld = world  # type: ignore[assignment]
        self.policy: Any = ENV_POLICY_MAP[arm.case]()

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, 4] commands in [-1, 1]."""
        arm: ArmWorld = world  # type: ignore[assignment]
        with warnings.catch_warnings():
            # it warns at every step that is longer than the arm can do; clipping is what it expects
            warnings.simplefilter("ignore")
            commands = [self.policy.get_action(row) for row in arm.full()]
        return np.clip(np.array(commands, np.float32).reshape(-1, 4), -1, 1)
