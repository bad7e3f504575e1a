"""A policy in a world, closed loop: as a pilot, so that policies and classical controllers fly the same loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hagane.terms import HistoryBuffer, Policy
from hagane.worlds import World


class PolicyPilot:
    """Steers a world by a policy's chunks: `execute_steps` actions of each, then the next is asked for.

    A world's pilot sees no time, so control times count from 0.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, world: World) -> None:
        """Empty the history; the policy checks that it knows the machine."""
        e = world.embodiment
        self._tasks = world.tasks()
        self._history = HistoryBuffer(e, len(self._tasks))
        self._step = 0
        self._chunk: NDArray[np.float32] = np.zeros((len(self._tasks), e.horizon, e.action_width), np.float32)
        self.policy.reset(e, self._tasks[0] if self._tasks else "")

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, A] the next action of each copy's chunk."""
        e, n = world.embodiment, len(self._tasks)
        self._history.push(world.observe(), np.full(n, self._step * e.step_ns, np.int64))
        place = self._step % e.execute_steps
        if place == 0:
            self._chunk = self.policy.act(self._history.observation(self._tasks)).actions_NHA
        self._step += 1
        return self._chunk[:, place]

    def applied(self, applied_NA: NDArray[np.float32]) -> None:
        """What the actuators did in this step: the model's past actions."""
        self._history.push_action(applied_NA)
