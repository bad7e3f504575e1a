"""Where ranks meet: a seat from the environment (torchrun's names), a store, then the process group.

torchrun sets the environment on every machine; `spawn.run_ranks` sets the same for processes of this machine. There is
one way to join, and it is torch's own `env://`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hagane.terms import ConfigError, TrainingError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a rank must be told."""


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


def reach(seat: Seat, wait_s: float) -> Store:
    """The store where this start's ranks meet.

    Raises:
        TrainingError: nobody answers there.
    """
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=wait_s))))
    except DistError as e:
        raise TrainingError(
            f"rank {seat.rank} cannot reach the other ranks: {str(e).splitlines()[0]}",
            where=seat.address,
            next_step="rank 0's machine must be up, and its port open to the others",
        ) from None
    # what an attempt before left there is not read
    return PrefixStore(f"hagane/{seat.attempt}", store)


def join_ranks(seat: Seat, store: Store, device: torch.device, deadline_s: float) -> None:
    """Form the process group of all ranks; each takes its device, and its share of the cores if nobody dealt them.

    Args:
        seat: this process's.
        store: of `reach`.
        device: the kind of it; the index is the seat's local rank.
        deadline_s: seconds after which a collective fails by itself, in case that no watchdog ends it before.

    Raises:
        ConfigError: the machine has fewer devices than ranks.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # two ranks of one thread take about twice the steps of one rank of two threads at the small sizes
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // seat.local_ranks))
    if device.type != "cpu":
        _take_device(device, seat)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(
        # checkpoints and counts speak over gloo, from the host's memory
        backend if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend}",
        store=PrefixStore("ranks", store),
        rank=seat.rank,
        world_size=seat.ranks,
        timeout=timedelta(seconds=deadline_s),
    )


def _take_device(device: torch.device, seat: Seat) -> None:
    count = torch.accelerator.device_count()
    if seat.local_rank >= count:
        raise ConfigError(
            f"this machine has {count} {device.type} devices, rank {seat.rank} would be number {seat.local_rank + 1}",
            next_step=f"start at most {count} ranks on each such machine",
        )
    torch.accelerator.set_device_index(seat.local_rank)
