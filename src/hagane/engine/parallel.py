"""Parallelism, applied from outside: the model does not know of it.

One function takes a model on the meta device and a mesh, puts each axis around it, and says where this rank's part of
every parameter lies. Gradients are sums everywhere (FSDP's divide factor is 1): losses are divided by global counts
beforehand, so no group's size enters a gradient, be it of experts or of anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from hagane.engine.experts import Splits, counted_splits, share_experts, striped_rows
from hagane.engine.layout import Compute
from hagane.engine.mesh import Mesh
from hagane.engine.placed import Placed
from hagane.engine.stages import Stage, Work, cut_stages
from hagane.engine.tokens import TokenShares, share_tokens
from hagane.model import Generalist
from hagane.model.moe import MoE
from hagane.model.naming import is_stacked
from hagane.model.trunk import Trunk, TrunkLayer

Precision = Literal["fp32", "bf16"]


def parallelize(
    model: Generalist, mesh: Mesh, compute: Compute, precision: Precision, splits: Splits = counted_splits
) -> list[Stage]:
    """Put a layout around a model on the meta device; its parameters become this rank's parts.

    Returns:
        This rank's stages of the pipeline; none without one.
    """
    layout = mesh.layout
    held = held_stages(mesh, compute)
    if layout.pp > 1:
        cut_stages(model, held, layout.pp * len(held))
    shares = TokenShares(mesh)
    if layout.cp * layout.tp > 1:
        share_tokens(model.trunk, shares)
    for layer in model.trunk.blocks:
        if layout.tp > 1:
            cut_heads(layer, layout.tp)
        if layout.ep > 1:
            cut_experts(layer.moe, model.config.expert_owners(), layout.ep)
            share_experts(layer.moe.experts, mesh.group("ep"), splits)
    if compute.compile:
        compile_parts(model)
    if compute.recompute:
        recompute_layers(model.trunk)
    work = Work()
    stages = [Stage(model, i, layout.pp * len(held), work, shares) for i in held] if layout.pp > 1 else []
    if is_sharded(mesh, precision):
        shard(model, stages or [model], mesh, precision, kept=layout.pp > 1 and not compute.regather)
    return stages


def held_stages(mesh: Mesh, compute: Compute) -> tuple[int, ...]:
    """The stages of this rank: one, or one in each half of the trunk."""
    return tuple(range(mesh.at("pp"), compute.stages(mesh.layout), mesh.layout.pp))


def is_sharded(mesh: Mesh, precision: Precision) -> bool:
    """Whether FSDP is around the model; plain copies in fp32 need none."""
    return mesh.dense is not None and (mesh.layout.fsdp > 1 or precision != "fp32")


def cut_heads(layer: TrunkLayer, tp: int) -> None:
    """Keep the attention weights of this rank's heads: rows of q, k, v, columns of o."""
    a = layer.attention
    for linear, dim in ((a.q, 0), (a.k, 0), (a.v, 0), (a.o, 1)):
        shape = list(linear.weight.shape)
        shape[dim] //= tp
        linear.weight = nn.Parameter(torch.empty(shape, device="meta"))


def cut_experts(moe: MoE, owners: tuple[str, ...], ep: int) -> None:
    """Keep this rank's block of routed experts, each owner's spread over all blocks."""
    for name in ("up", "down"):
        whole = getattr(moe.experts, name)
        block = (whole.shape[0] // ep, *whole.shape[1:])
        setattr(moe.experts, name, nn.Parameter(torch.empty(block, device="meta")))
    moe.row_E.copy_(torch.tensor(striped_rows(owners, ep), device=moe.row_E.device))


def compile_parts(model: Generalist) -> None:
    """Compile what has static control flow; the experts' exchange stays outside."""
    for layer in model.trunk.blocks:
        layer.attention.core.compile()
        layer.moe.shared.compile()
    for tower_layer in model.tower.blocks:
        tower_layer.ffn.compile()


def recompute_layers(trunk: Trunk) -> None:
    """Keep only the input of each trunk layer, and compute it again in the backward."""
    for layer in trunk.blocks:
        again = partial(contexts, layer.moe)
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=again)  # type: ignore[method-assign]


