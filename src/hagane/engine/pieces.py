"""What of each tensor on disk this rank holds, on any layout; and which rank writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hagane.engine.engine import Engine, Spot
from hagane.model.chunks import Chunk
from hagane.model.naming import pieces
from hagane.model.weights import saved_buffers

Table = dict[str, Tensor]
"""Local tensors by the name of a parameter or buffer."""


@dataclass(frozen=True)
class Part:
    """The box of a tensor on disk that lies in a local tensor."""

    name: str
    """Name on disk."""
    owner: str
    """Member whose files it goes to."""
    stacked: str
    """Name of the parameter or buffer in memory."""
    index: int
    """Row of the local tensor; -1 for all of it."""
    offset: tuple[int, ...]
    """Where the box begins in the tensor on disk."""
    shape: tuple[int, ...]
    """Shape of the tensor on disk."""

    def chunk(self, local: Tensor, prefix: str = "") -> Chunk:
        """The box as a view of a local tensor."""
        return Chunk(prefix + self.name, local if self.index < 0 else local[self.index], self.offset, self.shape)


def tables(engine: Engine) -> dict[str, Table]:
    """Everything that a checkpoint holds: local tensors by table and name, moments by kind."""
    return {
        "weights": dict(engine.local),
        "served": {**engine.ema, **saved_buffers(engine.model)},
        **{f"moments/{kind}": dict(state) for kind, state in engine.moments().items()},
    }


def parts_here(engine: Engine) -> list[Part]:
    """This rank's parts of all parameters and buffers; a rank without a number of a tensor has no part of it."""
    out = []
    for name, buffer in saved_buffers(engine.model).items():
        for piece in pieces(engine.model, (name,)):
            shape = buffer.shape[1:] if piece.row >= 0 else buffer.shape
            out.append(Part(piece.name, piece.owner, name, piece.row, (0,) * len(shape), tuple(shape)))
    for name, placed in engine.placed.items():
        spot = Spot.of(engine, name)
        for piece in pieces(engine.model, (name,)):
            if spot.has(piece):
                # rows of one block of experts have the shape of all rows
                index, rest = (spot.row(piece), 1) if piece.row >= 0 else (-1, 0)
                where, shape = spot.offset[rest:], placed.shape[rest:]
                out.append(Part(piece.name, piece.owner, name, index, where, tuple(shape)))
    return out


def chunks_by_owner(parts: Iterable[Part], table: Mapping[str, Tensor], prefix: str = "") -> dict[str, list[Chunk]]:
    """Chunks of a table, those of one owner together; parts of other tensors are left out."""
    out: dict[str, list[Chunk]] = {}
    for part in parts:
        if part.stacked in table:
            out.setdefault(part.owner, []).append(part.chunk(table[part.stacked], prefix))
    return out


def share_out(parts: list[Part], group: dist.ProcessGroup | None) -> list[Part]:
    """The parts that this rank writes: of the ranks that hold the same box, one, and each its share of them.

    All ranks of the group call it, once a run: 8 bytes a part travel. `group` None is a process alone.
    """
    if group is None:
        return parts
    mine = np.array([_key(p) for p in parts], np.uint64)
    every: list[np.ndarray] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(every, mine, group=group)
    flat = np.concatenate(every)
    rank = np.repeat(np.arange(len(every)), [len(keys) for keys in every])
    order = flat.argsort(kind="stable")
    first, last = (np.searchsorted(flat[order], mine, side) for side in ("left", "right"))
    writer = rank[order[first + (mine % (last - first).astype(np.uint64)).astype(np.int64)]]
    return [p for p, r in zip(parts, writer.tolist(), strict=True) if r == dist.get_rank(group)]


def _key(part: Part) -> int:
    text = f"{part.name}@{part.offset}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Stage:
    """Copies of tables in the host's memory, in buffers that are used again: training goes on while they are written.

    Costs as much host memory as the rank's own part of the checkpoint.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Table] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Table], names: set[str]) -> dict[str, Table]:
        """Copies of the tensors of those names; they are as they were when this returns, whatever training does."""
        accelerator = False
        for table, tensors in state.items():
            kept = self.buffers.setdefault(table, {})
            for name in names & tensors.keys():
                local = tensors[name]
                accelerator |= local.device.type != "cpu"
                if name not in kept:
                    kept[name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
                kept[name].copy_(local, non_blocking=True)
        if accelerator:
            torch.accelerator.synchronize()
        return self.buffers
