"""Checkpoints of one process: exact resume, whole or absent, every byte checked, kept and exported."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hagane.engine.checkpoint_files as checkpoint_files
from hagane.engine import Saver, load_engine, save_checkpoint, start_from
from hagane.engine.checkpoint_files import keep_newest
from hagane.model import latest, read_manifest
from hagane.model.chunks import Chunk, read_chunks, read_index, write_chunks
from hagane.model.weights import complete
from hagane.policy import load_policy
from hagane.terms import CheckpointError, ConfigError, CorruptError, TrainingError
from tests.checkpoint_fixture import RECORD, files_of, flip, fresh, go_on, state_of, trained
from tests.model_fixture import ARM, CAM, ROAD, make_model, make_part


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of step 1; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(folder, trained(1), RECORD, {"data": "x"})
    return folder / "step-000001"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "step-000001"))


def test_a_loaded_engine_goes_on_with_identical_losses(tmp_path: Path) -> None:
    engine, again = trained(), fresh()
    save_checkpoint(tmp_path, engine, RECORD, {"data": "x"})
    found = latest(tmp_path)
    assert found is not None
    assert load_engine(found, again).cursor == {"data": "x"}
    assert go_on(engine, 4) == go_on(again, 4)
    mine = state_of(again)
    for name, t in state_of(engine).items():
        assert torch.equal(t, mine[name]), name


def test_one_tensor_an_expert_in_its_owners_files(saved: Path) -> None:
    weights = {p.name.split(".")[0]: load_file(p) for p in sorted((saved / "weights").iterdir())}
    assert set(weights) == {"consortium", "member-cars", "member-robots"}
    assert weights["member-cars"]["trunk.layers.0.moe.experts.up.member-cars.000"].shape == (128, 128)
    assert "tower.w_out.arm" in weights["member-robots"]
    assert all("cars" not in n and "road" not in n for n in weights["member-robots"])
    total = sum(t.numel() for table in weights.values() for t in table.values())
    assert total == sum(p.numel() for p in make_model().parameters())


def test_nothing_on_disk_is_pickled(saved: Path) -> None:
    assert {p.suffix for p in files_of(saved)} == {".safetensors", ".toml", ".json"}
    for path in saved.rglob("*.safetensors"):
        with safe_open(path, "np") as f:
            assert json.loads(f.metadata()["DCP_SHARDING_INFO"]).keys() == set(f.keys())


def test_the_same_weights_have_the_same_bytes_and_id(saved: Path, tmp_path: Path) -> None:
    record = replace(RECORD, checkpoint_id="whatever was saved before")
    other = save_checkpoint(tmp_path, trained(1), record, {"data": "x"})
    assert other == read_manifest(saved)


def test_the_served_policy_acts_and_carries_its_checkpoint(saved: Path) -> None:
    policy = load_policy(saved)
    chunk = policy.act(make_part(ROAD, 2).observation)
    assert chunk.actions_NHA.shape == (2, 16, 2) and chunk.checkpoint_id == read_manifest(saved).id
    actions = np.random.default_rng(0).normal(size=(2, 16, 2)).astype(np.float32)
    assert np.allclose(policy.roundtrip_actions("road", actions), actions, atol=1e-5)
    with pytest.raises(ConfigError, match="does not know the embodiment 'cam'"):
        policy.reset(CAM, "")


KINDS = ("model.toml", "manifest.json", "weights/", "served/", "moments/")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_is_found_and_named(copy: Path, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = rng.choice([p for p in files_of(copy) if p.relative_to(copy).as_posix().startswith(kind)])
    # the first seed hits the header, where lengths and offsets are
    flip(path, int(rng.integers(64 if seed == 0 else path.stat().st_size)), int(rng.integers(8)))
    engine = fresh()
    before = state_of(engine)
    with pytest.raises((CorruptError, CheckpointError), match=path.name):
        load_engine(copy, engine)
    assert all(torch.equal(t, before[n]) for n, t in state_of(engine).items()), "half loaded"
    if kind in (*KINDS[:2], "served/"):
        with pytest.raises((CorruptError, CheckpointError, ConfigError), match=path.name):
            load_policy(copy)
    else:
        load_policy(copy)  # it needs no moments


@pytest.mark.parametrize("table", ["weights", "served", "moments"])
def test_a_missing_shard_is_named(copy: Path, table: str) -> None:
    path = next((copy / table).glob("member-cars.*"))
    path.unlink()
    with pytest.raises(CorruptError, match=rf"{path.name}: is missing(.|\n)*next:"):
        load_engine(copy, fresh())


def test_a_file_that_the_manifest_does_not_name_is_refused(copy: Path) -> None:
    save_file({"tower.w_out.arm": torch.zeros(96, 4)}, copy / "served" / "zz.safetensors")
    with pytest.raises(CorruptError, match=r"zz\.safetensors: is not named"):
        load_policy(copy)


def test_an_edited_manifest_is_found(copy: Path) -> None:
    path = copy / "manifest.json"
    for table, key in (("record", "run"), ("cursor", "data"), ("layout", "dp_replicate")):
        raw = json.loads(path.read_text())
        raw[table][key] = "member-cars"
        path.write_text(json.dumps(raw))
        with pytest.raises((CorruptError, CheckpointError), match=r"manifest\.json"):
            read_manifest(copy)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_engine(copy, fresh())


def test_a_folder_without_a_manifest_is_no_checkpoint(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    assert latest(copy.parent) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_policy(copy)


def test_a_checkpoint_of_another_size_or_model_is_refused(saved: Path) -> None:
    before = state_of(other := fresh(size="4m"))
    with pytest.raises(CheckpointError, match=r"its size is 1m, here it is 4m(.|\n)*next:"):
        load_engine(saved, other)
    assert all(torch.equal(t, before[n]) for n, t in state_of(other).items())
    with pytest.raises(CheckpointError, match=r"its embodiments is \['arm', 'road'\], here it is \['arm'\]"):
        load_engine(saved, fresh(embodiments=(ARM,)))
    with pytest.raises(CheckpointError, match="described differently"):
        load_engine(saved, fresh(embodiments=(ARM, replace(ROAD, rate_hz=5.0))))


def test_a_full_disk_leaves_the_earlier_checkpoint_whole_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = trained(1)
    saver = Saver(tmp_path, engine, keep=3)
    saver.save(RECORD, {})
    saver.wait()
    go_on(engine, 1)
    written = []

    def full(folder: Path, *args: object) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half.safetensors").write_bytes(b"half")
        written.append(folder)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return []

    monkeypatch.setattr(checkpoint_files, "write_chunks", full)
    saver.save(RECORD, {})
    go_on(engine, 1)
    with pytest.raises(TrainingError, match=r"step-000002: the disk is full\n  next: free space"):
        saver.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    read_manifest(tmp_path / "step-000001")
    monkeypatch.undo()
    saver.save(RECORD, {})
    assert saver.wait() == read_manifest(tmp_path / "step-000003")


def test_a_save_holds_what_was_there_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = trained(1), threading.Event()
    then, real = state_of(engine), checkpoint_files.write_chunks

    def held_up(folder: Path, chunks: dict[str, list[Chunk]], rank: int) -> list[Path]:
        assert gate.wait(60)
        return real(folder, chunks, rank)

    monkeypatch.setattr(checkpoint_files, "write_chunks", held_up)
    saver = Saver(tmp_path, engine)
    saver.save(RECORD, {})
    go_on(engine, 2)
    assert saver.done() is None and latest(tmp_path) is None, "it was waited for"
    gate.set()
    manifest = saver.wait()
    assert manifest is not None and manifest.step == 1
    load_engine(tmp_path / "step-000001", again := fresh())
    assert all(torch.equal(t, then[n]) for n, t in state_of(again).items())


def test_what_a_killed_process_left_is_cleared_and_never_counted(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / ".making-step-000009")
    shutil.copytree(copy, copy.parent / ".old-step-000008")
    assert latest(copy.parent) == copy
    Saver(copy.parent, fresh())
    assert [p.name for p in copy.parent.iterdir()] == ["step-000001"]


def test_keep_last_and_keep_every(tmp_path: Path) -> None:
    for step in (100, 200, 250, 300, 350, 1_000_000, 1_000_050):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "manifest.json").write_text("{}")
    (tmp_path / "step-000150").mkdir()  # half of one is not counted, nor removed
    keep_newest(tmp_path, 2, 100)
    assert [p.name for p in complete(tmp_path)] == [
        "step-000100", "step-000200", "step-000300", "step-1000000", "step-1000050"
    ]  # fmt: skip
    keep_newest(tmp_path, 2)
    assert [p.name for p in complete(tmp_path)] == ["step-1000000", "step-1000050"]
    keep_newest(tmp_path, 5)
    assert len(complete(tmp_path)) == 2 and latest(tmp_path) == tmp_path / "step-1000050"


def test_a_run_starts_from_served_weights(saved: Path) -> None:
    engine = fresh()
    start_from(saved, engine)
    load_engine(saved, whole := fresh())
    assert engine.step == 0
    for name, t in engine.local.items():
        assert torch.equal(t, whole.ema[name]) and torch.equal(engine.ema[name], whole.ema[name]), name
    for name, b in whole.model.named_buffers():
        assert torch.equal(b, dict(engine.model.named_buffers())[name]), name


def test_boxes_come_back_as_other_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagane.model.chunks.FILE_BYTES", 200)
    whole = torch.arange(70, dtype=torch.float32).view(7, 10)
    for rank, (first, last) in enumerate(((0, 3), (3, 7))):
        box = Chunk("a", whole[first:last].contiguous(), (first, 0), (7, 10))
        more = [Chunk(f"b{rank}{k}", torch.full((20,), float(k)), (0,), (20,)) for k in range(3)]
        paths = write_chunks(tmp_path, {"us": [box, *more]}, rank)
        assert [p.name for p in paths] == [f"us.r{rank:05d}.{k}.safetensors" for k in range(2 + rank)]
    index = read_index(tmp_path)
    part = Chunk("a", torch.zeros(5, 4), (1, 6), (7, 10))
    read_chunks(tmp_path, [part, Chunk("b12", line := torch.zeros(20), (0,), (20,))], index)
    assert torch.equal(part.local, whole[1:6, 6:]) and torch.equal(line, torch.full((20,), 2.0))
    next(tmp_path.glob("us.r00000.0*")).unlink()
    with pytest.raises(CheckpointError, match="a part of 'a' is in no file"):
        read_chunks(tmp_path, [part], read_index(tmp_path))
