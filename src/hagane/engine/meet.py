"""Where ranks meet: a seat from the environment (torchrun's names), agreement, then the process group.

torchrun sets the environment on every machine; `spawn.run_ranks` sets the same for processes of this machine. There is
one way to join, and it is torch's own `env://`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hagane.engine.agree import agree
from hagane.terms import ConfigError, TrainingError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a rank must be told."""


class LostRank(TrainingError):
    """The connection to another rank broke; the other one's end is the cause."""


@dataclass(frozen=True)
class Seat:
    """This process among the others, as its environment says."""

    rank: int
    """0 .. ranks - 1."""
    ranks: int
    """In all."""
    local_rank: int
    """On this machine: the index of its device."""
    local_ranks: int
    """On this machine, in all."""
    attempt: int
    """How often the ranks were started again (torchrun --max-restarts)."""
    address: str
    """host:port where the ranks meet."""


def seat_from_env(env: Mapping[str, str] = os.environ) -> Seat | None:
    """The seat that torchrun, or whoever starts ranks, gave to this process; None for a process that is alone.

    Raises:
        ConfigError: half of it is missing, or it contradicts itself.
    """
    if "RANK" not in env:
        return None
    advice = "start ranks with torchrun, or drop RANK from the environment for one process"
    if missing := [name for name in NAMES if not env.get(name)]:
        raise ConfigError(f"RANK is set, {', '.join(missing)} is not", where="environment", next_step=advice)
    try:
        rank, ranks = int(env["RANK"]), int(env["WORLD_SIZE"])
        local, beside = int(env.get("LOCAL_RANK", "0")), int(env.get("LOCAL_WORLD_SIZE", "1"))
        attempt, port = int(env.get("TORCHELASTIC_RESTART_COUNT", "0")), int(env["MASTER_PORT"])
    except ValueError as e:
        raise ConfigError(f"a rank's environment holds no number: {e}", where="environment", next_step=advice) from None
    if not (0 <= rank < ranks and 0 <= local < beside and 0 < port < 1 << 16):
        what = f"rank {rank} of {ranks}, local rank {local} of {beside}, port {port} cannot be"
        raise ConfigError(what, where="environment", next_step=advice)
    return Seat(rank, ranks, local, beside, attempt, f"{env['MASTER_ADDR']}:{port}")


def meet(seat: Seat, device: torch.device, facts: Mapping[str, str], wait_s: float, deadline_s: float) -> Store:
    """Join the other ranks, once all have stated the same facts; returns a store for what they tell each other.

    Args:
        seat: this process's.
        device: kind of device, whose index is the seat's local rank.
        facts: what must not differ, by name.
        wait_s: seconds in which every rank must have come.
        deadline_s: seconds after which a collective fails by itself, in case that no watchdog ends it before.

    Raises:
        TrainingError: ranks differ, or did not come; the same message on each.
        ConfigError: the machine has fewer devices than ranks.
    """
    # two ranks of one thread take about twice the steps of one rank of two threads at the small sizes
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // seat.local_ranks))
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=wait_s))))
    except DistError as e:
        raise TrainingError(
            f"rank {seat.rank} cannot reach the other ranks: {str(e).splitlines()[0]}",
            where=seat.address,
            next_step="rank 0's machine must be up, and its port open to the others",
        ) from None
    ours = PrefixStore(f"hagane/{seat.attempt}", store)
    agree(ours, seat.rank, seat.ranks, "machines", {**facts, "world size": str(seat.ranks)}, wait_s=wait_s)
    if device.type != "cpu":
        _take_device(device, seat)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(
        # checkpoints and counts speak over gloo, from the host's memory
        backend if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend}",
        store=PrefixStore("ranks", ours),
        rank=seat.rank,
        world_size=seat.ranks,
        timeout=timedelta(seconds=deadline_s),
    )
    return ours


@contextmanager
def lost_rank(seat: Seat) -> Iterator[None]:
    """Turn torch's own errors about a connection that broke into one message.

    Raises:
        LostRank: this rank's connection to another broke.
    """
    try:
        yield
    except RuntimeError as e:
        # gloo has no error class of its own
        if not isinstance(e, DistError) and "gloo/transport" not in str(e):
            raise
        raise LostRank(
            f"rank {seat.rank} lost its connection to another rank, which ended or is out of reach",
            next_step="look for the rank that ended first; the run goes on with `--resume`",
        ) from None


def _take_device(device: torch.device, seat: Seat) -> None:
    count = torch.accelerator.device_count()
    if seat.local_rank >= count:
        raise ConfigError(
            f"this machine has {count} {device.type} devices, rank {seat.rank} would be number {seat.local_rank + 1}",
            next_step=f"start at most {count} ranks on each such machine",
        )
    torch.accelerator.set_device_index(seat.local_rank)
