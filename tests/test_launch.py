"""Ranks that start: their seats, their agreement before the first step, other numbers of ranks, the scripts."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

import hagane
from hagane.cli import main
from hagane.engine import Compute, Layout, check_layout, fit_layout
from hagane.engine.agree import agree, differences, rank_list
from hagane.engine.meet import Seat, seat_from_env
from hagane.model.sizes import size_named
from hagane.terms import ConfigError, TrainingError

NUMBERS = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
FULL = {**NUMBERS, "MASTER_ADDR": "h", "MASTER_PORT": "9"}


def test_a_seat_is_what_torchrun_says() -> None:
    assert seat_from_env({}) is None
    assert seat_from_env({**FULL, "TORCHELASTIC_RESTART_COUNT": "2"}) == Seat(5, 8, 1, 4, 2, "h:9")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"WORLD_SIZE": ""}, "RANK is set, WORLD_SIZE is not"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT is not"),
        ({"RANK": "five"}, "no number"),
        ({"RANK": "8"}, "rank 8 of 8"),
        ({"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ({"MASTER_PORT": "99999"}, "port 99999"),
    ],
)
def test_a_seat_that_cannot_be_is_refused(change: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        seat_from_env({**FULL, **change})
    assert "next:" in str(caught.value)


def test_ranks_are_written_as_people_do() -> None:
    assert rank_list([3]) == "rank 3"
    assert rank_list([4, 0, 1, 2, 9]) == "ranks 0-2, 4, 9"


def test_what_differs_is_named_with_the_few_first() -> None:
    said = {r: {"torch": "2.13.0", "code": "aa"} for r in range(6)}
    assert differences(said) == ""
    said[4] = {"torch": "2.11.0", "code": "aa"}
    assert differences(said) == "the ranks differ in torch (2.11.0 on rank 4, 2.13.0 on ranks 0-3, 5)"
    said[5] = {"torch": "2.13.0"}
    assert "code (nothing on rank 5, aa on ranks 0-4)" in differences(said)


def in_threads(ranks: int, call: Callable[[int], None]) -> list[str]:
    """What each rank was refused with; empty for none."""
    heard = [""] * ranks

    def one(rank: int) -> None:
        try:
            call(rank)
        except TrainingError as e:
            heard[rank] = str(e)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def stores(ranks: int) -> list[dist.Store]:
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    return [host, *(dist.TCPStore("127.0.0.1", host.port, is_master=False) for _ in range(ranks - 1))]


def test_equal_ranks_go_on_and_an_odd_one_stops_all_with_one_message() -> None:
    store = stores(3)
    assert in_threads(3, lambda r: agree(store[r], r, 3, "a", {"torch": "2"}, wait_s=30)) == [""] * 3
    heard = in_threads(3, lambda r: agree(store[r], r, 3, "b", {"torch": str(r // 2)}, wait_s=30))
    assert len(set(heard)) == 1 and "torch (1 on rank 2, 0 on ranks 0-1)" in heard[0] and "no step was made" in heard[0]


def test_a_rank_that_never_comes_is_named_by_the_others() -> None:
    store = stores(3)
    heard = in_threads(2, lambda r: agree(store[r], r, 3, "c", {"torch": "2"}, wait_s=0.3))
    assert len(set(heard)) == 1 and "rank 2 of 3 did not come in 0.3 s" in heard[0]


def test_a_rank_that_counts_other_ranks_refuses_itself() -> None:
    store = stores(3)

    def call(rank: int) -> None:
        world = 2 if rank < 2 else 3
        agree(store[rank], rank, world, "d", {"world size": str(world)}, wait_s=30)

    heard = in_threads(3, call)
    assert heard[:2] == ["", ""] and "world size (2 on rank 0, 3 on rank 2)" in heard[2]


ONE_RANK = """
import os, sys, torch
if sys.argv[1]: torch.__version__ = sys.argv[1]
from hagane.engine.crew import crew_of
from hagane.engine.meet import seat_from_env
from hagane.terms import HaganeError
from hagane.train import TrainConfig
from hagane.train.run import facts_of_rank
config = TrainConfig(datasets=("arm-demo",), seed=int(sys.argv[2]))
try:
    with crew_of(seat_from_env(), torch.device("cpu"), facts_of_rank(config, sys.argv[3]), 60, print):
        print("they trained")
except HaganeError as e:
    print(e)
