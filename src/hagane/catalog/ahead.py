"""Batches made ahead of time by threads: the same batches, whoever makes them and in whatever order.

Threads suffice: libjpeg-turbo, ffmpeg and NumPy's gathers let go of the interpreter while they work.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hagane.terms import Batch


class Ahead:
    """Gives `make(step)` for any step, and has made the next ones already when they are asked for in order.

    Args:
        make: the batch of a step, a pure function that threads may call.
        workers: threads; 0 makes each batch when it is asked for.
        depth: steps made ahead; 0 means two a worker.
        last: no step from this one on is made ahead.
    """

    def __init__(self, make: Callable[[int], Batch], workers: int, *, depth: int = 0, last: int = 1 << 62) -> None:
        self._make, self._last = make, last
        self._depth = (depth or 2 * workers) if workers else 0
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._made: dict[int, Future[Batch]] = {}

    def at(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            what `make` raises.
        """
        if self._pool is None:
            return self._make(step)
        wanted = range(step, min(step + self._depth + 1, max(self._last, step + 1)))
        for other in [s for s in self._made if s not in wanted]:
            self._made.pop(other).cancel()
        for s in wanted:
            if s not in self._made:
                self._made[s] = self._pool.submit(self._make, s)
        return self._made.pop(step).result()

    def close(self) -> None:
        """Let the threads go; batches that nobody asked for are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
