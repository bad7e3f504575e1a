"""The generalist: packing, gates, tokens, both heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.engine import StepConfig
from hagane.engine.inputs import train_samples
from hagane.engine.loads import layer_loads, load_figures
from hagane.engine.noise import normal, uniform
from hagane.engine.step import train_step
from hagane.model import SIZES, loss_counts, make_config, split_experts, to_sample
from hagane.model.moe import Experts, MoE, balance, experts_loop
from hagane.model.packing import pack
from hagane.terms import ChannelStats, ConfigError, Observation
from tests.model_fixture import ARM, CAM, ROAD, engine_of, make_batch, make_model, make_part


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4), st.integers(8, 64))
def test_packing_places_every_token_once(parts: list[tuple[int, int]], budget: int) -> None:
    counts, lengths = tuple(n for n, _ in parts), tuple(length for _, length in parts)
    p = pack(counts, lengths, budget)
    assert len(set(p.place_M.tolist())) == len(p.place_M) == sum(n * length for n, length in parts)
    flat, at = p.segment_RT.reshape(-1)[p.place_M], 0
    for sample, length in enumerate(length for n, length in parts for _ in range(n)):
        assert (flat[at : at + length] == sample).all()
        assert p.place_M[at] // p.tokens == p.place_M[at + length - 1] // p.tokens, "a sample is cut in two"
        at += length


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model = make_model().eval()
    alone = model.decide(sample_of(model, ARM, 1))
    crowd = model.decide(sample_of(model, ARM, 7))
    torch.testing.assert_close(alone[0], crowd[0], atol=1e-5, rtol=1e-5)


def sample_of(model, e, n):  # type: ignore[no-untyped-def]
    part = make_part(e, 7)
    o = part.observation
    cut = {k: type(w)(w.values[:n], w.valid[:n], w.age_s[:n]) for k, w in o.channels.items()}
    layout = model.layouts[model.config.index(e.name)]
    observation = Observation(e.name, o.time_ns[:n], cut, o.tasks[:n])
    return to_sample(observation, layout, model.config.widths.text_tokens, torch.device("cpu"))


def test_losses_do_not_depend_on_which_other_embodiments_are_in_the_batch() -> None:
    model = make_model()
    both = model(train_samples(model, make_batch(), 0, 0.0))
    arm = model(train_samples(model, type(make_batch())(0, make_batch().parts[:1]), 0, 0.0))
    torch.testing.assert_close(both[0].action, arm[0].action, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(both[0].next, arm[0].next, atol=1e-3, rtol=1e-5)


def test_values_that_are_not_valid_never_reach_the_network() -> None:
    model = make_model().eval()
    part = make_part(ROAD, 3)
    layout = model.layouts[model.config.index("road")]
    device, text = torch.device("cpu"), model.config.widths.text_tokens
    before = model.decide(to_sample(part.observation, layout, text, device))
    for w in part.observation.channels.values():
        mask = ~w.valid.reshape(w.valid.shape + (1,) * (w.values.ndim - w.valid.ndim))
        w.values[np.broadcast_to(mask, w.values.shape)] = 1e6
    torch.testing.assert_close(model.decide(to_sample(part.observation, layout, text, device)), before)


def test_set_places_have_no_order() -> None:
    model = make_model().eval()
    part = make_part(ROAD, 2)
    layout = model.layouts[model.config.index("road")]
    device, text = torch.device("cpu"), model.config.widths.text_tokens
    before = model.decide(to_sample(part.observation, layout, text, device))
    w, order = part.observation.channels["agents"], np.array([3, 1, 4, 0, 2])
    w.values[:], w.valid[:] = w.values[:, :, order], w.valid[:, :, order]
    torch.testing.assert_close(
        model.decide(to_sample(part.observation, layout, text, device)), before, atol=1e-5, rtol=1e-5
    )


def test_a_gate_keeps_tokens_inside_their_owners_experts() -> None:
    engine = engine_of()
    model = engine.model
    owners = np.array(model.config.expert_owners())
    train_step(engine, make_batch())
    loads = load_figures(model.config, layer_loads(engine))
    for name, allowed in (("arm", {"consortium", "member-robots"}), ("road", {"consortium", "member-cars"})):
        share = np.array(loads[f"experts/{name}"])
        assert share[:, ~np.isin(owners, list(allowed))].sum() == 0
        assert np.allclose(share.sum(1), 1.0)


def test_changing_another_members_experts_changes_no_bit_of_mine() -> None:
    model = make_model().eval()
    sample = sample_of(model, ARM, 4)
    before = model.decide(sample)
    theirs = [i for i, o in enumerate(model.config.expert_owners()) if o == "member-cars"]
    with torch.no_grad():
        for layer in model.trunk.layers.values():
            layer.moe.experts.up[theirs] = 7.0
            layer.moe.experts.down[theirs] = -3.0
            layer.moe.router[theirs] = 100.0
    assert torch.equal(model.decide(sample), before)


def test_grouped_experts_equal_the_loop_with_empty_and_skewed_groups() -> None:
    torch.manual_seed(0)
    experts = Experts(4, 16, 8)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(20, 16, requires_grad=True)
    ends = torch.tensor([0, 15, 15, 20], dtype=torch.int32)
    a, b = experts(x, ends), experts_loop(experts, x, ends)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(a)
    ga = torch.autograd.grad(a, [x, experts.up, experts.down], weight)
    gb = torch.autograd.grad(b, [x, experts.up, experts.down], weight)
    for p, q in zip(ga, gb, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)


def test_balancing_evens_out_a_skewed_router() -> None:
    torch.manual_seed(0)
    moe = MoE(16, 6, 2, 8, torch.tensor([[True] * 4 + [False] * 2, [True] * 6]))
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.25)
    with torch.no_grad():
        moe.router[0] = 3.0
    moe.train()
    x, gate = torch.rand(512, 16), torch.arange(512) % 2

    def spread() -> float:
        moe(x, gate)
        load = moe.load_GE[0, :4]
        return float(load.max() / load.mean())

    first = spread()
    for _ in range(200):
        balance(moe, 0.02)
        moe(x, gate)
    balance(moe, 0.0)
    assert spread() < 1.3 < first
    assert (moe.bias_GE[0, 4:] == 0).all()


def test_images_and_text_enter_the_same_network() -> None:
    model = make_model(embodiments=(ARM, CAM))
    samples = train_samples(model, make_batch(embodiments=(ARM, CAM)), 0, 0.0)
    sums = model(samples)
    assert all(torch.isfinite(s.action) for s in sums) and (loss_counts(samples) > 0).all()
    (sums[1].action + sums[1].next).backward()
    assert model.tokeniser.image.weight.grad.abs().sum() > 0
    assert model.tokeniser.bytes.weight.grad.abs().sum() > 0


def test_an_image_that_does_not_divide_into_patches_is_refused() -> None:
    from dataclasses import replace

    odd = replace(CAM, observe=(replace(CAM.observe[0], shape=(30, 48, 3)),))
    with pytest.raises(ConfigError, match="no multiple of the 16 px patch"):
        make_model(embodiments=(odd,))


@pytest.mark.parametrize("head", ["flow", "l1"])
def test_both_heads_learn_a_constant_action(head: str) -> None:
    config = StepConfig(steps=80, lr=3e-3, warmup=5, next_weight=0.0, mask_rate=0.0)
    engine = engine_of(config, embodiments=(ARM,), head=head)
    model = engine.model
    batch = make_batch(embodiments=(ARM,), n=16)
    batch.parts[0].actions_NHA[:] = np.array([0.5, -1.0, 0.25, 2.0])
    for step in range(80):
        train_step(engine, type(batch)(step, batch.parts))
    out = model.eval().decide(sample_of(model, ARM, 3))
    assert np.abs(out.numpy() - [0.5, -1.0, 0.25, 2.0]).mean() < 0.2


def test_the_normaliser_maps_units_to_unit_scale_and_back() -> None:
    model = make_model(embodiments=(ARM,))
    rng = np.random.default_rng(0)

    def stats(d: int) -> ChannelStats:
        return ChannelStats(9, rng.normal(size=d) * 50, rng.random(d) * 9 + 1, *np.zeros((4, d)))

    model.fit_normaliser({"arm": {"joints": stats(4), "goal": stats(3), "move": stats(4)}})
    actions = torch.from_numpy(rng.normal(size=(2, 16, 4)).astype(np.float32) * 100)
    back = model.normaliser.decode_actions(0, model.normaliser.encode_actions(0, actions), 4)
    torch.testing.assert_close(back, actions, atol=1e-3, rtol=1e-5)
    with pytest.raises(ConfigError, match="no statistics of 'goal'"):
        model.fit_normaliser({"arm": {"joints": stats(4), "move": stats(4)}})


def test_noise_is_a_function_of_seed_step_and_sample() -> None:
    ids = np.arange(5000, dtype=np.uint64)
    a = normal(1, 2, ids, "flow", 7)
    assert np.array_equal(a[[3, 1]], normal(1, 2, ids[[3, 1]], "flow", 7))
    assert abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02
    for other in (normal(2, 2, ids, "flow", 7), normal(1, 3, ids, "flow", 7), normal(1, 2, ids, "time", 7)):
        assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 0.02
    u = uniform(0, 0, ids, "u", 3)
    assert u.min() > 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(a.T) - np.eye(7)).max() < 0.06


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 20))
def test_experts_split_adds_up(experts: int, members: int) -> None:
    names = tuple(f"member-{i}" for i in range(members))
    try:
        split = split_experts(experts, names)
    except ConfigError:
        assert members > 0
        return
    assert sum(split.values()) == experts and len({split[n] for n in names}) <= 1


def test_the_trillion_splits_as_designed() -> None:
    split = split_experts(SIZES["1t"].experts, tuple(f"member-{i:02d}" for i in range(16)))
    assert split["consortium"] == 32 and split["member-07"] == 22


def test_experts_must_add_up() -> None:
    with pytest.raises(ConfigError, match="add up to 7"):
        from hagane.model import ModelConfig

        ModelConfig("1m", (ARM,), {"consortium": 7})
    assert make_config("1m", (ROAD, ARM)).expert_owners()[0] == "consortium"
