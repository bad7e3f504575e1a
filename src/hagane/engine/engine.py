"""Engine: a model in training on one rank of a layout; all arithmetic of the optimiser is on local tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hagane.engine.config import StepConfig
from hagane.engine.experts import Splits, counted_splits
from hagane.engine.layout import Compute, Layout, check_layout
from hagane.engine.mesh import Mesh, make_mesh
from hagane.engine.optimiser import Optimiser, make_optimiser
from hagane.engine.parallel import parallelize, placements
from hagane.engine.pipeline import Pipeline
from hagane.engine.placed import Placed
from hagane.engine.ranks import world_size
from hagane.engine.stages import Stage
from hagane.model import Generalist, ModelConfig, start_pieces
from hagane.model.moe import MoE
from hagane.model.naming import Piece
from hagane.terms.ownership import BY_EXPERT


@dataclass
class Engine:
    """A model in training: weights, averaged weights, optimiser, the step it is at."""

    model: Generalist
    """The weights that learn: this rank's parts of them."""
    config: StepConfig
    """Settings."""
    seed: int
    """Seed of weights and noise."""
    mesh: Mesh
    """Ranks."""
    compute: Compute = field(default_factory=Compute)
    """How a step is carried out."""
    pipeline: Pipeline | None = None
    """This rank's stages; None without pipeline parallelism."""
    step: int = 0
    """Steps done."""
    placed: dict[str, Placed] = field(init=False)
    """Where each local tensor lies in its parameter."""
    local: dict[str, Tensor] = field(init=False)
    """Local tensors by parameter name: the same memory as the model's parameters."""
    ema: dict[str, Tensor] = field(init=False)
    """Averaged local tensors."""
    optimizer: Optimiser = field(init=False)
    """Over the local tensors."""

    def __post_init__(self) -> None:
        self.placed = placements(self.model, self.mesh)
        self.local = {n: local_of(p).detach() for n, p in self.model.named_parameters()}
        self.ema = {n: t.clone() for n, t in self.local.items()}
        self.optimizer = make_optimiser(self.config, self.local, self.placed)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(iter(self.local.values())).device

    def resume_at(self, step: int) -> None:
        """Go on as after so many steps, once weights and moments are loaded."""
        self.step = step
        self.optimizer.set_step(step)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by kind and parameter name, each split like its parameter."""
        return self.optimizer.moments()

    def drop_gradients(self) -> None:
        """Forget the last step's gradients, in the model and in the local tensors: they are as large as the weights."""
        self.model.zero_grad(set_to_none=True)
        for t in self.local.values():
            t.grad = None

    def take_gradients(self) -> list[Tensor]:
        """Give each local tensor its gradient, and return them; what no sample touched has a gradient of zero."""
        grads = []
        for name, p in self.model.named_parameters():
            grad = torch.zeros_like(self.local[name]) if p.grad is None else local_of(p.grad)
            self.local[name].grad = grad
            grads.append(grad)
        return grads


def local_of(t: Tensor) -> Tensor:
    """The local part of a DTensor; a plain tensor itself."""
    return t.to_local() if isinstance(t, DTensor) else t


def make_engine(
    shape: ModelConfig,
    config: StepConfig,
    seed: int,
    *,
    layout: Layout | None = None,
    compute: Compute | None = None,
    device: torch.device | None = None,
    given: Mapping[str, Tensor] | None = None,
    drawn: bool = True,
    splits: Splits = counted_splits,
) -> Engine:
    """An engine on one rank of a layout, its weights started from the seed.

    Args:
        shape: of the model.
        config: settings of the step.
        seed: of weights and noise.
        layout: ranks along each axis; one rank without.
        compute: how a step is carried out.
        device: where the weights live; the CPU without.
        given: whole parameters that start from these values instead.
        drawn: False leaves the weights as memory had them: for a checkpoint that is loaded over all of them.
        splits: how rows of experts find their ranks.

    Raises:
        ConfigError: the layout does not fit the size or the processes that run.
    """
    layout, compute, device = layout or Layout(), compute or Compute(), device or torch.device("cpu")
    cut = cut_model(shape, config, layout, compute, device.type, splits)
    engine = give_memory(cut, config, seed, compute, device)
    if drawn:
        start(engine, given or {})
    return engine


