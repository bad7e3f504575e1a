"""Ranks and steps: the same numbers however a step is carried out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hagane.engine import Engine, Layout, Limits, StepConfig, balance_experts, evaluate_loss, train_step
from hagane.terms import TrainingError
from tests.model_fixture import engine_of, make_batch
from tests.rank_fixture import on_ranks


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


@pytest.mark.parametrize("limits", [Limits(loss=1e-3), Limits(gradient_norm=1e-3)])
def test_a_step_beyond_the_limits_is_not_taken(limits: Limits) -> None:
    engine, other = trained(1), trained(1)
    before = {n: t.clone() for n, t in engine.model.state_dict().items()}
    line = train_step(engine, make_batch(1), limits)
    assert line["taken"] == 0 and engine.step == 1 and line["loss"] > 0
    assert all(torch.equal(before[n], t) for n, t in engine.model.state_dict().items())
    # nothing of it is left: the next step is that of an engine that never saw the batch
    for e in (engine, other):
        assert train_step(e, make_batch(2), Limits())["taken"] == 1
        balance_experts(e)
    assert all(torch.equal(t, other.model.state_dict()[n]) for n, t in engine.model.state_dict().items())


def one_rank(out: str) -> None:
    engine = engine_of(StepConfig(steps=20, warmup=2), layout=Layout(dp_replicate=2))
    lines = []
    for step in range(3):
        lines.append(train_step(engine, make_batch(step)))
        balance_experts(engine)
    if dist.get_rank() == 0:
        torch.save({"lines": lines, "weights": dict(engine.model.state_dict())}, out)


def test_two_ranks_take_the_same_step_as_one(tmp_path: Path) -> None:
    out = tmp_path / "two.pt"
    on_ranks(2, one_rank, str(out))
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


def looked(world: int) -> list[float]:
    """Gradient norms of steps with a look at held-out data between them."""
    engine = engine_of(StepConfig(steps=20, warmup=2), layout=Layout(dp_shard=world))
    norms = []
    for step in range(2):
        norms.append(train_step(engine, make_batch(step), Limits(loss=0.0))["gradient_norm"])
        evaluate_loss(engine, make_batch(50))
    return norms


def look_on_a_rank(wanted: list[float]) -> None:
    assert looked(2) == pytest.approx(wanted, rel=1e-5)


def test_a_look_at_held_out_data_changes_no_gradient() -> None:
    on_ranks(2, look_on_a_rank, looked(1))
