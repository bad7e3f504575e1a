"""What a dry run plans: the consortium's machines, dealt samples, rows gated by owner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hagane.engine.layout import Layout
from hagane.model import CONSORTIUM
from hagane.model.generalist import permitted_experts
from hagane.model.slots import sample_layouts
from hagane.plan.consortium import consortium, consortium_config, deal, machines
from hagane.plan.count import closed_form
from hagane.plan.routing import plan_routing, rank_tokens, whole_rows
from hagane.plan.synthetic import synthetic_batch
from hagane.terms import ConfigError


def test_the_trillions_consortium() -> None:
    config = consortium_config("1t")
    assert len(config.embodiments) == 16
    assert config.experts[CONSORTIUM] == 32
    assert {n for owner, n in config.experts.items() if owner != CONSORTIUM} == {22}
    assert 1.00e12 <= closed_form(config).total <= 1.05e12
    lengths = {layout.embodiment.name: layout.length for layout in sample_layouts(config)}
    # cameras make samples of hundreds of tokens, a plant's tags less
    assert 200 < min(lengths.values()) < 400 < max(lengths.values()) < 2000


def test_machines_are_of_every_kind_and_members_own_theirs() -> None:
    assert {m.domain for m in machines()} == {"robot", "vehicle", "plant"}
    assert {e.owner for e in consortium(7)} == {f"member-{i:02d}" for i in range(1, 8)}
    with pytest.raises(ConfigError, match="needs members"):
        consortium(0)


def test_dealt_tokens_are_as_asked_on_average() -> None:
    config = consortium_config("1t")
    reading = deal(config, 64, 4096)
    assert np.mean(reading.tokens) == pytest.approx(4096, rel=0.1)
    counts = [sum(s.values()) for s in reading.samples]
    assert len(set(counts)) == 1
    assert all(sum(s[row] for s in reading.samples) > 0 for row in range(16))


def test_rows_go_only_where_the_gates_allow_and_none_is_lost() -> None:
    config, layout = consortium_config("1t"), Layout(dp_shard=32, cp=2, ep=32)
    reading = deal(config, layout.data_ranks, 4096)
    routing = plan_routing(config, layout, reading, 1, 1.0)
    own = np.stack([rank_tokens(config, layout, reading, 32 + r) for r in range(32)])
    # ranks of cp share the tokens of their samples
    assert own.sum() == sum(reading.tokens[16:])
    assert routing.rows_RRX.sum() == pytest.approx(8 * own.sum())
    sent = [sum(routing.planned(r).sent) for r in range(32)]
    assert sent == [round(8 * n) for n in own.sum(1)]
    assert sum(sum(routing.planned(r).received) for r in range(32)) == pytest.approx(sum(sent), abs=32)


def test_a_machine_reaches_its_owners_experts_and_the_consortiums() -> None:
    config, layout = consortium_config("1t"), Layout(dp_shard=384, ep=384)
    reading = deal(config, 384, 1200)
    routing = plan_routing(config, layout, reading, 0, 1.0)
    for rank in (0, 100):
        reached = int((routing.rows_RRX[rank] > 0).sum())
        rows = [row for row, n in reading.samples[rank].items() if n]
        assert reached == permitted_experts(config)[rows].any(0).sum()


def test_thirty_two_experts_of_the_consortium_make_sixty_four_ranks_uneven() -> None:
    config = consortium_config("1t")

    def most(ep: int) -> float:
        layout = Layout(dp_shard=ep, ep=ep)
        return plan_routing(config, layout, deal(config, ep, 4096), 0, 1.0).spread()[1]

    assert most(32) < 1.1
    assert most(64) > 1.5


def test_the_plan_takes_the_place_of_the_counts() -> None:
    config, layout = consortium_config("1m", 2), Layout(dp_shard=4, ep=4)
    planned = plan_routing(config, layout, deal(config, 4, 1700), 0, 1.5).planned(2)
    counts = torch.zeros(4, 2, dtype=torch.int64)
    sent, received = planned(torch.zeros(4, 2), counts)
    assert counts.sum(1).tolist() == received
    assert sum(sent) == round(deal(config, 4, 1700).tokens[2] * 2)


@pytest.mark.parametrize("total", [0, 7, 100])
def test_whole_rows_add_up_and_stay_near(total: int) -> None:
    expected = np.array([1.0, 2.0, 0.0, 4.5]) * total / 7.5
    whole = whole_rows(expected, total)
    assert sum(whole) == total
    assert np.abs(np.array(whole) - expected).max() < 1


def test_a_synthetic_batch_is_one_that_the_machines_could_send() -> None:
    config = consortium_config("1m", 5)
    batch = synthetic_batch(config, {0: 2, 1: 0, 3: 1}, rank=1, ranks=4, seed=7)
    assert [len(p.sample_ids_N) for p in batch.parts] == [2, 0, 1]
    for part in batch.parts:
        machine = config.embodiments[config.index(part.observation.embodiment)]
        assert part.actions_NHA.shape[1:] == (machine.horizon, machine.action_width)
        for channel in machine.channels():
            if channel.kind != "text":
                window = part.observation.channels[channel.name]
                assert window.values.shape[1:] == (channel.history.steps, *channel.shape)
                assert window.values.dtype == (np.uint8 if channel.kind == "image" else np.float32)
