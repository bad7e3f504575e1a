"""Parallelism, applied from outside: the model does not know of it.

Today: data parallel over processes (each rank takes its share of every part; gradients, loss sums and expert
loads are summed). Losses are divided by global counts, so the result does not depend on the number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hagane.terms import Batch, ConfigError, Observation, Part, Window


@dataclass(frozen=True)
class Layout:
    """How many ranks along each axis of the mesh."""

    dp_replicate: int = 1
    """Ranks with a whole copy of the weights, each with its share of the samples."""

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.dp_replicate


def check_layout(layout: Layout) -> None:
    """Compare the layout with the processes that run.

    Raises:
        ConfigError: the world has another size.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if layout.ranks != world:
        raise ConfigError(
            f"the layout needs {layout.ranks} ranks, {world} are running",
            next_step=f"start with --nproc {layout.ranks} or torchrun, or set dp_replicate = {world}",
        )


def join_ranks(number: int, ranks: int, port: int) -> None:
    """Make this process one of several on this machine; each takes its share of the cores.

    Two ranks of one thread take about twice the steps of one rank of two threads at the small sizes.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    backend = dist.get_default_backend_for_device(device_for("auto"))
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=ranks)


def leave_ranks() -> None:
    """Part from the other ranks, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Ranks in all; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch: Batch) -> Batch:
    """This rank's samples: every world-size-th of each part; a batch that is a rank's share already stays whole."""
    if batch.ranks > 1 or not dist.is_initialized():
        return batch
    pick = slice(dist.get_rank(), None, dist.get_world_size())
    parts = tuple(part_slice(p, pick) for p in batch.parts)
    return Batch(batch.step, parts, dist.get_rank(), dist.get_world_size())


def part_slice(part: Part, pick: slice) -> Part:
    """Some of a part's samples."""
    o = part.observation
    cut = Observation(o.embodiment, o.time_ns[pick], {k: _cut(w, pick) for k, w in o.channels.items()}, o.tasks[pick])
    following = {k: _cut(w, pick) for k, w in part.next.items()}
    return Part(cut, part.actions_NHA[pick], part.action_valid_NH[pick], following, part.sample_ids_N[pick])


def _cut(window: Window, pick: slice) -> Window:
    return Window(window.values[pick], window.valid[pick], window.age_s[pick])


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Add tensors up over all ranks, in place, in one message a dtype."""
    if not dist.is_initialized():
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    for same in groups.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat)
        for t, piece in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            t.copy_(piece.view_as(t))


def sum_gradients(model: nn.Module) -> None:
    """Add every gradient up over all ranks; a parameter that a rank did not touch counts as zero there."""
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    sum_over_ranks([p.grad for p in model.parameters() if p.grad is not None])


def device_for(name: str) -> torch.device:
    """The device of this process: "auto" takes the accelerator that torch finds, else the CPU.

    The only place that chooses a device; another kind of accelerator is one torch backend away.

    Raises:
        ConfigError: the named device is not there.
    """
    if name == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    if found is None or found.type != name.split(":")[0]:
        raise ConfigError(f"no device {name!r} here", next_step='use device = "auto" or "cpu"')
    return torch.device(name)
