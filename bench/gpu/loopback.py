"""Ranks that do not exist: every collective is answered from this rank's own tensors, on its device, at once.

So one GPU runs one rank's real slice of a step over hundreds: gathers fill real memory with real numbers (this rank's
shard over and over), exchanges hand back rows, messages from a neighbour stage are noise of unit size. Time through
links is not in it, and what is learnt is nonsense: for memory and arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

LITTLE = 1e-3
"""Size of the noise that comes from a neighbour stage's backward; of its forward it is as good."""


class Loopback(dist.ProcessGroup):
    """A group of which only this rank is there. Methods have the names of torch 2.13 and those of before."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks)
        self._rank, self._ranks = rank, ranks

    def size(self) -> int:
        return self._ranks

    def rank(self) -> int:
        return self._rank

    def getBackendName(self) -> str:
        return "loopback"

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def pg_name(self) -> str:
        return self.group_name

    def all_gather_single(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        rows = output.view(self._ranks, -1)
        if rows[self._rank].data_ptr() != own.data_ptr():
            rows[self._rank].copy_(own.reshape(-1))
        # FSDP2 gathers out of a part of the output itself
        rows.copy_(rows[self._rank].clone().expand_as(rows))
        return finished(output)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> dist.Work:
        output.copy_(whole.view(self._ranks, -1)[self._rank].view_as(output))
        return finished(output)

    def all_to_all_single(
        self, output: Tensor, given: Tensor, output_splits: list[int], given_splits: list[int], opts: Any = None
    ) -> dist.Work:
        n = min(len(given), len(output))
        output[:n].copy_(given[:n])
        if n < len(output):
            # more comes than went: the same rows again
            output[n:].copy_(given[torch.arange(len(output) - n, device=given.device) % max(n, 1)])
        return finished(output)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        return finished(tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        return finished(tensors)

    def send(self, tensors: list[Tensor], rank: int, tag: int = 0) -> dist.Work:
        return finished(tensors)

    @torch.no_grad()
    def recv(self, tensors: list[Tensor], rank: int, tag: int = 0) -> dist.Work:
        for t in tensors:
            # whole numbers are votes of torch's pipeline: shapes are known
            t.normal_(std=LITTLE) if t.is_floating_point() else t.fill_(1)
        return finished(tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        return finished(None)

    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single


def finished(result: Any) -> dist.Work:
    """Work that is done."""
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)


@contextmanager
def loopback(rank: int, ranks: int) -> Iterator[None]:
    """This process is one of so many ranks, alone."""
    if "loopback" not in dist.Backend.backend_list:
        make = lambda store, rank, ranks, timeout: Loopback(rank, ranks)  # noqa: E731
        dist.Backend.register_backend("loopback", make, devices=["cpu", "cuda"])
    dist.init_process_group("loopback", rank=rank, world_size=ranks, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
