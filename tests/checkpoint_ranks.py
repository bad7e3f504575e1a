"""Engines that hold a part of a model, cut by hand from a whole one.

What a layout must leave on each rank is written here a second time, with plain slices: an error of the engine's
placing cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from hagane.engine import Layout, Placed
from hagane.model import Generalist
from tests.model_fixture import make_model

KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")


@dataclass
class PartEngine:
    """What a checkpoint asks of an engine."""

    model: Generalist
    mesh: SimpleNamespace
    local: dict[str, Tensor]
    placed: dict[str, Placed]
    ema: dict[str, Tensor]
    state: dict[str, dict[str, Tensor]]
    step: int = 7
    seed: int = 0
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    cut: Callable[[str, Tensor], Tensor] = lambda name, t: t

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return self.state

    def resume_at(self, step: int) -> None:
        self.step = step


@cache
def values(name: str, kind: str, shape: torch.Size) -> Tensor:
    """The numbers of a whole tensor: the same on every rank, others for each table and name."""
    generator = torch.Generator().manual_seed(sum(f"{kind}/{name}".encode()) * 7919 + len(name))
    return torch.randn(shape, generator=generator)


def rows_for(owners: tuple[str, ...], ep: int) -> list[int]:
    """Expert i in row (i mod ep) * block + i // ep: neighbours on different ranks."""
    block = len(owners) // ep
    return [i % ep * block + i // ep for i in range(len(owners))]


def build(axes: Layout, filled: bool) -> PartEngine:
    """The engine of this rank (or of a process alone), with its part of `values`, or with zeros to load into."""
    model = make_model()
    rank = dist.get_rank() if dist.is_initialized() else 0
    stage = rank // (axes.dp_replicate * axes.fsdp)
    if axes.pp == 2:
        for i in range(model.config.widths.layers):
            if (i >= 2) != (stage == 1):
                del model.trunk.layers[str(i)]
        if stage == 1:
            model.tokeniser = nn.Identity()  # type: ignore[assignment]
        else:
            model.tower = nn.Identity()  # type: ignore[assignment]
    experts = len(model.config.expert_owners())
    rows = rows_for(model.config.expert_owners(), axes.ep)
    for layer in model.trunk.blocks:
        layer.moe.row_E = torch.tensor(rows)
    meshes = meshes_of(axes) if dist.is_initialized() else {}
    inside = rank % axes.fsdp

    def cut(name: str, t: Tensor) -> Tensor:
        if ".experts." in name:
            stacked = torch.empty_like(t)
            stacked[torch.tensor(rows)] = t
            block = stacked.chunk(axes.ep)[inside % axes.ep]
            return block.chunk(axes.fsdp // axes.ep, 1)[inside // axes.ep].contiguous()
        if ".attention." in name and name.endswith("weight") and axes.tp > 1:
            half = t.chunk(axes.tp, 1 if ".o." in name else 0)[inside % axes.tp]
            return pick(half, axes.fsdp // axes.tp, inside // axes.tp)
        return pick(t, axes.fsdp, inside)

    def place(name: str, shape: torch.Size) -> Placed:
        first = inside % axes.ep * (experts // axes.ep) if ".experts." in name else 0
        if ".experts." in name:
            mesh, shards, shape = "experts", {"efsdp": Shard(1)}, torch.Size((experts // axes.ep, *shape[1:]))
        elif ".attention." in name and name.endswith("weight") and axes.tp > 1:
            both = {"fsdp": Shard(0), "tp": Shard(1)}
            mesh, shards = "attention", both if ".o." in name else {
                "fsdp": _StridedShard(0, split_factor=axes.tp), "tp": Shard(0)
            }  # fmt: skip
        else:
            mesh, shards = "dense", {"fsdp": Shard(0)}
        found = meshes.get(mesh)
        if found is None:
            return Placed(None, (), shape, first)
        sizes = dict(zip(found.mesh_dim_names or (), found.shape, strict=True))
        dims = [d for d in ("dp_replicate", *shards) if sizes[d] > 1]
        if not any(d in shards for d in dims):
            return Placed(None, (), shape, first)
        return Placed(found[tuple(dims)], tuple(shards.get(d, Replicate()) for d in dims), shape, first)

    shapes = {n: p.shape for n, p in model.named_parameters()}
    whole = {kind: {n: values(n, kind, s) for n, s in shapes.items()} for kind in KINDS}
    tables = {kind: {n: cut(n, t) for n, t in state.items()} for kind, state in whole.items()}
    if not filled:
        tables = {kind: {n: torch.zeros_like(t) for n, t in state.items()} for kind, state in tables.items()}
    with torch.no_grad():
        for n, b in model.named_buffers():
            if n.startswith("normaliser") or n.endswith("bias_GE"):
                b.copy_(values(n, "buffer", b.shape) if filled else torch.zeros_like(b))
    placed = {n: place(n, s) for n, s in shapes.items()}
    state = {k: tables[k] for k in KINDS[2:]}
    return PartEngine(
        model,
        SimpleNamespace(layout=axes),
        tables["weights"],
        placed,
        tables["ema"],
        state,
        7 if filled else 0,
        0,
        whole,
        cut,
    )


@cache
def meshes_of(axes: Layout) -> dict[str, DeviceMesh]:
    """The ranks as dense, attention and expert weights see them; made once a layout, since each makes threads."""
    names = {
        "dense": {"fsdp": axes.fsdp},
        "attention": {"fsdp": axes.fsdp // axes.tp, "tp": axes.tp},
        "experts": {"efsdp": axes.fsdp // axes.ep, "ep": axes.ep},
    }
    outer = {"pp": axes.pp, "dp_replicate": axes.dp_replicate}
    whole = {name: {**outer, **inner} for name, inner in names.items()}
    return {n: init_device_mesh("cpu", tuple(a.values()), mesh_dim_names=tuple(a)) for n, a in whole.items()}


def pick(t: Tensor, ranks: int, at: int) -> Tensor:
    """What FSDP leaves of a tensor: a run of rows, shorter or empty on the last ranks."""
    rows = -(-t.shape[0] // ranks)
    return t[at * rows : (at + 1) * rows].contiguous()


def differences(engine: PartEngine) -> list[str]:
    """Tensors that are not what `values` says."""
    odd = []
    for kind, table in zip(KINDS, (engine.local, engine.ema, *engine.state.values()), strict=True):
        for n, t in engine.whole[kind].items():
            if not torch.equal(table[n], engine.cut(n, t)):
                odd.append(f"{kind}/{n}")
    for n, b in engine.model.named_buffers():
        if (n.startswith("normaliser") or n.endswith("bias_GE")) and not torch.equal(b, values(n, "buffer", b.shape)):
            odd.append(n)
    return odd


def saved_once(checkpoint: Path) -> dict[str, int]:
    """Numbers in the files of each table, chunk by chunk."""
    from safetensors.torch import load_file

    return {
        t.name: sum(x.numel() for p in t.glob("*.safetensors") for x in load_file(p).values())
        for t in checkpoint.iterdir()
        if t.is_dir()
    }
