"""The watchdog names who is missing and what the others wait in, and leaves a slow run alone. Real processes, gloo."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from hagane.engine.crew import crew_of
from hagane.engine.meet import seat_from_env
from hagane.engine.spawn import run_ranks
from hagane.engine.watch import EXIT_STUCK, Beat, Watchdog, judge
from hagane.terms import TrainingError

DEADLINE_S = 2.0


def beat(
    count: int, still_s: float = 9.0, waits: str = "all_reduce of 4 Float (16 bytes) on axis tp", at: str = ""
) -> Beat:
    return Beat(count, 7, "a step", still_s, "process 1 on here", False, waits, at)


def test_who_does_not_beat_is_named_with_what_the_others_wait_in() -> None:
    first = {r: beat(5) for r in range(4)}
    second = {**{r: beat(9) for r in range(4)}, 2: beat(5)}
    said = judge(first, second, 4, 2.0)
    assert "rank 2 (process 1 on here) gave no sign of life" in said and "at step 7" in said
    assert "ranks 0-1, 3 wait in all_reduce of 4 Float (16 bytes) on axis tp" in said


def test_who_beats_but_waits_in_nothing_is_named_with_its_place() -> None:
    second = {0: beat(9), 1: beat(9, waits="", at="sleep_for (data/slow.py:12)"), 2: beat(9)}
    said = judge({r: beat(5) for r in range(3)}, second, 3, 2.0)
    assert "rank 1 (process 1 on here) is alive, at a step, in sleep_for (data/slow.py:12)" in said
    assert "ranks 0, 2 wait in" in said and "no sign of life" not in said


def test_ranks_in_different_collectives_are_told_apart() -> None:
    second = {0: beat(9), 1: beat(9, waits="all_to_all of 8 Float (32 bytes) on axis ep"), 2: beat(9)}
    said = judge({r: beat(5) for r in range(3)}, second, 3, 2.0)
    assert "ranks 0, 2 wait in all_reduce" in said and "rank 1 waits in all_to_all" in said


@pytest.mark.parametrize("still_s", [0.0, 0.9])
def test_as_long_as_one_rank_comes_forward_nothing_is_stuck(still_s: float) -> None:
    second = {0: beat(9), 1: beat(9, still_s), 2: beat(5)}
    assert judge({r: beat(5) for r in range(3)}, second, 3, 2.0) == ""


def test_honest_work_of_unknown_length_is_not_stuck_but_a_stopped_process_is() -> None:
    busy = replace(beat(9, waits="", at="read (catalog/fill.py:1)"), patient=True)
    first = {0: replace(busy, count=5), 1: beat(5)}
    assert judge(first, {0: busy, 1: beat(9)}, 2, 2.0) == ""
    assert "rank 0 (process 1 on here) gave no sign" in judge(first, {0: first[0], 1: beat(9)}, 2, 2.0)


def test_a_rank_that_never_came_is_named_and_many_are_counted() -> None:
    said = judge({0: beat(5)}, {0: beat(9)}, 9, 2.0)
    assert "rank 1, rank 2, rank 3, rank 4 and 4 more gave no sign of life" in said


def work(fault: str) -> None:
    """A rank: slow steps that must not alarm, then one rank stops, sleeps or takes another turn."""
    seat = seat_from_env()
    assert seat is not None

    def end(error: TrainingError | None) -> None:
        os._exit(EXIT_STUCK)

    with crew_of(seat, torch.device("cpu"), {}, DEADLINE_S, end) as crew:
        mesh = dist.init_device_mesh("cpu", (1, seat.ranks), mesh_dim_names=("dp_shard", "tp"))
        half = dist.new_group([0, 1], group_desc="mesh_tp")
        for step in range(2):
            crew.watch.at(step, "a step")
            if seat.rank == 1:
                time.sleep(DEADLINE_S * 0.65)  # the slow one: others wait for it, nobody may be ended
            dist.all_reduce(torch.ones(5))
        if fault == "none":
            return
        if seat.rank == 1:
            disturb(fault)
        dist.all_reduce(torch.ones(11, 3), group=half if seat.rank < 2 else mesh.get_group("tp"))
        raise AssertionError("it came back from a collective that one rank never entered")


def disturb(fault: str) -> None:
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "asleep":
        sleep_for_ever()
    elif fault == "received":
        dist.recv(torch.ones(2), 0)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def message(fault: str) -> tuple[str, float]:
    started = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        run_ranks(work, (fault,), 3)
    return str(caught.value), time.monotonic() - started


def test_a_stopped_rank_is_named_with_the_collective_and_a_slow_run_is_left_alone() -> None:
    said, seconds = message("stopped")
    assert "rank 1 (process " in said and "gave no sign of life" in said and "at step 1" in said
    assert "rank 0 waits in all_reduce of 33 Float (132 bytes) on axis tp" in said
    assert "next:" in said and seconds < 60


@pytest.mark.slow
def test_a_sleeping_rank_is_named_with_its_place() -> None:
    said, _ = message("asleep")
    assert "rank 1" in said and "is alive" in said and "sleep_for_ever (tests/test_watch.py" in said
    assert "no sign of life" not in said


@pytest.mark.slow
def test_a_rank_in_another_collective_is_told_apart() -> None:
    said, _ = message("received")
    assert "rank 1 waits in recv" in said and "all_reduce of 33 Float" in said


@pytest.mark.slow
def test_a_run_without_a_fault_ends_by_itself() -> None:
    run_ranks(work, ("none",), 3)


def test_a_watchdog_alone_with_a_dead_meeting_place_says_so() -> None:
    heard: list[TrainingError | None] = []
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = dist.TCPStore("127.0.0.1", host.port, is_master=False, timeout=timedelta(seconds=5))
    with Watchdog(store, 0, 2, 1.0, heard.append):
        del host
        deadline = time.monotonic() + 20
        while not heard and time.monotonic() < deadline:
            time.sleep(0.02)
    assert heard and "does not answer" in str(heard[0])
