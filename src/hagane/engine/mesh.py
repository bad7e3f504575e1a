"""Mesh: the ranks of a layout, and the groups of them that talk to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hagane.engine.layout import Layout


@dataclass(frozen=True, eq=False)
class Mesh:
    """One set of ranks, factored in four ways; each is None in a process that is alone."""

    layout: Layout
    """Ranks along each axis."""
    rank: int
    """This process."""
    tokens: DeviceMesh | None
    """pp, dp_replicate, dp_shard, cp, tp: who has which samples, tokens and heads."""
    dense: DeviceMesh | None
    """pp, dp_replicate, fsdp: who shares all weights but those of attention (with tp) and of experts."""
    attention: DeviceMesh | None
    """pp, dp_replicate, fsdp (= dp_shard * cp), tp: who shares the weights of attention."""
    experts: DeviceMesh | None
    """pp, dp_replicate, efsdp, ep: who shares the routed experts."""
    stage: DeviceMesh | None
    """pp, stage: ranks that hold the same layers."""

    def at(self, axis: str) -> int:
        """This rank's place along an axis of the layout, or along fsdp, efsdp or ep."""
        order = {
            "tp": (1, self.layout.tp),
            "cp": (self.layout.tp, self.layout.cp),
            "dp_shard": (self.layout.tp * self.layout.cp, self.layout.dp_shard),
            "dp_replicate": (self.layout.fsdp, self.layout.dp_replicate),
            "pp": (self.layout.fsdp * self.layout.dp_replicate, self.layout.pp),
            "ep": (1, self.layout.ep),
            "efsdp": (self.layout.ep, self.layout.efsdp),
            "fsdp": (1, self.layout.fsdp),
        }
        stride, size = order[axis]
        return self.rank // stride % size

    @property
    def data_rank(self) -> int:
        """Which share of the samples is this rank's; cp, tp and pp ranks have the same."""
        return self.at("dp_replicate") * self.layout.dp_shard + self.at("dp_shard")

    @property
    def peers(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same layers; None for a process that is alone."""
        return None if self.stage is None else self.stage.get_group("stage")

    def group(self, axis: str) -> dist.ProcessGroup:
        """The process group along an axis: of the layout, or "ep", "efsdp", "fsdp" or "stage"."""
        meshes = {"ep": self.experts, "efsdp": self.experts, "fsdp": self.dense, "stage": self.stage}
        mesh = meshes.get(axis, self.tokens)
        assert mesh is not None, "a process that is alone has no groups"
        return mesh.get_group(axis)


def make_mesh(layout: Layout, device_type: str = "cpu") -> Mesh:
    """The mesh of a layout over all ranks of the process group; all ranks call it."""
    if not dist.is_initialized():
        return Mesh(layout, 0, None, None, None, None, None)
    lo = layout

    def factored(**axes: int) -> DeviceMesh:
        return init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))

    outer = {"pp": lo.pp, "dp_replicate": lo.dp_replicate}
    return Mesh(
        layout,
        dist.get_rank(),
        tokens=factored(**outer, dp_shard=lo.dp_shard, cp=lo.cp, tp=lo.tp),
        dense=factored(**outer, fsdp=lo.fsdp),
        attention=factored(**outer, fsdp=lo.dp_shard * lo.cp, tp=lo.tp),
        experts=factored(**outer, efsdp=lo.efsdp, ep=lo.ep),
        stage=factored(pp=lo.pp, stage=lo.dp_replicate * lo.fsdp),
    )
