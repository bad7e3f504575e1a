"""The meter: exact on sums that a person can do, the same on real and fake tensors, and it sees a planted leak."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hagane.engine import Compute, Engine, Layout, StepConfig, make_engine
from hagane.engine.engine import cut_model, give_memory, start
from hagane.engine.experts import counted_splits
from hagane.engine.inputs import train_samples
from hagane.engine.stages import as_tensor
from hagane.engine.step import total_loss
from hagane.model import loss_counts, make_config
from hagane.plan.fake import Fake
from hagane.plan.meter import Meter
from hagane.plan.watch import Watch
from tests.model_fixture import ARM, CAM, ROAD, make_batch

PAIR = (ARM, ROAD)


def step_of(engine: Engine, n: int, embodiments: tuple[Any, ...] = PAIR) -> Callable[[Meter], None]:
    """A step of training in its three parts, told to a meter."""
    model = engine.model.train()
    samples = train_samples(model, make_batch(n=n, embodiments=embodiments), 0, 0.0)

    def step(meter: Meter) -> None:
        with meter.during("forward"):
            loss = total_loss(as_tensor(model(samples)), loss_counts(samples), 0.1)
        model.zero_grad(set_to_none=True)
        with meter.during("backward"):
            loss.backward()
        with meter.during("optimiser"):
            engine.take_gradients()
            engine.optimizer.step(1e-3)
        meter.name((p.grad for p in model.parameters()), "gradients")

    return step


def metered(fake: bool, size: str = "1m", n: int = 6, embodiments: tuple[Any, ...] = PAIR) -> Meter:
    """A step of the generalist under the meter, after one before it."""
    config, compute, cpu = StepConfig(), Compute(), torch.device("cpu")
    cut = cut_model(make_config(size, embodiments), config, Layout(), compute, "cpu", counted_splits)
    with Fake() if fake else contextlib.nullcontext():
        engine = give_memory(cut, config, 0, compute, cpu)
        if not fake:
            start(engine, {})
        step = step_of(engine, n, embodiments)
        step(Meter())
        meter = Meter()
        meter.name([*engine.model.parameters(), *engine.model.buffers()], "weights")
        meter.name((t for table in engine.moments().values() for t in table.values()), "optimiser")
        meter.name(engine.ema.values(), "averages")
        with Watch(meter):
            step(meter)
    return meter


@pytest.mark.parametrize(("n", "embodiments"), [pytest.param(6, PAIR, marks=pytest.mark.slow), (48, (ARM, CAM, ROAD))])
def test_a_step_peaks_alike_on_real_and_fake_tensors(n: int, embodiments: tuple[Any, ...]) -> None:
    real, fake = metered(False, n=n, embodiments=embodiments), metered(True, n=n, embodiments=embodiments)
    assert real.peak_bytes == fake.peak_bytes
    assert real.phase_peaks == fake.phase_peaks
    assert real.peak().kinds == fake.peak().kinds
    # not only the peak: every storage that comes or goes, in the same order
    assert real.curve() == fake.curve()
    kinds = real.peak().kinds
    assert kinds["weights"] > 0.99 * kinds["averages"] > 0
    assert 2 * kinds["averages"] == pytest.approx(kinds["optimiser"], rel=0.15)


def test_bytes_of_a_sum_done_by_hand() -> None:
    meter, w = Meter(), torch.ones(256, requires_grad=True)
    meter.name([w], "weights")
    with Watch(meter):
        with meter.during("forward"):
            y = w * 2.0  # 1024 bytes
            z = torch.cat((y, y))  # 2048
            del y
            loss = z.sum()  # 4
        with meter.during("backward"):
            loss.backward()
    assert meter.phase_peaks["forward"] == 1024 + 1024 + 2048
    # z and loss stay; the gradient of the sum is a view of 4 bytes, of the halves 1024 each, their sum, twice it
    meter.name([w.grad], "gradients")
    assert meter.now == 1024 + 2048 + 4 + 1024
    assert meter.alive()["gradients"] == meter.alive()["weights"] == 1024


def test_views_are_no_memory_and_sizes_round_as_asked() -> None:
    meter = Meter(round_to=512)
    with Watch(meter):
        x = torch.zeros(10)
        views = [x[2:], x.view(2, 5), x.t()]
    assert meter.now == 512
    assert len(views) == 3


def test_a_storage_that_is_resized_behind_the_operators_is_seen() -> None:
    meter = Meter()
    with Watch(meter):
        x = torch.zeros(1000)
        x.untyped_storage().resize_(0)
        assert meter.now == 0
        x.untyped_storage().resize_(8000)
        assert meter.now == 8000
    assert meter.peak().kinds["gathered"] == 8000
    before = torch.UntypedStorage.resize_
    assert "watched" not in before.__qualname__  # the hook is gone with the meter


def test_a_planted_leak_is_seen() -> None:
    engine = make_engine(make_config("1m", PAIR), StepConfig(), 0)
    step = step_of(engine, 4)
    kept: list[Tensor] = []

    def after_two(leak: bool) -> int:
        handle = engine.model.trunk.layers["1"].register_forward_hook(lambda *a: kept.append(a[2])) if leak else None
        meter = Meter()
        with Watch(meter):
            step(meter)
            first = meter.now
            step(meter)
        if handle:
            handle.remove()
        return meter.now - first

    step(Meter())
    assert after_two(False) == 0
    # what is kept holds its whole graph: at least the layer's own output each step
    assert after_two(True) >= kept[-1].numel() * 4


def test_names_may_come_late_and_rules_never_overrule_them() -> None:
    meter = Meter()
    with Watch(meter):
        x = torch.zeros(100)
        meter.name([x], "inputs")
        x.untyped_storage().resize_(0)
        x.untyped_storage().resize_(400)
    assert meter.alive()["inputs"] == 400
    meter.name([x], "optimiser")
    assert meter.peak().kinds["optimiser"] == 400
