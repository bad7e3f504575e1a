"""Where a rank's part of a parameter lies in the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement


@dataclass(frozen=True, eq=False)
class Placed:
    """How a local tensor is part of a parameter.

    Every number of the model lives on exactly `dp_replicate` ranks; nothing else is a copy.
    """

    mesh: DeviceMesh | None
    """Ranks that share the tensor: dimensions dp_replicate (where above 1), fsdp or efsdp, and tp for attention
    weights; None when the whole tensor is here."""
    placements: tuple[Placement, ...]
    """One a mesh dimension."""
    shape: torch.Size
    """Shape over the mesh: of the whole parameter, or of this rank's block of experts."""
    first_row: int = 0
    """For routed experts: first row of the block of this rank."""

    def whole(self, local: torch.Tensor) -> torch.Tensor:
        """The local tensor as a DTensor of `shape` (or itself, when it is whole)."""
        if self.mesh is None:
            return local
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=stride)
