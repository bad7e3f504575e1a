"""Operations: counted at the operators, and in closed form from the widths; the two agree."""

from __future__ import annotations

import pytest
import torch

from hagane.engine.inputs import train_samples
from hagane.engine.stages import as_tensor
from hagane.engine.step import total_loss
from hagane.model import Generalist, ModelConfig, make_config, reset_parameters, split_experts
from hagane.plan.fake import Fake
from hagane.plan.flops import FlopMeter
from hagane.plan.watch import Watch
from hagane.plan.work import Share, step_work
from hagane.terms import Embodiment
from tests.model_fixture import ARM, CAM, ROAD, make_batch


def counted(model: Generalist, n: int, embodiments: tuple[Embodiment, ...]) -> FlopMeter:
    """One forward and backward under the meter."""
    samples = train_samples(model.train(), make_batch(n=n, embodiments=embodiments), 0, 0.0)
    meter = FlopMeter()
    with Watch(meter):
        with meter.during("forward"):
            sums = as_tensor(model(samples))
            loss = total_loss(sums, torch.ones(len(sums), 2), 0.1)
        with meter.during("backward"):
            loss.backward()
    return meter


def agree(meter: FlopMeter, config: ModelConfig, n: int, rel: float) -> None:
    work = step_work(config, dict.fromkeys(range(len(config.embodiments)), n))
    assert meter.total == pytest.approx(work.total, rel=rel)
    want = work.by_group()
    assert set(meter.by_group()) <= set(want)
    for group, flops in meter.by_group().items():
        assert flops == pytest.approx(want[group], rel=rel), group
    forward = sum(row[0] for row in work.parts.values())
    assert meter.by_phase()["forward"] == pytest.approx(forward, rel=rel)


@pytest.mark.parametrize(("size", "embodiments"), [("1m", (ARM, ROAD)), ("4m", (ARM, CAM, ROAD)), ("40m", (CAM,))])
def test_closed_form_equals_the_real_step(size: str, embodiments: tuple[Embodiment, ...]) -> None:
    config = make_config(size, embodiments)
    model = Generalist(config)
    reset_parameters(model, 0)
    agree(counted(model, 3, embodiments), config, 3, 1e-3)


def test_closed_form_equals_the_fake_step_of_the_trillion() -> None:
    members = ("member-robots", "member-cars", *(f"member-{i:02d}" for i in range(3, 17)))
    config = ModelConfig("1t", (ARM, ROAD), split_experts(384, members))
    with torch.device("meta"):
        model = Generalist(config)
    with Fake():
        model.to_empty(device="cpu")
        meter = counted(model, 4, (ARM, ROAD))
    agree(meter, config, 4, 0.01)


def test_a_shares_parts_add_up_to_the_whole() -> None:
    config, samples = make_config("1m", (ARM, ROAD)), {0: 8, 1: 8}
    whole = step_work(config, samples)
    stages = [Share(layers=1, last=False), Share(layers=2, first=False, last=False), Share(layers=1, first=False)]
    assert sum(step_work(config, samples, s).total for s in stages) == whole.total
    split = step_work(config, samples, Share(tp=2, cp=2))
    for part in ("projections", "attention", "tower", "router"):
        assert 4 * sum(split.parts.get(part, [0])) == sum(whole.parts.get(part, [0])), part
    again = step_work(config, samples, Share(recompute=True))
    layers = ("projections", "short attention", "router", "shared experts", "routed experts")
    assert {p for p, row in again.parts.items() if row[2]} == set(layers)


def test_the_closed_form_is_checked_by_a_wrong_one() -> None:
    """The comparison can fail: top-k off by one, or a missing recompute, is beyond a hundredth."""
    config = make_config("4m", (ARM, ROAD))
    model = Generalist(config)
    reset_parameters(model, 0)
    meter = counted(model, 3, (ARM, ROAD))
    tokens = sum(3 * layout.length for layout in model.layouts)
    wrong = step_work(config, {0: 3, 1: 3}, Share(received=tokens * (config.widths.top_k + 1)))
    assert abs(wrong.total / meter.total - 1) > 0.01
