"""Loads by expert, embodiment and owner: they add up, and they are what the experts really computed."""

from __future__ import annotations

import json

import pytest
import torch

from hagane.engine import balance_experts, layer_loads, load_figures, train_step
from tests.model_fixture import ARM, ROAD, engine_of, make_batch, make_model


def test_figures_of_a_step_are_the_loads_of_its_tokens() -> None:
    engine = engine_of()
    model = engine.model
    train_step(engine, make_batch())
    loads = layer_loads(engine)
    figures = load_figures(model.config, loads)
    tokens = {e.name: 6 * model.layouts[model.config.index(e.name)].length for e in (ARM, ROAD)}
    for name, count in tokens.items():
        per_layer = loads[:, model.config.index(name)].sum(-1)
        assert per_layer.tolist() == [count * model.config.widths.top_k] * len(loads), "a token was left out"
    balance_experts(engine)
    assert layer_loads(engine).sum() == 0
    json.dumps(figures)


def test_owners_add_up_within_an_embodiment_and_over_all() -> None:
    engine = engine_of()
    model = engine.model
    train_step(engine, make_batch())
    figures = load_figures(model.config, layer_loads(engine))
    assert sum(figures["owners"].values()) == pytest.approx(1)
    assert set(figures["owners"]) == {"consortium", "member-cars", "member-robots"}
    assert figures["owners/arm"]["member-cars"] == 0 == figures["owners/road"]["member-robots"]
    for name in ("arm", "road"):
        assert sum(figures[f"owners/{name}"].values()) == pytest.approx(1)


def test_counted_by_hand() -> None:
    config = make_model().config
    owners = config.expert_owners()
    assert owners.count("consortium") == 2 and owners.count("member-cars") == owners.count("member-robots") == 3
    load = torch.zeros(2, 2, 8)
    cars, robots = owners.index("member-cars"), owners.index("member-robots")
    arm, road = config.index("arm"), config.index("road")
    load[:, arm, robots], load[0, arm, 0], load[1, arm, robots + 1] = 30, 10, 10
    load[:, road, cars] = 20
    figures = load_figures(config, load)
    assert figures["owners"] == pytest.approx({"consortium": 10 / 120, "member-robots": 70 / 120, "member-cars": 1 / 3})
    assert figures["owners/arm"] == pytest.approx({"consortium": 1 / 8, "member-robots": 7 / 8, "member-cars": 0})
    assert figures["experts/arm"][0][robots] == pytest.approx(0.75)
    assert figures["busiest/arm"] == pytest.approx(30 / (40 / 5))
    assert figures["busiest/road"] == pytest.approx(5)


def test_no_pair_at_all_is_no_load() -> None:
    config = make_model().config
    figures = load_figures(config, torch.zeros(4, 2, 8))
    assert set(figures["owners"].values()) == {0.0} and figures["busiest/arm"] == 0.0
