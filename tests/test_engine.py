"""Ranks and steps: the same numbers however a step is carried out."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hagane.engine import Engine, Layout, StepConfig, balance_experts, train_step
from hagane.terms import TrainingError
from tests.model_fixture import engine_of, make_batch


def trained(steps: int = 3) -> Engine:
    engine = engine_of(StepConfig(steps=20, warmup=2))
    for step in range(steps):
        train_step(engine, make_batch(step))
        balance_experts(engine)
    return engine


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
