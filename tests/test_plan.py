"""Counts: the closed form and the model agree for every size."""

from __future__ import annotations

import pytest

from hagane.model import SIZES, ModelConfig, make_config, split_experts
from hagane.plan.count import closed_form, counted, meta_model
from tests.model_fixture import ARM, CAM, ROAD

NOMINAL = {"1m": 1e6, "4m": 4e6, "40m": 4e7, "400m": 4e8, "4b": 4e9, "40b": 4e10, "400b": 4e11, "1t": 1e12}


@pytest.mark.parametrize("size", SIZES)
def test_closed_form_equals_the_model(size: str) -> None:
    config = make_config(size, (ARM, CAM, ROAD))
    count = closed_form(config)
    total, owners = counted(meta_model(config))
    assert count.total == total
    assert dict(count.owners) == owners
    assert sum(owners.values()) == total
    trunk = sum(n for part, n in count.parts.items() if part not in ("adapters", "text and image"))
    assert 0.7 <= trunk / NOMINAL[size] <= 1.5


def test_the_trillion_is_one() -> None:
    members = tuple(f"member-{i:02d}" for i in range(16))
    config = ModelConfig("1t", (ARM, ROAD), split_experts(384, ("member-robots", "member-cars", *members[2:])))
    count = closed_form(config)
    assert 1.00e12 <= count.total <= 1.05e12
    assert 32e9 <= count.active <= 34.5e9
