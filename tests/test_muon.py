"""Muon: one matrix as torch's own, and any split of it as none at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from hagane.engine import Engine, Layout, StepConfig
from hagane.engine.engine import Spot
from hagane.engine.matrices import Matrix, deal, local_box
from hagane.engine.muon import MOMENTUM, Muon, matrices_of, update_scale
from hagane.engine.newton_schulz import COEFFICIENTS, ROUNDS, orthogonalise, orthogonalise_flops
from hagane.engine.placed import Placed
from hagane.model.naming import pieces
from tests.model_fixture import engine_of, make_model
from tests.rank_fixture import on_ranks

Q, UP, QKV, DOWN = (
    "trunk.layers.0.attention.q.weight",
    "trunk.layers.0.moe.experts.up",
    "tower.layers.0.qkv.weight",
    "trunk.layers.1.moe.experts.down",
)


def whole(shape: tuple[int, ...]) -> Placed:
    return Placed(None, (), torch.Size(shape), 0)


def values(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def stepped(muon: Muon, gradients: list[dict[str, Tensor]], lr: float = 0.5) -> None:
    for by_name in gradients:
        for name, p in muon.local.items():
            p.grad = by_name[name].clone()  # a step uses gradients up
        muon.step(lr)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (16, 6)])
@pytest.mark.parametrize("work", [torch.float32, torch.bfloat16])
def test_a_single_matrix_is_updated_as_by_torch(
    shape: tuple[int, int], work: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if work == torch.float32:
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)  # torch's own iterates in bf16 only
    start, gradients = values(shape, 0), [values(shape, s) for s in (1, 2, 3)]
    ours = Muon({Q: start.clone()}, {Q: whole(shape)}, 0.1, work)
    theirs = start.clone()
    optimizer = torch.optim.Muon([theirs], lr=0.5, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for g in gradients:
        stepped(ours, [{Q: g}])
        theirs.grad = g.clone()
        optimizer.step()
    tolerance = 1e-6 if work == torch.float32 else 2e-3
    assert relative(ours.local[Q], theirs) < tolerance
    assert relative(ours.momentum[Q], optimizer.state[theirs]["momentum_buffer"]) < 1e-6


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_follow_the_polynomial(shape: tuple[int, int]) -> None:
    x = values((3, *shape), 5)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(orthogonalise(x).double(), u @ torch.diag_embed(s) @ vh, atol=2e-5)
    assert torch.allclose(orthogonalise(1e-3 * x), orthogonalise(x), atol=1e-5)
    assert not orthogonalise(torch.zeros(1, *shape)).any()


def test_update_has_the_size_of_adamw() -> None:
    for rows, columns in ((64, 64), (32, 256), (300, 40)):
        update = update_scale(rows, columns) * orthogonalise(values((1, rows, columns), 0))
        assert 0.14 < float(update.square().mean().sqrt()) < 0.24


def test_flops_are_what_the_counter_sees() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        orthogonalise(values((2, 12, 30), 0))
    assert counter.get_total_flops() == 2 * orthogonalise_flops(12, 30) == 2 * orthogonalise_flops(30, 12)


def test_muon_takes_every_matrix_inside_layers_but_routers() -> None:
    shapes = {n: p.shape for n, p in make_model().named_parameters()}
    taken = {n for n, shape in shapes.items() if matrices_of(n, shape)}
    inside = {n for n, shape in shapes.items() if ".layers." in n and len(shape) > 1}
    assert taken == {n for n in inside if not n.endswith(".router")}
    assert {n for n in inside if n.endswith(".router")}
    for name in taken:
        count = torch.zeros(shapes[name])
        for m in matrices_of(name, shapes[name]):
            count[tuple(slice(*span) for span in m.box)] += 1
        assert (count == 1).all(), name


def test_experts_gates_and_values_are_matrices_of_their_own() -> None:
    shape = (2, 6, 8)
    gradient = values(shape, 1)
    a = Muon({UP: torch.zeros(shape)}, {UP: whole(shape)}, 0.0, None)
    stepped(a, [{UP: gradient}])
    gradient = gradient.clone()
    gradient[1] *= 100
    gradient[0, :, 4:] *= 100  # neither another expert's size matters, nor the other half's
    b = Muon({UP: torch.zeros(shape)}, {UP: whole(shape)}, 0.0, None)
    stepped(b, [{UP: gradient}])
    assert torch.allclose(a.local[UP], b.local[UP], atol=1e-6)


shapes_of_layers = st.lists(st.sampled_from([(8, 8), (8, 16), (16, 4), (32, 32)]), min_size=1, max_size=40)


@given(shapes_of_layers, st.integers(1, 6))
def test_matrices_are_dealt_once_and_evenly(shapes: list[tuple[int, int]], ranks: int) -> None:
    matrices = [Matrix(str(i), ((0, a), (0, b))) for i, (a, b) in enumerate(shapes)]
    rounds = deal(matrices, ranks, orthogonalise_flops)
    dealt = [[m for r in rounds for m in r[rank]] for rank in range(ranks)]
    assert sorted(m.name for queue in dealt for m in queue) == sorted(m.name for m in matrices)
    costs = [sum(orthogonalise_flops(*m.shape) for m in queue) for queue in dealt]
    dearest = max(orthogonalise_flops(*s) for s in shapes)
    assert max(costs) <= sum(costs) / ranks + dearest * (1 - 1 / ranks)  # Graham's bound


def test_a_round_holds_no_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagane.engine.matrices.ROUND_NUMBERS", 100)
    matrices = [Matrix(str(i), ((0, 8), (0, 5))) for i in range(12)] + [Matrix("large", ((0, 20), (0, 20)))]
    rounds = deal(matrices, 2, orthogonalise_flops)
    assert [sum(a * b for a, b in (m.shape for m in queue)) for queue in rounds[0]] == [400, 80]
    assert all(len(queue) <= 2 for r in rounds for queue in r) and len(rounds) > 3
    shapes = {Q: (6, 20), QKV: (30, 8)}
    gradient = {n: values(shape, 2) for n, shape in shapes.items()}

    def muon() -> Muon:
        return Muon({n: values(s, 1) for n, s in shapes.items()}, {n: whole(s) for n, s in shapes.items()}, 0, None)

    small = muon()
    stepped(small, [gradient])
    monkeypatch.undo()
    large = muon()
    stepped(large, [gradient])
    assert len(small.plans[0].rounds) > len(large.plans[0].rounds) == 1
    assert all(torch.allclose(small.local[n], large.local[n], atol=1e-6) for n in shapes)


@dataclass(frozen=True)
class Case:
    """A way to split parameters."""

    mesh: tuple[int, ...]
    names: tuple[str, ...]
    split: dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]]


TWO = (
    Case((2,), ("fsdp",), {Q: ((7, 6), (Shard(0),)), QKV: ((15, 6), (Shard(0),))}),
    Case((2,), ("efsdp",), {UP: ((3, 9, 8), (Shard(1),)), DOWN: ((3, 4, 9), (Shard(2),))}),
    Case((2,), ("dp_replicate",), {Q: ((7, 6), (Replicate(),))}),
    Case((1, 2), ("fsdp", "tp"), {Q: ((8, 6), (_StridedShard(0, split_factor=2), Shard(0)))}),
)
FOUR = (
    Case((4,), ("fsdp",), {Q: ((10, 6), (Shard(0),)), QKV: ((3, 8), (Shard(0),))}),
    Case((4,), ("efsdp",), {UP: ((3, 10, 8), (Shard(1),)), DOWN: ((6, 4, 10), (Shard(0),))}),
    Case((2, 2), ("dp_replicate", "efsdp"), {UP: ((3, 5, 8), (Replicate(), Shard(1)))}),
    Case(
        (2, 2),
        ("fsdp", "tp"),
        {
            Q: ((10, 7), (_StridedShard(0, split_factor=2), Shard(0))),
            "trunk.layers.0.attention.o.weight": ((7, 10), (Shard(0), Shard(1))),
            "tower.layers.0.ffn.up.weight": ((14, 5), (Shard(0), Replicate())),
        },
    ),
)


def part(p: Placed, tensor: Tensor) -> Tensor:
    at = [] if p.mesh is None else p.mesh.get_coordinate()
    assert at is not None
    return tensor[tuple(slice(*span) for span in local_box(p, at))].clone()


STEPS = range(1, 5)


def check_case(case: Case, mesh: DeviceMesh) -> None:
    """Three steps on the parts as on the wholes; then a step more, from the moments of the wholes."""
    placed = {n: Placed(mesh, how, torch.Size(shape), 0) for n, (shape, how) in case.split.items()}
    alone = {n: whole(tuple(p.shape)) for n, p in placed.items()}
    start = {n: values(tuple(p.shape), i) for i, (n, p) in enumerate(placed.items())}
    gradients = [
        {n: values(tuple(p.shape), 10 * s + i) for i, (n, p) in enumerate(placed.items())} for s in range(1, 5)
    ]
    split = [{n: part(placed[n], g) for n, g in by.items()} for by in gradients]
    one = Muon({n: p.clone() for n, p in start.items()}, alone, 0.1, None)
    many = Muon({n: part(placed[n], p) for n, p in start.items()}, placed, 0.1, None)
    stepped(one, gradients[:3])
    stepped(many, split[:3])
    again = Muon({n: part(placed[n], p) for n, p in one.local.items()}, placed, 0.1, None)
    for name, momentum in again.momentum.items():
        momentum.copy_(part(placed[name], one.momentum[name]))
    stepped(one, gradients[3:])
    for muon in (many, again):
        stepped(muon, split[3:])
        for name, p in placed.items():
            for a, b in ((muon.local, one.local), (muon.momentum, one.momentum)):
                assert relative(a[name], part(p, b[name])) <= 1e-5, (case, name)


def check_parts_alone_are_wrong(mesh: DeviceMesh) -> None:
    """The planted fault: each rank makes its own rows orthogonal. The comparison above would see it."""
    p, start, gradient = Placed(mesh, (Shard(0),), torch.Size((8, 6)), 0), values((8, 6), 0), values((8, 6), 1)
    one, wrong = Muon({Q: start.clone()}, {Q: whole((8, 6))}, 0, None), part(p, start)
    stepped(one, [{Q: gradient}])
    stepped(Muon({Q: wrong}, {Q: whole(tuple(wrong.shape))}, 0, None), [{Q: part(p, gradient)}])
    assert relative(wrong, part(p, one.local[Q])) > 1e-2


def check_boxes_of_torch(mesh: DeviceMesh) -> None:
    """`local_box` says what FSDP2 over tensor parallel really left on this rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 10, bias=False), nn.Linear(10, 7, bias=False))
    wholes = [p.detach().clone() for p in model.parameters()]
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["fsdp"])
    plain = distribute_tensor(wholes[0], mesh, [Shard(1), Shard(1)])
    for tensor, original in zip((*model.parameters(), plain), (*wholes, wholes[0]), strict=True):
        assert isinstance(tensor, DTensor)
        p = Placed(tensor.device_mesh, tuple(tensor.placements), tensor.shape, 0)
        assert tensor.device_mesh.ndim == 2
        assert torch.equal(tensor.to_local(), part(p, original)), tensor.placements


