"""One process against many ranks: the same weights, the same batch, compared gradient by gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hagane.engine import Compute, Engine, Layout, StepConfig, evaluate_loss
from hagane.engine.engine import Spot
from hagane.engine.loads import layer_loads, moe_layers
from hagane.engine.ranks import sum_over
from hagane.engine.step import backward, global_counts, gradient_norm, microbatches, sum_gradients
from hagane.model.naming import pieces
from tests.model_fixture import engine_of, make_batch

GROUPS = ("attention", "router", "experts", "shared", "norm", "tower", "tokeniser")
SKEW = ("drawn", "skewed")


@dataclass(frozen=True)
class Reference:
    """What one process computes."""

    figures: Tensor
    norm: Tensor
    gradients: dict[str, Tensor]
    loads: Tensor
    held_out: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Largest differences of a layout from one process."""

    layout: Layout
    compute: Compute
    routing: str
    loss: float
    gradient: float
    worst: str
    groups: float
    loads: float

    def __str__(self) -> str:
        how = [k for k, v in vars(self.compute).items() if v and v != "1f1b"]
        name = f"{self.layout}" + (f" [{', '.join(how)}]" if how else "")
        cells = f"{self.loss:9.1e} {self.gradient:9.1e} {self.groups:9.1e} {self.loads:9.1e}"
        return f"{name:<58} {self.routing:<7} {cells}   {self.worst}"


HEADER = f"{'layout':<58} {'routing':<7} {'loss':>9} {'gradient':>9} {'groups':>9} {'loads':>9}   worst tensor"


def group_of(name: str) -> str:
    """The group of a parameter, for gradient norms by group."""
    return next((g for g in GROUPS if g in name), "norm")


def skew(engine: Engine, routing: str) -> None:
    """Biases that leave experts empty and crowd one: half of each gate's experts are never chosen."""
    if routing == "skewed":
        for m in moe_layers(engine.model):
            permitted = m.permitted_GE.nonzero()
            m.bias_GE[permitted[::2, 0], permitted[::2, 1]] = -5.0
            m.bias_GE[permitted[1::4, 0], permitted[1::4, 1]] = 5.0


def gradients(engine: Engine, size: int) -> tuple[Tensor, Tensor]:
    """Global loss sums and gradient norm of one batch; local gradients are in `engine.local`."""
    engine.model.train()
    micros = microbatches(engine, make_batch(0, n=size))
    counts = global_counts(engine, micros)
    engine.model.zero_grad(set_to_none=True)
    figures = backward(engine, micros, counts)
    norm = gradient_norm(engine, sum_gradients(engine))
    sum_over([figures])
    return figures, norm


def reference(routing: str, size: int, model: str = "1m") -> Reference:
    """One process."""
    engine = engine_of(size=model)
    skew(engine, routing)
    figures, norm = gradients(engine, size)
    grads = {name: t.grad.clone() for name, t in engine.local.items()}  # type: ignore[union-attr]
    loads = layer_loads(engine)
    return Reference(figures, norm, grads, loads, evaluate_loss(engine, make_batch(1, n=size)))


def compare(layout: Layout, compute: Compute, routing: str, size: int, want: Reference, model: str = "1m") -> Row:
    """This layout against the reference; every rank gets the same row."""
    engine = engine_of(StepConfig(), size=model, layout=layout, compute=compute)
    skew(engine, routing)
    figures, norm = gradients(engine, size)
    names = list(want.gradients)
    square = torch.zeros(2, len(names), dtype=torch.float64)
    by_group = torch.zeros(len(GROUPS), dtype=torch.float64)
    for name, local in engine.local.items():
        spot, grad = Spot.of(engine, name), local.grad
        assert grad is not None
        by_group[GROUPS.index(group_of(name))] += grad.double().square().sum()
        for piece in pieces(engine.model, (name,)):
            if not spot.has(piece):
                continue
            whole = want.gradients[name] if piece.row < 0 else want.gradients[name][piece.row]
            mine = grad if piece.row < 0 else grad[spot.row(piece)]
            wanted = whole[spot.cut(piece)].double()
            square[0, names.index(name)] += (mine.double() - wanted).square().sum()
            square[1, names.index(name)] += wanted.square().sum()
    # every number lives on dp_replicate ranks: the ratio needs no correction, the groups do
    sum_over([square, by_group])
    error = (square[0] / square[1].clamp_min(1e-30)).sqrt()
    groups = torch.zeros(len(GROUPS), dtype=torch.float64)
    for name, g in want.gradients.items():
        groups[GROUPS.index(group_of(name))] += g.double().square().sum()
    found = (by_group / layout.dp_replicate).sqrt()
    loss = float(((figures - want.figures) / want.figures).abs().max())
    look = evaluate_loss(engine, make_batch(1, n=size))
    loss = max(loss, *(abs(look[k] / v - 1) for k, v in want.held_out.items()))
    return Row(
        layout,
        compute,
        routing,
        max(loss, float((norm / want.norm - 1).abs())),
        float(error.max()),
        names[int(error.argmax())],
        float((found / groups.sqrt() - 1).abs().max()),
        loads_error(engine, want),
    )


def loads_error(engine: Engine, want: Reference) -> float:
    """Largest difference of expert loads, in tokens: nothing is dropped, nothing counted twice."""
    sum_over([m.load_GE for m in moe_layers(engine.model)], engine.mesh.group("stage"))
    return float((layer_loads(engine) - want.loads).abs().max())
