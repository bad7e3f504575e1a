"""The mixture-of-experts block: grouped against the loop, every pair computed and counted, balance, loads."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from hagane.engine.parallel import contexts
from hagane.model.moe import Collect, Experts, MoE, Spread, balance, experts_loop, group_pairs

D, E, K, FFN = 16, 6, 2, 8
FREE = torch.ones(1, E, dtype=torch.bool)
OWNED = torch.tensor([[True, True, True, True, False, False], [True, False, False, False, False, True], [True] * E])


def fill(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.3)


def make_moe(permitted_GE: Tensor = OWNED, top_k: int = K, seed: int = 0) -> MoE:
    torch.manual_seed(seed)
    moe = MoE(D, E, top_k, FFN, permitted_GE.clone())
    fill(moe)
    return moe


def plain(moe: MoE, x: Tensor, gate_M: Tensor) -> Tensor:
    """The block again, one token and one expert at a time, from the definition alone."""
    rows = []
    for token, gate in zip(x, gate_M.tolist(), strict=True):
        score = torch.sigmoid(moe.router @ token)
        allowed = [e for e in range(E) if moe.permitted_GE[gate, e]]
        best = sorted(allowed, key=lambda e: -float(score[e].detach() + moe.bias_GE[gate, e]))[: moe.top_k]
        row = moe.shared(token)
        for e in best:
            a, b = (token @ moe.experts.up[e]).chunk(2)
            row = row + score[e] / sum(score[i] for i in best) * ((F.silu(a) * b) @ moe.experts.down[e])
        rows.append(row)
    return torch.stack(rows) if rows else x * 0


def gradients(out: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out, inputs, weight))


@pytest.mark.parametrize(
    "ends",
    [[5, 10, 15, 20], [0, 15, 15, 20], [0, 0, 0, 20], [20, 20, 20, 20], [0, 0, 0, 0], [1, 2, 3, 4]],
    ids=["balanced", "skewed", "last takes all", "first takes all", "no pair", "one each"],
)
def test_grouped_experts_equal_the_loop(ends: list[int]) -> None:
    torch.manual_seed(1)
    experts = Experts(4, D, FFN)
    fill(experts)
    x = torch.randn(ends[-1], D, requires_grad=True)
    at = torch.tensor(ends, dtype=torch.int32)
    a, b = experts(x, at), experts_loop(experts, x, at)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(b)
    inputs = [x, experts.up, experts.down]
    for p, q in zip(gradients(a, inputs, weight), gradients(b, inputs, weight), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("skew", [0.0, 3.0], ids=["balanced", "skewed"])
def test_the_block_is_its_definition_with_gradients(tokens: int, skew: float) -> None:
    moe = make_moe()
    moe.bias_GE[:, 0] = skew
    x = torch.randn(tokens, D, requires_grad=True)
    gate = torch.arange(tokens) % len(OWNED)
    a, b = moe(x, gate), plain(moe, x, gate)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    if tokens:
        weight, inputs = torch.randn_like(a), [x, *moe.parameters()]
        for p, q in zip(gradients(a, inputs, weight), gradients(b, inputs, weight), strict=True):
            torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-4)


def test_gradients_of_spread_and_collect_are_those_of_their_formula() -> None:
    torch.manual_seed(0)
    row_Mk = torch.randint(0, E, (7, 3))
    at = group_pairs(row_Mk, E)
    double = {"dtype": torch.float64, "requires_grad": True}
    x, out, weight = torch.randn(7, 4, **double), torch.randn(21, 4, **double), torch.rand(7, 3, **double)  # type: ignore[arg-type]
    torch.testing.assert_close(Spread.apply(x, at.pair_P, at.place_Mk), x[at.pair_P // 3])
    torch.testing.assert_close(
        Collect.apply(out, weight, at.pair_P, at.place_Mk), (out[at.place_Mk] * weight[..., None]).sum(1)
    )
    assert torch.autograd.gradcheck(lambda x: Spread.apply(x, at.pair_P, at.place_Mk), x)
    assert torch.autograd.gradcheck(lambda out, w: Collect.apply(out, w, at.pair_P, at.place_Mk), (out, weight))


def test_a_gradient_without_strides_passes_through() -> None:
    moe = make_moe()
    moe(torch.randn(9, D), torch.zeros(9, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in moe.parameters())


class Watched:
    """Experts that write down which rows of the parameters met which tokens."""

    def __init__(self, moe: MoE) -> None:
        self.inner, self.met = moe.experts.forward, []  # type: ignore[var-annotated]
        moe.experts.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        starts = [0, *ends.tolist()]
        for e in range(len(ends)):
            self.met += [(int(x[p, 0]), e) for p in range(starts[e], starts[e + 1])]
        assert starts[-1] == len(x), "rows behind the last end would be uninitialised numbers"
        return self.inner(x, ends)


@pytest.mark.parametrize("skew", [0.0, 5.0])
def test_no_token_is_dropped(skew: float) -> None:
    moe = make_moe().train()
    moe.bias_GE[:, 1] = skew
    watched = Watched(moe)
    x = torch.randn(50, D)
    x[:, 0] = torch.arange(50)  # the token's number travels in its first value
    gate = torch.arange(50) % len(OWNED)
    chosen, weight = moe.route(x, gate)
    moe(x, gate)
    wanted = sorted((m, int(e)) for m in range(50) for e in chosen[m])
    assert sorted(watched.met) == wanted, "a pair was left out or computed twice"
    assert int(moe.load_GE.sum()) == int((weight > 0).sum())
    for g in range(len(OWNED)):
        for e in range(E):
            pairs = (chosen == e) & (weight > 0) & (gate == g)[:, None]
            assert int(moe.load_GE[g, e]) == int(pairs.sum())


def test_rows_may_lie_in_any_order() -> None:
    plain_order, striped = make_moe(), make_moe()
    row_E = torch.tensor([3, 0, 5, 1, 4, 2])
    striped.row_E.copy_(row_E)
    with torch.no_grad():
        for name in ("up", "down"):
            getattr(striped.experts, name)[row_E] = getattr(plain_order.experts, name)
    x, gate = torch.randn(30, D), torch.arange(30) % len(OWNED)
    torch.testing.assert_close(striped.train()(x, gate), plain_order.train()(x, gate))
    assert torch.equal(striped.load_GE, plain_order.load_GE), "loads are by expert, not by row"


def test_weights_add_up_to_one_inside_the_gate() -> None:
    moe = make_moe()
    gate = torch.arange(60) % len(OWNED)
    chosen, weight = moe.route(torch.randn(60, D), gate)
    torch.testing.assert_close(weight.sum(1), torch.ones(60))
    assert OWNED[gate[:, None], chosen].all(), "a token reached an expert that its gate does not permit"


def test_a_gate_with_fewer_experts_than_choices_never_touches_another_owners() -> None:
    permitted = torch.tensor([[True] + [False] * (E - 1), [True] * E])
    moe = make_moe(permitted, top_k=3).train()
    with torch.no_grad():
        moe.experts.down[1:] = torch.inf
    x = torch.randn(8, D)
    out = moe(x, torch.zeros(8, dtype=torch.int64))
    assert torch.isfinite(out).all()
    assert moe.load_GE[0].tolist() == [8.0] + [0.0] * (E - 1), "spare choices are no load"


def test_balancing_evens_out_the_load_of_every_gate() -> None:
    moe = make_moe().train()
    with torch.no_grad():
        moe.router[0] += 1.0
    x, gate = torch.rand(600, D), torch.arange(600) % len(OWNED)

    def spread() -> list[float]:
        moe.load_GE.zero_()
        moe(x, gate)
        return [float(load[p].max() / load[p].mean()) for load, p in zip(moe.load_GE, OWNED, strict=True)]

    first = spread()
    for _ in range(150):
        balance(moe, 0.02)
        moe(x, gate)
    last = spread()
    assert first[0] > 1.5 and first[2] > 1.5
    assert all(s < 1.25 for s in last), last
    assert (moe.bias_GE[~OWNED] == 0).all(), "a bias moved outside its gate"


def test_loads_of_several_passes_accumulate_before_the_bias_moves() -> None:
    one, many = make_moe().train(), make_moe().train()
    x, gate = torch.randn(64, D), torch.arange(64) % len(OWNED)
    one(x, gate)
    for part in range(4):
        many(x[part::4], gate[part::4])
    assert torch.equal(one.load_GE, many.load_GE)
    balance(one, 0.1)
    balance(many, 0.1)
    assert torch.equal(one.bias_GE, many.bias_GE) and one.bias_GE.abs().max() > 0
    assert many.load_GE.sum() == 0


def test_evaluation_counts_nothing_and_a_gate_without_tokens_keeps_its_bias() -> None:
    moe = make_moe().eval()
    moe(torch.randn(8, D), torch.zeros(8, dtype=torch.int64))
    assert moe.load_GE.sum() == 0
    moe.train()(torch.randn(8, D), torch.zeros(8, dtype=torch.int64))
    balance(moe, 0.1)
    assert (moe.bias_GE[1:] == 0).all()


def test_recomputing_activations_counts_a_pass_once() -> None:
    moe = make_moe().train()
    x = torch.randn(12, D, requires_grad=True)
    gate, again = torch.zeros(12, dtype=torch.int64), partial(contexts, moe)
    out = checkpoint(moe, x, gate, use_reentrant=False, context_fn=again)
    out.sum().backward()
    assert moe.load_GE.sum() == 12 * K


@pytest.mark.slow
def test_the_block_compiles_in_one_graph() -> None:
    moe = make_moe().to(torch.bfloat16).train()  # torch describes the grouped matmul's result for bfloat16 only
    x, gate = torch.randn(24, D, dtype=torch.bfloat16), torch.arange(24) % len(OWNED)
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, gate), moe(x, gate))
    assert moe.load_GE.sum() == 2 * (24 * K), "one of the two passes was not counted"


def test_the_block_runs_on_fake_tensors() -> None:
    with torch.device("meta"):
        # torch describes the grouped matmul's result for bfloat16 only
        fake = MoE(D, E, K, FFN, OWNED).to(torch.bfloat16).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device="cpu")
        x = torch.randn(10, D, dtype=torch.bfloat16, requires_grad=True)
        out = fake(x, torch.zeros(10, dtype=torch.int64))
        out.sum().backward()
        assert out.shape == x.grad.shape == (10, D)  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.shape == p.shape for p in fake.parameters())


def test_bfloat16_stays_near_float32() -> None:
    moe = make_moe(FREE)
    half = copy.deepcopy(moe).to(torch.bfloat16)
    x = torch.randn(64, D).to(torch.bfloat16)
    gate = torch.zeros(64, dtype=torch.int64)
    # the same choices on both sides: near ties may fall either way
    same = (moe.route(x.float(), gate)[0].sort(1).values == half.route(x, gate)[0].sort(1).values).all(1)
    a, b = half(x, gate)[same].float().detach(), moe(x.float(), gate)[same].detach()
    assert same.sum() > 50 and float((a - b).norm() / b.norm()) < 2e-2
