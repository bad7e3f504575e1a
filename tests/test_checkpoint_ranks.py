"""Checkpoints of many ranks: any layout to any other, one writer a number, what one rank meets all say."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import hagane.engine.checkpoint_files as checkpoint_files
import hagane.engine.checkpoint_write as checkpoint_write
from hagane.engine import Layout, Saver, load_engine, save_checkpoint
from hagane.model import latest, read_manifest
from hagane.policy import load_policy
from hagane.terms import CorruptError, HaganeError, TrainingError
from tests.checkpoint_fixture import RECORD, flip
from tests.checkpoint_ranks import build, differences, saved_once
from tests.model_fixture import ROAD, make_part
from tests.rank_fixture import on_ranks

FOUR = {
    "ep4": Layout(dp_shard=4, ep=4),
    "ep2 x fsdp2": Layout(dp_shard=4, ep=2),
    "fsdp4": Layout(dp_shard=4),
    "hsdp2 x ep2": Layout(dp_replicate=2, dp_shard=2, ep=2),
    "replicas": Layout(dp_replicate=4),
    "tp2 x fsdp2": Layout(dp_shard=2, tp=2, ep=2),
    "pp2 x ep2": Layout(pp=2, dp_shard=2, ep=2),
    "pp2 x replicas": Layout(pp=2, dp_replicate=2),
}


def some_pairs(folder: str, apart: int) -> None:
    for name, axes in FOUR.items():
        save_checkpoint(Path(folder) / name, build(axes, True), RECORD, {"data": "x"})  # type: ignore[arg-type]
    places = (*FOUR, "alone")
    for at, here in enumerate(FOUR.values()):
        for there in [places[(at + k) % len(places)] for k in range(1, 1 + apart)]:
            engine = build(here, False)
            manifest = load_engine(Path(folder) / there / "step-000007", engine)  # type: ignore[arg-type]
            assert differences(engine) == [], f"{there} to {here}"
            assert (engine.step, manifest.cursor) == (7, {"data": "x"})


@pytest.mark.parametrize("apart", [1, pytest.param(len(FOUR), marks=pytest.mark.slow)])
def test_any_layout_loads_any_other(tmp_path: Path, apart: int) -> None:
    save_checkpoint(tmp_path / "alone", build(Layout(), True), RECORD, {"data": "x"})  # type: ignore[arg-type]
    on_ranks(4, some_pairs, str(tmp_path), apart)
    whole = saved_once(tmp_path / "alone" / "step-000007")
    wrote = {}
    for name, axes in FOUR.items():
        checkpoint = tmp_path / name / "step-000007"
        load_engine(checkpoint, engine := build(Layout(), False))  # type: ignore[arg-type]
        assert differences(engine) == [], f"{name} to one process"  # type: ignore[arg-type]
        assert saved_once(checkpoint) == whole, "a number was written twice"
        manifest = read_manifest(checkpoint)
        assert manifest.ranks == 4 and manifest.layout["ep"] == axes.ep
        wrote[name] = {p.name.split(".r")[1][:5] for p in checkpoint.rglob("*.safetensors")}
    assert all(len(ranks) == 4 for ranks in wrote.values()), f"ranks that wrote nothing: {wrote}"
    a, b = (load_policy(tmp_path / n / "step-000007").act(make_part(ROAD, 2).observation) for n in ("alone", "ep4"))
    assert np.array_equal(a.actions_NHA, b.actions_NHA) and a.checkpoint_id != b.checkpoint_id


def trouble(folder: str) -> None:
    place, rank = Path(folder), dist.get_rank()
    engine = build(FOUR["ep2 x fsdp2"], True)
    saver = Saver(place, engine)  # type: ignore[arg-type]
    saver.save(RECORD, {})
    saver.wait()
    real = checkpoint_files.write_chunks

    def full(*args: object) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    # one rank's disk is full: all say so, and the next save is whole
    engine.step = 8
    checkpoint_files.write_chunks = full if rank == 2 else real  # type: ignore[assignment]
    saver.save(RECORD, {})
    with pytest.raises(TrainingError, match=r"step-000008: the disk is full \(rank 2\)"):
        saver.wait()
    checkpoint_files.write_chunks = real
    # a rank whose folder is not the others'
    write_part = checkpoint_write.write_part
    if rank == 1:
        checkpoint_write.write_part = lambda making, *args: write_part(place.parent / "elsewhere" / making.name, *args)
    saver.save(RECORD, {})
    with pytest.raises(TrainingError, match="rank 0 does not see it"):
        saver.wait()
    checkpoint_write.write_part = write_part
    dist.barrier()
    assert (left := [p.name for p in place.iterdir()]) == ["step-000007"], left
    dist.barrier()
    saver.save(RECORD, {})
    assert saver.wait() == read_manifest(place / "step-000008")
    # damage that one rank alone looks at is told by all
    dist.barrier()
    victim = sorted((place / "step-000008" / "moments").iterdir())[0]
    if rank == 0:
        flip(victim, 4000)
    dist.barrier()
    other = build(FOUR["hsdp2 x ep2"], False)
    with pytest.raises(CorruptError, match=victim.name):
        load_engine(place / "step-000008", other)  # type: ignore[arg-type]
    assert not any(t.any() for t in other.local.values()), "half loaded"
    dist.barrier()
    if rank == 0:
        for path in (place / "step-000008").rglob("*.r00003.*"):
            path.unlink()
    dist.barrier()
    with pytest.raises(CorruptError, match=r"r00003.*is missing"):
        load_engine(place / "step-000008", other)  # type: ignore[arg-type]
    load_engine(place / "step-000007", other)  # type: ignore[arg-type]
    assert differences(other) == []


def test_what_one_rank_meets_all_ranks_say(tmp_path: Path) -> None:
    on_ranks(4, trouble, str(tmp_path / "run"))


def killed(folder: str) -> None:
    place, rank = Path(folder), dist.get_rank()
    engine = build(Layout(dp_shard=2, ep=2), True)
    saver = Saver(place, engine)  # type: ignore[arg-type]
    saver.save(RECORD, {})
    saver.wait()
    real = checkpoint_files.write_chunks

    def die(*args: object) -> list[Path]:
        paths = real(*args)  # type: ignore[arg-type]
        if rank == 1 and paths and "served" in str(paths[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return paths

    checkpoint_files.write_chunks = die
    engine.step = 8
    saver.save(RECORD, {})
    try:
        saver.wait()
    except HaganeError as e:
        (place / "said").write_text(str(e))
    # torch's launcher ends us next; what matters is on disk


def test_a_rank_killed_while_it_saves_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        on_ranks(2, killed, str(tmp_path))
    assert latest(tmp_path) == tmp_path / "step-000007", "half a checkpoint was counted"
    read_manifest(tmp_path / "step-000007")
    assert list(tmp_path.glob(".making-*")), "nothing was under way when it was killed"
    engine = build(Layout(), False)
    Saver(tmp_path, engine)  # type: ignore[arg-type]
    assert not list(tmp_path.glob(".making-*"))
    load_engine(tmp_path / "step-000007", engine)  # type: ignore[arg-type]
    assert differences(engine) == []
    assert json.loads((tmp_path / "step-000007" / "manifest.json").read_text())["ranks"] == 2
