"""Where conversion runs: here, on a pool of processes, or on a Ray cluster. The results are the same bytes.

Work is a pure function of one item, results come back in the order of the items, and no more items are under way than
the engine has hands for, so memory stays bounded and nothing depends on who was faster.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

from hagane.terms import ConfigError, StoreError

T = TypeVar("T")
R = TypeVar("R")
EngineName = Literal["pool", "ray"]


@dataclass(frozen=True)
class Workers:
    """How many hands, and whose.

    Raises:
        ConfigError: fewer than no hands.
    """

    jobs: int = 1
    """Processes; 1 works in this one, 0 takes one a core."""
    engine: EngineName = "pool"
    """pool (this machine) or ray (a cluster; `ray start` joins machines, all of which see the same folders)."""

    def __post_init__(self) -> None:
        if self.jobs < 0 or self.engine not in ("pool", "ray"):
            raise ConfigError(f"cannot work with {self.jobs} jobs on {self.engine!r}", next_step="engines: pool, ray")

    @property
    def hands(self) -> int:
        """Items under way at once."""
        return self.jobs or os.cpu_count() or 1


Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""(function, items) to results in the order of the items."""


@contextmanager
def working(workers: Workers) -> Iterator[Mapper]:
    """A mapper on these workers, which are started when first needed and leave with the context.

    Raises:
        ConfigError: Ray is asked for and not installed.
        StoreError: a worker died, or the Ray cluster cannot be reached.
    """
    if workers.engine == "ray":
        with _ray(workers.hands) as mapper:
            yield mapper
    elif workers.hands == 1:
        yield map
    else:
        # spawned, not forked: this process may have threads
        pool = ProcessPoolExecutor(workers.hands, get_context("spawn"))
        try:
            yield lambda function, items: _ordered(pool.submit, Future.result, function, items, 2 * workers.hands)
        except BrokenProcessPool:
            raise _died() from None
        finally:
            # after an error nobody asks for what still waits, and nothing may run on
            pool.shutdown(cancel_futures=True)


def _died() -> StoreError:
    return StoreError(
        "a worker process died",
        next_step="run the same command again, it goes on where it was; fewer --jobs need less memory",
    )


def _ordered(
    submit: Callable[[Any, Any], Any],
    result: Callable[[Any], Any],
    function: Callable[[T], R],
    items: Iterable[T],
    most: int,
) -> Iterator[R]:
    """Results in order, with at most `most` items under way."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(submit(function, item))
        if len(waiting) >= most:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


@contextmanager
def _ray(hands: int) -> Iterator[Mapper]:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "the engine ray is not installed", where="--engine", next_step='pip install "hagane[ray]"'
        ) from None
    started = not ray.is_initialized()
    if started:
        _join(ray, hands)

    def submit(function: Callable[[Any], Any], item: Any) -> Any:
        return ray.remote(function).remote(item)

    def result(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as e:
            raise e.cause from None
        except ray.exceptions.RayError:
            raise _died() from None

    try:
        yield lambda function, items: _ordered(submit, result, function, items, 2 * hands)
    finally:
        if started:
            ray.shutdown()


def _join(ray: Any, hands: int) -> None:
    """Join the cluster that `ray start` made, or start one of so many processors here."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    try:
        try:
            ray.init(num_cpus=hands, **quiet)
        except ValueError:
            # a cluster that is there has its own number of processors, and refuses another
            ray.init(**quiet)
    except ConnectionError as e:
        raise StoreError(
            f"the Ray cluster cannot be reached: {e}", next_step="look at `ray status`, or take --engine pool"
        ) from None
