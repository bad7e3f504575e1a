"""The ranks of a run as one of them sees them: they meet, agree, are watched, and part; or a process that is alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from hagane.engine.agree import agree
from hagane.engine.meet import Seat, join_ranks, reach
from hagane.engine.ranks import rank
from hagane.engine.watch import VERDICT, Unwatched, Watch, Watchdog
from hagane.terms import HaganeError, TrainingError

ANY_TIME_S = 7 * 86400.0
"""Seconds to wait where the watchdog minds those that hang."""
JOIN_S = 600.0
"""Seconds in which every rank must have come: thousands of imports from one file system take minutes."""
NO_WATCH_S = 1800.0
"""Seconds after which a collective fails when no watchdog runs: torch's own default."""


class LostRank(TrainingError):
    """The connection to another rank broke; the other one's end is the cause."""


@dataclass(frozen=True)
class Crew:
    """The ranks of a run; the default is a process that is alone."""

    seat: Seat | None = None
    """This process's."""
    store: Store | None = None
    """What ranks tell each other beside training."""
    watch: Watch = field(default_factory=Unwatched)
    """Hears how far this rank is."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the run's files."""
        return (self.seat.rank if self.seat else rank()) == 0

    def agree(self, what: str, facts: Mapping[str, str]) -> None:
        """All ranks state the same facts, or all refuse; late ones are waited for as long as they live.

        Raises:
            TrainingError: some rank states other facts; the same message on every rank.
        """
        if self.seat is not None and self.store is not None:
            agree(self.store, self.seat.rank, self.seat.ranks, what, facts, wait_s=ANY_TIME_S)

    @contextmanager
    def first_alone(self, what: str) -> Iterator[None]:
        """Rank 0 goes through this context before the others enter it: they find done what it did."""
        if self.store is not None and not self.first:
            self.store.wait([f"done/{what}"], timedelta(seconds=ANY_TIME_S))
        yield
        if self.store is not None and self.first:
            self.store.set(f"done/{what}", "")


@contextmanager
def crew_of(
    seat: Seat | None,
    device: torch.device,
    facts: Mapping[str, str],
    watch_s: float,
    end: Callable[[TrainingError | None], None],
) -> Iterator[Crew]:
    """Meet the other ranks, agree with them, be watched among them, and part from them at the end.

    Args:
        seat: this process's; None for one that is alone.
        device: the kind of device to train on.
        facts: what must be the same on every rank, by name.
        watch_s: seconds without progress after which the ranks are ended; 0 to not watch.
        end: ends this process when the watchdog says so; gets the message in one rank, None in the others.

    Raises:
        HaganeError: ranks differ, did not come, or were lost; or what was raised inside.
        SystemExit: the same, in a rank whose message another has given already.
    """
    if seat is None:
        yield Crew()
        return
    store = reach(seat, JOIN_S)
    try:
        agree(store, seat.rank, seat.ranks, "machines", {**facts, "world size": str(seat.ranks)}, wait_s=JOIN_S)
        join_ranks(seat, store, device, 2 * watch_s or NO_WATCH_S)
        with lost_rank():
            if watch_s:
                own = store.clone()  # type: ignore[attr-defined]
                with Watchdog(own, seat.rank, seat.ranks, watch_s, end) as watch:
                    yield Crew(seat, store, watch)
            else:
                yield Crew(seat, store)
            dist.destroy_process_group()
    except HaganeError as e:
        if not _speaks(store, seat.rank, e):
            raise SystemExit(1) from None
        raise


@contextmanager
def lost_rank() -> Iterator[None]:
    """Turn torch's own errors about a connection that broke into one message.

    Raises:
        LostRank: this rank's connection to another broke.
    """
    try:
        yield
    except RuntimeError as e:
        # gloo has no error class of its own
        if not isinstance(e, DistError) and "gloo/transport" not in str(e):
            raise
        raise LostRank(
            "the connection to another rank broke: it ended, or is out of reach",
            next_step="look for the rank that ended first; the run goes on from its newest checkpoint with `--resume`",
        ) from None


def _speaks(store: Store, rank: int, error: HaganeError) -> bool:
    """Whether this rank gives the message: of thousands with the same one, the first to claim it."""
    try:
        if isinstance(error, LostRank) and store.check([VERDICT]):
            return False
        key = f"said/{hashlib.sha256(str(error).encode()).hexdigest()}"
        return store.compare_set(key, "", str(rank)).decode() == str(rank)
    except DistError:
        return True
