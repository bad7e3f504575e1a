"""Several ranks on this machine, without torchrun: started, watched, and ended together with one message.

The process that starts them trains nothing itself: it hosts the store where the ranks meet, so that whichever rank dies
there is somebody left to say so.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from hagane.engine.agree import rank_list
from hagane.engine.crew import LostRank
from hagane.engine.watch import EXIT_STUCK, read_beats, verdict
from hagane.terms import HaganeError, TrainingError

SETTLE_S = 2.0
"""Seconds for the cause to show after a rank ended that only lost another, or said nothing."""
TOGETHER_S = 0.3
"""Seconds in which ranks that were killed together are seen to end."""
GRACE_S = 1.0
"""Seconds from asking a rank to end to ending it."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to save and stop; passed on to the ranks."""
GO_ON = "the run goes on from its newest checkpoint with `--resume`"


@dataclass
class _Rank:
    """One rank's process, and how it ended."""

    number: int
    process: SpawnProcess
    reader: Connection
    ended: int | None = None
    """Exit code (negative: the signal) when it ended before anybody asked it to."""
    said: str | HaganeError | None = None
    """Its last word: our own error, or the traceback of another."""
    order: int = field(default=0)
    """Position among those that ended."""


def run_ranks(target: Callable[..., None], args: Sequence[Any], ranks: int) -> None:
    """Run `target(*args)` in that many processes, each with a seat in its environment; return when all are done.

    Raises:
        HaganeError: a rank's own error, or the watchdog's; a `TrainingError` names a rank that died and how.
        KeyboardInterrupt: ctrl-C; every rank has ended.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = get_context("spawn")
    crew = []
    for number in range(ranks):
        reader, writer = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_be_rank, args=(number, ranks, store.port, writer, target, tuple(args)))
        process.start()
        writer.close()
        crew.append(_Rank(number, process, reader))
    try:
        with _passed_on(crew):
            _wait(crew)
    finally:
        _end(crew)
    _raise_cause(crew, PrefixStore("hagane/0", store))


def _be_rank(
    number: int, ranks: int, port: int, writer: Connection, target: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """A rank's process: its seat, its work, its last word."""
    seat = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in seat.items()}, MASTER_ADDR="127.0.0.1")
    # torch's own name for: the store is hosted by who started the ranks
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    # Python's own handler would wait for a collective to come back
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        target(*args)
    except HaganeError as e:
        writer.send(e)
    except Exception:
        writer.send(traceback.format_exc())
    else:
        return
    writer.close()
    # threads of torch that wait for a lost rank are not waited for
    os._exit(1)


def _end_with_parent() -> None:
    """Nobody trains on after the process that the person sees was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _wait(crew: list[_Rank]) -> None:
    """Until all ranks ended; or, after one ended badly, until the cause has had time to show."""
    deadline: float | None = None
    running = {rank.process.sentinel: rank for rank in crew}
    while running and (deadline is None or time.monotonic() < deadline):
        for ready in connection.wait(list(running), None if deadline is None else deadline - time.monotonic()):
            assert isinstance(ready, int)
            rank = running.pop(ready)
            rank.process.join()
            rank.ended, rank.order = rank.process.exitcode, len(crew) - len(running)
            rank.said = _last_word(rank.reader)
            if rank.ended:
                now = time.monotonic()
                deadline = min(deadline or now + SETTLE_S, now + _settle_s(rank))


def _last_word(reader: Connection) -> str | HaganeError | None:
    try:
        word = reader.recv() if reader.poll() else None
    except EOFError:
        return None
    assert word is None or isinstance(word, str | HaganeError)
    return word


def _settle_s(rank: _Rank) -> float:
    if rank.ended == EXIT_STUCK:
        return 0.0
    known = (rank.ended or 0) < 0 or (rank.said is not None and not isinstance(rank.said, LostRank))
    return TOGETHER_S if known else SETTLE_S


def _end(crew: list[_Rank]) -> None:
    """End ranks that still run: ask, then insist (a stopped process hears nothing else)."""
    for rank in crew:
        if rank.process.is_alive():
            # ranks leave at once on SIGINT; SIGTERM asks for a checkpoint first
            os.kill(rank.process.pid or 0, signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    for rank in crew:
        rank.process.join(max(0.0, deadline - time.monotonic()))
        if rank.process.is_alive():
            rank.process.kill()
            rank.process.join()
        rank.reader.close()


def _raise_cause(crew: list[_Rank], store: PrefixStore) -> None:
    """Of all that went wrong, what began it: the watchdog's verdict, a death by a signal, an error of a rank."""
    bad = sorted((rank for rank in crew if rank.ended), key=lambda rank: rank.order)
    if not bad:
        return
    if stuck := verdict(store):
        raise stuck
    if any(rank.ended == -signal.SIGINT for rank in bad):
        raise KeyboardInterrupt
    if killed := [rank for rank in bad if rank.ended is not None and rank.ended < 0]:
        raise _death(killed, store)
    # one that lost its neighbour did not begin it; of equal errors the lowest rank speaks
    errors = sorted((r for r in bad if r.said), key=lambda r: (isinstance(r.said, LostRank), r.number))
    if errors and isinstance(errors[0].said, HaganeError):
        raise errors[0].said
    if errors:
        raise RuntimeError(f"rank {errors[0].number} failed:\n{errors[0].said}")
    raise TrainingError(
        f"rank {bad[0].number} ended with code {bad[0].ended} and said nothing",
        where=f"process {bad[0].process.pid}",
        next_step=GO_ON,
    )


def _death(killed: list[_Rank], store: PrefixStore) -> TrainingError:
    names = {rank.number: signal.Signals(-(rank.ended or 0)).name for rank in killed}
    beats = read_beats(store, 1 + max(names))
    step = max((beats[n].step for n in names if n in beats), default=0)
    how = f"killed by {', '.join(sorted(set(names.values())))}"
    why = " (by hand, or by the kernel when memory ran out)" if "SIGKILL" in names.values() else ""
    return TrainingError(
        f"{rank_list(names)} of this run {'was' if len(names) == 1 else 'were'} {how}{why}, about step {step}",
        where=", ".join(f"process {rank.process.pid}" for rank in killed),
        next_step=f"all other ranks were ended; {GO_ON}",
    )


@contextmanager
def _passed_on(crew: list[_Rank]) -> Iterator[None]:
    """Pass requests to stop on to the ranks, which agree on the step; only a main thread has signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in crew:
            if rank.process.is_alive():
                os.kill(rank.process.pid or 0, number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