def cut_model(
    shape: ModelConfig, config: StepConfig, layout: Layout, compute: Compute, device_type: str, splits: Splits
) -> tuple[Generalist, Mesh, list[Stage]]:
    """What this rank holds of a model, on the meta device, with the layout around it; see `make_engine`."""
    check_layout(layout, compute, shape.widths, world_size())
    mesh = make_mesh(layout, device_type)
    with torch.device("meta"):
        model = Generalist(shape)
    return model, mesh, parallelize(model, mesh, compute, config.precision, splits)


def give_memory(
    cut: tuple[Generalist, Mesh, list[Stage]], config: StepConfig, seed: int, compute: Compute, device: torch.device
) -> Engine:
    """An engine around a cut model, its weights not yet drawn."""
    model, mesh, stages = cut
    materialise(model, device)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    pipeline = Pipeline(stages, mesh, device, dtype, stages[0].work) if stages else None
    return Engine(model, config, seed, mesh, compute, pipeline)


def materialise(model: Generalist, device: torch.device) -> None:
    """Give the parameters memory on a device; buffers keep their values."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    model.to_empty(device=device)
    for name, b in model.named_buffers():
        b.copy_(buffers[name])


@torch.no_grad()
def start(engine: Engine, given: Mapping[str, Tensor]) -> None:
    """Draw this rank's part of every piece, and begin the averages there."""
    with torch.device("meta"):
        whole = Generalist(engine.model.config)
    spots = {name: Spot.of(engine, name) for name in engine.local}
    for piece, values in start_pieces(whole, engine.seed, tuple(spots), lambda p: spots[p.stacked].has(p)):
        spot = spots[piece.stacked]
        if piece.stacked in given:
            values = given[piece.stacked] if piece.row < 0 else given[piece.stacked][piece.row]
        spot.target(piece).copy_(values[spot.cut(piece)])
    for name, t in engine.local.items():
        engine.ema[name].copy_(t)


@dataclass(frozen=True, eq=False)
class Spot:
    """A local tensor, and which numbers of the whole parameter it holds."""

    local: Tensor
    """The local tensor."""
    offset: tuple[int, ...]
    """Where it begins in the whole, rows counted in memory order."""
    row_E: Tensor | None
    """Row of each expert in memory, where rows are experts and not in order."""

    @staticmethod
    def of(engine: Engine, name: str) -> Spot:
        """The spot of a parameter."""
        placed, local = engine.placed[name], engine.local[name]
        offset = (0,) * local.ndim
        if placed.mesh is not None:
            _, offset = compute_local_shape_and_global_offset(placed.shape, placed.mesh, placed.placements)
        offset = (offset[0] + placed.first_row, *offset[1:]) if offset else offset
        if not name.endswith(BY_EXPERT[1:]):
            return Spot(local, offset, None)
        moe = engine.model.get_submodule(name.rpartition(".experts.")[0])
        assert isinstance(moe, MoE)
        return Spot(local, offset, moe.row_E)

    def row(self, piece: Piece) -> int:
        """Row of a piece in the local tensor; outside 0..rows - 1 when it is not here."""
        row = piece.row if self.row_E is None else int(self.row_E[piece.row])
        return row - self.offset[0]

    def has(self, piece: Piece) -> bool:
        """Whether any of a piece is here."""
        return self.local.numel() > 0 and (piece.row < 0 or 0 <= self.row(piece) < len(self.local))

    def target(self, piece: Piece) -> Tensor:
        """The local part of a piece."""
        return self.local if piece.row < 0 else self.local[self.row(piece)]

    def cut(self, piece: Piece) -> tuple[slice, ...]:
        """Which numbers of the whole piece that part is."""
        part = self.target(piece)
        offset = self.offset if piece.row < 0 else self.offset[1:]
        return tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
