"""This process among the others: its share, its sums, its device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from hagane.terms import Batch, ConfigError, Observation, Part, Window


def world_size() -> int:
    """Ranks in all; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch: Batch, number: int, ranks: int) -> Batch:
    """One of `ranks` shares: every ranks-th sample of each part; a batch that is a share already stays whole."""
    if batch.ranks > 1 or ranks == 1:
        return batch
    pick = slice(number, None, ranks)
    return Batch(batch.step, tuple(part_slice(p, pick) for p in batch.parts), number, ranks)


def part_slice(part: Part, pick: slice) -> Part:
    """Some of a part's samples."""
    o = part.observation
    cut = Observation(o.embodiment, o.time_ns[pick], {k: _cut(w, pick) for k, w in o.channels.items()}, o.tasks[pick])
    following = {k: _cut(w, pick) for k, w in part.next.items()}
    return Part(cut, part.actions_NHA[pick], part.action_valid_NH[pick], following, part.sample_ids_N[pick])


def _cut(window: Window, pick: slice) -> Window:
    return Window(window.values[pick], window.valid[pick], window.age_s[pick])


def sum_over(tensors: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Add tensors up over the ranks of a group (None: all), in place, in one message a dtype."""
    if not dist.is_initialized():
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    for same in groups.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat, group=group)
        for t, piece in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            t.copy_(piece.view_as(t))


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
