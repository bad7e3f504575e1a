"""One Meta-World task as many copies: one shared MuJoCo model, one MjData and one environment object a copy.

Meta-World's own code draws the start, moves the hand and judges success. What is left out is what a copy does
not need: rendering, observation stacking, and the second of the two resets that gymnasium asks for.
"""

from __future__ import annotations

import zlib
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

SUBSTEPS = 5
"""Physics steps (2.5 ms each) in a control step, as in Meta-World."""
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
MOVED = ("body_pos", "body_quat", "site_pos")
"""What a Meta-World reset changes in the model itself: restored, or history would leak from reset to reset."""
MAYBE_M = {"pick-place-v3": 0.10, "peg-insert-side-v3": 0.22}
"""Distance of object and goal above which success is impossible, for tasks whose evaluation costs more than their
physics. Meta-World's own limit is 0.07 m from the puck, and from the peg's head, 0.13 m before its grip."""


class TaskModel:
    """What all copies of a task share: the compiled model and the state after the hand's first moves."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.env = ALL_V3_ENVIRONMENTS[case]()
        self.model = self.env.model
        self.pristine = {name: getattr(self.model, name).copy() for name in MOVED}
        mujoco.mj_resetData(self.model, self.env.data)
        self.env._reset_hand()
        self.hand_state = np.zeros(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.env.data, self.hand_state, STATE)
        self.hand_tcp = self.env.init_tcp.copy()
        body = {self.model.body(b).name: b for b in range(self.model.nbody)}
        self.hand, self.right, self.left = body["hand"], body["rightclaw"], body["leftclaw"]
        # the puck's geom may be turned in its body; of fixtures Meta-World shows the body's quaternion
        self.object_body = next(
            body[name] for name in ("obj", "peg", "drawer_link", "button", "window") if name in body
        )

    def environment(self) -> Any:
        """A new environment object with its own MjData, made without compiling the model again."""
        env = object.__new__(type(self.env))
        env.__dict__.update(self.env.__dict__)
        env.data = mujoco.MjData(self.model)
        # goals drawn afresh at each reset, from a generator that the cell sets; the goal is visible
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        env._partially_observable = False
        env._reset_hand = lambda steps=50: self._place_hand(env)
        return env

    def _place_hand(self, env: Any) -> None:
        """As Meta-World's `_reset_hand`, from memory: its 250 physics steps always end in the same state."""
        mujoco.mj_setState(self.model, env.data, self.hand_state, STATE)
        mujoco.mj_forward(self.model, env.data)
        env.init_tcp = self.hand_tcp.copy()


class Cell:
    """One copy of a task."""

    def __init__(self, task: TaskModel) -> None:
        self.task, self.env = task, task.environment()
        self.data = self.env.data
        self.moved = {name: value.copy() for name, value in task.pristine.items()}
        self.steps = 0
        self.success = self.unstable = False
        self.now = np.zeros(18)
        self.before = np.zeros(18)

    def reset(self, seed: int) -> None:
        """Start anew; the state depends on the task and the seed only."""
        model = self.task.model
        self._swap_in(self.task.pristine)
        mujoco.mj_resetData(model, self.data)
        self.env.np_random = np.random.default_rng([seed, zlib.crc32(self.task.case.encode())])
        self.env.reset_model()
        mujoco.mj_forward(model, self.data)
        self.moved = {name: getattr(model, name).copy() for name in MOVED}
        self.steps, self.success, self.unstable = 0, False, False
        self.now = self._look()
        self.before = self.now

    def step(self, action_A: NDArray[np.float32]) -> None:
        """One control step with an action in [-1, 1]: hand step in cm, gripper effort."""
        self._swap_in(self.moved)
        self.env.set_xyz_action(action_A[:3].astype(np.float64))
        self.data.ctrl[:] = action_A[3], -action_A[3]
        time_s = self.data.time
        mujoco.mj_step(self.task.model, self.data, nstep=SUBSTEPS)
        # positions at the end of the step; forces follow in the next one
        mujoco.mj_kinematics(self.task.model, self.data)
        self.steps += 1
        if self.data.time < time_s:  # MuJoCo resets itself when the state is not finite
            self.unstable = True
            return
        self.before, self.now = self.now, self._look()
        self.success = self._judge(action_A)

    @property
    def goal(self) -> NDArray[np.float64]:
        """[3] where the hand or the object has to be, m."""
        goal: NDArray[np.float64] = self.env._target_pos
        return goal

    def full(self) -> NDArray[np.float64]:
        """[39] Meta-World's observation: present 18, one step ago 18, goal 3."""
        return np.concatenate((self.now, self.before, self.goal))

    def _look(self) -> NDArray[np.float64]:
        """[18] hand 3, gripper opening 1, object position 3 and quaternion 4 (w, x, y, z), 7 unused."""
        out, xpos = np.zeros(18), self.data.xpos
        hand, gap = xpos[self.task.hand], xpos[self.task.right] - xpos[self.task.left]
        out[:3] = hand
        out[3] = min(float(np.sqrt(gap @ gap)) / 0.1, 1.0)
        out[4:7] = self.env._get_pos_objects()
        quat = self.data.xquat[self.task.object_body]
        out[7:11] = -quat if quat[0] < 0 else quat
        return out

    def _judge(self, action_A: NDArray[np.float32]) -> bool:
        """Meta-World's own success flag."""
        limit_m = MAYBE_M.get(self.task.case)
        if limit_m is not None:
            gap = self.now[4:7] - self.goal
            if gap @ gap > limit_m**2:
                return False
        _, info = self.env.evaluate_state(self.full(), action_A)
        return bool(info["success"])

    def _swap_in(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        for name, value in arrays.items():
            getattr(self.task.model, name)[:] = value
