"""A request to save and stop: SIGTERM, or SIGUSR1 as schedulers send it before a time limit."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to save a checkpoint and stop."""


class StopRequest:
    """Listens for the signals inside `with`. It only notes them: the loop looks at the end of a step."""

    def __init__(self) -> None:
        self.asked = ""
        """Name of the signal that came first; empty for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # a thread of somebody else's process leaves its signals alone
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name