@contextmanager
def uncounted(moe: MoE) -> Iterator[None]:
    """While open, a layer's expert loads are not counted: they were, in the forward."""
    moe.counting = False
    try:
        yield
    finally:
        moe.counting = True


def contexts(moe: MoE) -> tuple[Any, Any]:
    """Contexts of a layer's forward and of its recomputation."""
    return nullcontext(), uncounted(moe)


def shard(
    model: Generalist, roots: Sequence[nn.Module], mesh: Mesh, precision: Precision, *, kept: bool = False
) -> None:
    """FSDP2 around experts, layers and the rest under each root; HSDP where there are copies.

    A layer's weights are let go after every pass; or `kept` from the step's first forward to its last backward, which
    under torch's pipeline stages (they let nothing go after a backward) gathers once a step, not once a microbatch.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    dense, experts, attention = (fsdp_mesh(m, mesh) for m in (mesh.dense, mesh.experts, mesh.attention))
    names = {p: n for n, p in model.named_parameters()}

    def apply(module: Any, on: DeviceMesh) -> None:
        n = on.size(-1)
        fully_shard(
            module,
            mesh=on,
            reshard_after_forward=False if kept else None,
            mp_policy=policy,
            shard_placement_fn=lambda p: Shard(shard_dim(names[p], p, n)),
        )

    for layer in model.trunk.blocks:
        if mesh.layout.tp > 1:
            a = layer.attention
            apply([a.q, a.k, a.v, a.o], attention)
        apply(layer.moe.experts, experts)
        apply(layer, dense)
    for tower_layer in model.tower.blocks:
        apply(tower_layer, dense)
        register_fsdp_forward_method(tower_layer, "context")
    for root in roots:
        apply(root, dense)
    for module in (m for root in roots for m in root.modules()):
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def fsdp_mesh(mesh: DeviceMesh | None, whole: Mesh) -> DeviceMesh:
    """The part of a mesh that FSDP works on: one dimension, or two with copies."""
    assert mesh is not None and mesh.mesh_dim_names is not None
    axis = mesh.mesh_dim_names[2]
    return mesh["dp_replicate", axis] if whole.layout.dp_replicate > 1 else mesh[axis]


def shard_dim(name: str, p: Tensor, ranks: int) -> int:
    """The dimension that FSDP cuts: one that divides; a stacked parameter keeps its rows together if it can.

    Six experts over four ranks would overload the first by a third; their widths divide.
    """
    # q, k, v keep their rows for tp, which cuts heads; o its columns
    order = list(range(p.ndim))
    if is_stacked(name) or name.endswith(("attention.q.weight", "attention.k.weight", "attention.v.weight")):
        order = [*order[1:], 0]
    return next((d for d in order if p.shape[d] % ranks == 0), 0)


def placements(model: Generalist, mesh: Mesh) -> dict[str, Placed]:
    """Where this rank's part of every parameter lies in the whole."""
    found = {}
    for name, p in model.named_parameters():
        first = 0
        if ".moe.experts." in name:
            first = mesh.at("ep") * p.shape[0]
        if isinstance(p, DTensor):
            placed = Placed(p.device_mesh, tuple(p.placements), p.shape, first)
        else:
            placed = Placed(None, (), p.shape, first)
        found[name] = with_heads(name, placed, mesh) if mesh.layout.tp > 1 else placed
    return found


def with_heads(name: str, placed: Placed, mesh: Mesh) -> Placed:
    """The same with the tp dimension, for attention weights that tp cuts."""
    dims = {"q.weight": 0, "k.weight": 0, "v.weight": 0, "o.weight": 1}
    dim = next((d for end, d in dims.items() if name.endswith(f"attention.{end}")), None)
    if dim is None or mesh.attention is None:
        return placed
    copies = ("dp_replicate",) if mesh.layout.dp_replicate > 1 else ()
    shape = list(placed.shape)
    shape[dim] *= mesh.layout.tp
    return Placed(mesh.attention[(*copies, "fsdp", "tp")], (*placed.placements, Shard(dim)), torch.Size(shape))
