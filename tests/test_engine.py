"""Checkpoints, resume, and ranks: the same numbers however a step is carried out."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hagane.engine import (
    Engine,
    Layout,
    StepConfig,
    balance_experts,
    load_engine,
    save_checkpoint,
    train_step,
)
from hagane.model import latest, read_manifest
from hagane.model.naming import to_disk
from hagane.policy import load_policy
from hagane.terms import CheckpointError, ConfigError, CorruptError, RunRecord, TrainingError
from tests.model_fixture import ARM, CAM, ROAD, engine_of, make_batch, make_part

RECORD = RunRecord("r", "c", "d", {"arm-demo": "1"}, {"arm-demo": "2"}, {"arm-demo": "member-robots"}, 0, 0)


def trained(steps: int = 3) -> Engine:
    engine = engine_of(StepConfig(steps=20, warmup=2))
    for step in range(steps):
        train_step(engine, make_batch(step))
        balance_experts(engine)
    return engine


def test_a_loaded_engine_goes_on_with_identical_losses(tmp_path: Path) -> None:
    engine = trained()
    save_checkpoint(tmp_path, engine, RECORD, {"data": "x"})
    again = engine_of(StepConfig(steps=20, warmup=2))
    found = latest(tmp_path)
    assert found is not None
    assert load_engine(found, again).cursor == {"data": "x"}
    for step in range(3, 7):
        a, b = train_step(engine, make_batch(step)), train_step(again, make_batch(step))
        balance_experts(engine), balance_experts(again)
        assert a == b
    for name, p in engine.model.state_dict().items():
        assert torch.equal(p, again.model.state_dict()[name]), name


def test_one_tensor_an_expert_under_its_owner(tmp_path: Path) -> None:
    engine = trained(1)
    disk = to_disk(engine.model, dict(engine.model.named_parameters()))
    assert set(disk) == {"consortium", "member-cars", "member-robots"}
    assert "trunk.layers.0.moe.experts.up.member-cars.000" in disk["member-cars"]
    assert disk["member-cars"]["trunk.layers.0.moe.experts.up.member-cars.000"].shape == (128, 128)
    assert "tower.w_out.arm" in disk["member-robots"]
    total = sum(t.numel() for table in disk.values() for t in table.values())
    assert total == sum(p.numel() for p in engine.model.parameters())


def test_the_served_policy_acts_and_carries_its_checkpoint(tmp_path: Path) -> None:
    engine = trained()
    manifest = save_checkpoint(tmp_path, engine, RECORD, {})
    policy = load_policy(tmp_path / "step-000003")
    chunk = policy.act(make_part(ROAD, 2).observation)
    assert chunk.actions_NHA.shape == (2, 16, 2) and chunk.checkpoint_id == manifest.id
    actions = np.random.default_rng(0).normal(size=(2, 16, 2)).astype(np.float32)
    assert np.allclose(policy.roundtrip_actions("road", actions), actions, atol=1e-5)
    with pytest.raises(ConfigError, match="does not know the embodiment 'cam'"):
        policy.reset(CAM, "")


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_byte_is_found_and_named(tmp_path: Path, seed: int) -> None:
    save_checkpoint(tmp_path, trained(1), RECORD, {})
    folder = tmp_path / "step-000001"
    rng = np.random.default_rng(seed)
    path = rng.choice(sorted(p for p in folder.iterdir() if p.name != "manifest.json"))
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))
    with pytest.raises((CorruptError, ConfigError), match=path.name):
        load_policy(folder)


def test_an_edited_manifest_is_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained(1), RECORD, {})
    path = tmp_path / "step-000001" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["record"]["owners"]["arm-demo"] = "member-cars"
    path.write_text(json.dumps(raw))
    with pytest.raises(CorruptError, match="manifest was changed"):
        read_manifest(path.parent)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained(1), RECORD, {})
    (tmp_path / "step-000001" / "manifest.json").unlink()
    assert latest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_policy(tmp_path / "step-000001")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained(1), RECORD, {})
    other = engine_of(embodiments=(ARM,))
    with pytest.raises(CheckpointError, match="made for another model"):
        load_engine(tmp_path / "step-000001", other)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained(1)
    save_checkpoint(tmp_path, engine, RECORD, {})
    train_step(engine, make_batch(1))
    written = []

    def full(tensors: object, path: Path) -> None:
        written.append(path)
        path.write_bytes(b"half")
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hagane.engine.checkpoint.save_file", full)
    with pytest.raises(TrainingError, match="the disk is full"):
        save_checkpoint(tmp_path, engine, RECORD, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    read_manifest(tmp_path / "step-000001")


def test_a_loss_that_is_not_finite_stops_before_the_weights_move() -> None:
    engine = trained(1)
    before = {n: p.clone() for n, p in engine.model.named_parameters()}
    batch = make_batch(1)
    batch.parts[0].actions_NHA[0, 0, 0] = np.nan
    batch.parts[0].action_valid_NH[0, 0] = True
    with pytest.raises(TrainingError, match="not finite at step 1"):
        train_step(engine, batch)
    assert all(torch.equal(before[n], p) for n, p in engine.model.named_parameters())


def one_rank(rank: int, world: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    engine = engine_of(StepConfig(steps=20, warmup=2), layout=Layout(dp_replicate=2))
    lines = []
    for step in range(3):
        lines.append(train_step(engine, make_batch(step)))
        balance_experts(engine)
    if rank == 0:
        torch.save({"lines": lines, "weights": dict(engine.model.state_dict())}, out)
    dist.destroy_process_group()


def test_two_ranks_take_the_same_step_as_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "two.pt"
    mp.spawn(one_rank, (2, port, str(out)), nprocs=2)
    two = torch.load(out, weights_only=True)
    engine = engine_of(StepConfig(steps=20, warmup=2))
    for step in range(3):
        line = train_step(engine, make_batch(step))
        balance_experts(engine)
        for key, value in line.items():
            assert value == pytest.approx(two["lines"][step][key], rel=2e-5), key
    for name, p in engine.model.state_dict().items():
        a, b = p.float(), two["weights"][name].float()
        assert (a - b).norm() <= 2e-4 * a.norm() + 1e-7, name