"""


def test_other_code_torch_seed_and_device_are_refused_by_every_rank(tmp_path: Path) -> None:
    source = Path(hagane.__file__).parents[1]
    shutil.copytree(source / "hagane", tmp_path / "hagane", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "hagane" / "train" / "loop.py").open("a") as f:
        f.write("\n# a rank with a line more\n")
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    seat = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(host.port)}
    ranks = []
    for rank, (path, planted) in enumerate([(source, ("", "1", "cpu")), (tmp_path, ("2.0.1", "2", "cuda"))]):
        env = {**os.environ, **seat, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(path)}
        env["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        command = [sys.executable, "-c", ONE_RANK, *planted]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=tmp_path.parent))
    try:
        said = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
    # every rank refuses, one of them says why
    assert [rank.returncode for rank in ranks] in ([0, 1], [1, 0]) and "they trained" not in "".join(said)
    assert sorted(said)[0] == "" and "".join(said).count("the ranks differ") == 1, said
    odd = ("code (", "torch (2.0.1 on rank 1,", "device (cpu on rank 0, cuda on rank 1)", "seed (1 on rank 0")
    for part in odd:
        assert part in "".join(said), said


SMALL = size_named("4m")


@pytest.mark.parametrize(
    ("before", "ranks", "after"),
    [
        (Layout(dp_shard=2, ep=2), 2, Layout(dp_shard=2, ep=2)),
        (Layout(), 4, Layout(dp_replicate=4)),
        (Layout(dp_replicate=2), 4, Layout(dp_replicate=4)),
        # shards of a copy are kept: a rank needs the memory that it did
        (Layout(dp_shard=4), 8, Layout(dp_replicate=2, dp_shard=4)),
        (Layout(dp_replicate=2, dp_shard=2), 2, Layout(dp_shard=2)),
        # else the copies, and groups of experts get smaller by a whole factor
        (Layout(dp_shard=4, ep=4), 2, Layout(dp_shard=2, ep=2)),
        (Layout(dp_shard=4, ep=4), 1, Layout()),
        (Layout(pp=2, dp_shard=4, ep=4), 4, Layout(pp=2, dp_shard=2, ep=2)),
        (Layout(dp_shard=4, tp=2, ep=8), 4, Layout(dp_shard=2, tp=2, ep=4)),
        # three shards would not divide the experts' widths, or be kept as they were
        (Layout(dp_shard=2), 3, Layout(dp_replicate=1, dp_shard=3)),
    ],
)
def test_a_layout_is_fitted_to_the_ranks_that_are_there(before: Layout, ranks: int, after: Layout) -> None:
    assert fit_layout(before, ranks, SMALL) == after


@pytest.mark.parametrize(("layout", "ranks"), [(Layout(pp=2), 3), (Layout(tp=2, dp_shard=2), 1), (Layout(cp=2), 5)])
def test_a_layout_that_cannot_be_fitted_is_refused_with_those_that_work(layout: Layout, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"does not fit on {ranks} ranks") as caught:
        fit_layout(layout, ranks, SMALL)
    assert f"use {layout.ranks} ranks" in str(caught.value) and f"a layout of {ranks}: (" in str(caught.value)


@pytest.mark.parametrize("ranks", range(1, 17))
def test_whatever_is_fitted_runs_on_those_ranks_and_keeps_pp_cp_and_tp(ranks: int) -> None:
    axes = [Layout(pp, rep, shard, 1, tp) for pp in (1, 2) for rep in (1, 2) for shard in (1, 2, 4) for tp in (1, 2)]
    fitted = 0
    for layout in [replace(a, ep=ep) for a in axes for ep in (1, 2, 4) if a.fsdp % ep == 0]:
        try:
            found = fit_layout(layout, ranks, SMALL)
        except ConfigError:
            continue
        check_layout(found, Compute(), SMALL, ranks)
        assert (found.pp, found.cp, found.tp) == (layout.pp, layout.cp, layout.tp) and layout.ep % found.ep == 0
        fitted += 1
    assert fitted > 0


def test_other_ranks_than_torchrun_started_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in FULL.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--home", str(tmp_path), "--nproc", "4"]) == 1
    text = capsys.readouterr().err
    assert "--nproc 4, but torchrun started 8 ranks" in text and text.count("next:") == 1


def test_the_picture_of_a_layout_is_the_engines_own() -> None:
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("draw_layout", root / "scripts" / "draw_layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.svg() == (root / "docs" / "layout.svg").read_text("utf-8"), "python scripts/draw_layout.py"
