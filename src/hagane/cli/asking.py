"""How a drive asks its policy: in lockstep, or in the background while the machine goes on."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from hagane.terms import ActionChunk, HaganeError, Observation, Policy

Answer = tuple[ActionChunk, int]
"""A chunk and the guard's tick of its observation."""


class Asker(Protocol):
    """Asks a policy about one observation at a time. After its first failure it asks no more."""

    latency_ms: list[float]
    """Time of every answer."""
    error: str
    """Why the policy failed; "" while it has not."""
    checkpoint_id: str
    """Weights of the last answer."""

    def ask(self, observation: Observation, tick: int) -> None:
        """Ask, unless a question is open or the policy failed."""

    def answers(self) -> list[Answer]:
        """Answers that came since the last call."""
        ...

    def settle(self) -> None:
        """Wait for the open question and forget its answer and its time."""


class Lockstep:
    """Waits for every answer: simulated time stands still meanwhile."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._ready: deque[Answer] = deque()
        self.latency_ms: list[float] = []
        self.error = self.checkpoint_id = ""

    def ask(self, observation: Observation, tick: int) -> None:
        """Ask and wait."""
        if self.error:
            return
        begin = time.perf_counter()
        try:
            chunk = self._policy.act(observation)
        except HaganeError as e:
            self.error = str(e)
            return
        self.latency_ms.append(1e3 * (time.perf_counter() - begin))
        self.checkpoint_id = chunk.checkpoint_id
        self._ready.append((chunk, tick))

    def answers(self) -> list[Answer]:
        """The answer to the last `ask`."""
        return [self._ready.popleft() for _ in range(len(self._ready))]

    def settle(self) -> None:
        """Forget the answer."""
        self._ready.clear()
        self.latency_ms = []


class Background(Lockstep):
    """Asks in a thread; the drive takes the answer at the first tick after it came."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._thread: threading.Thread | None = None

    def ask(self, observation: Observation, tick: int) -> None:
        """Ask without waiting, unless a question is open."""
        if self._thread is None or not self._thread.is_alive():
            # a daemon: a policy that never answers cannot keep the process
            self._thread = threading.Thread(target=self._ask, args=(observation, tick), daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Wait for the open question and forget its answer and its time."""
        if self._thread is not None:
            self._thread.join()
        super().settle()

    def _ask(self, observation: Observation, tick: int) -> None:
        try:
            super().ask(observation, tick)
        except Exception as e:
            # nobody sees what a thread raises: the drive must
            self.error = f"the policy failed: {e or type(e).__name__}"