LAYOUTS = (
    Layout(dp_shard=2, tp=2),
    Layout(dp_shard=4, ep=2),
    Layout(dp_replicate=2, dp_shard=2, ep=2),
    Layout(dp_shard=2, cp=2),
)


def step_of(layout: Layout) -> Engine:
    """An engine after one step on the same gradients of random numbers, whatever the layout."""
    engine = engine_of(StepConfig(optimiser="muon"), layout=layout)
    for i, (name, local) in enumerate(engine.local.items()):
        spot, whole_shape = Spot.of(engine, name), WHOLE[name]
        gradient, local.grad = values(whole_shape, i), torch.zeros_like(local)
        mine = Spot(local.grad, spot.offset, spot.row_E)
        for piece in pieces(engine.model, (name,)):
            if spot.has(piece):
                source = gradient if piece.row < 0 else gradient[piece.row]
                mine.target(piece).copy_(source[mine.cut(piece)])
    engine.optimizer.step(0.5)
    return engine


Tables = dict[str, dict[str, Tensor]]


def tables_of(engine: Engine) -> Tables:
    """Weights and moments by kind and name."""
    return {"weights": engine.local, **engine.optimizer.moments()}


def check_engine(layout: Layout, one: Tables) -> None:
    """Every number of the weights and moments is that of one process."""
    many = step_of(layout)
    for kind, mine in tables_of(many).items():
        wanted = one[kind]
        for name, local in mine.items():
            spot = Spot.of(many, name)
            spot = Spot(local, spot.offset, spot.row_E)
            for piece in pieces(many.model, (name,)):
                if spot.has(piece):
                    source = wanted[name] if piece.row < 0 else wanted[name][piece.row]
                    assert relative(spot.target(piece), source[spot.cut(piece)]) <= 1e-5, (layout, piece.name)


WHOLE = {n: tuple(p.shape) for n, p in make_model().named_parameters()}


def on_a_rank(world: int, one: Tables) -> None:
    for case in TWO:
        # with four ranks: two runs of two beside each other
        both = init_device_mesh("cpu", (world // 2, *case.mesh), mesh_dim_names=("run", *case.names))
        check_case(case, both[case.names])
    if world == 4:
        for case in FOUR:
            check_case(case, init_device_mesh("cpu", case.mesh, mesh_dim_names=case.names))
        for layout in LAYOUTS:
            check_engine(layout, one)
        check_boxes_of_torch(init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp")))
    check_parts_alone_are_wrong(init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",)))


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_split_parameters_are_updated_as_whole_ones(ranks: int) -> None:
    on_ranks(ranks, on_a_rank, ranks, tables_of(step_of(Layout())))
