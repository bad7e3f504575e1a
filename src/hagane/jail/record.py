"""The jail's record: which walls stood around a run. The ledger keeps it, and peers show it to each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hagane.jail import landlock
from hagane.jail.plan import LAYERS, Layer, Plan
from hagane.jail.run import Jailed
from hagane.terms import digest_value

Swap = Literal["forbidden", "none", "possible"]


@dataclass(frozen=True)
class JailRecord:
    """What was enforced. It is the word of the host that wrote it: whoever signs it vouches for it."""

    layers: tuple[Layer, ...]
    """Walls that stood, in the order of `LAYERS`."""
    taken_away: tuple[Layer, ...]
    """Walls that did not: empty outside of trials."""
    kernel: str
    """Release and machine."""
    landlock_abi: int
    """Version of Landlock, 0 for none."""
    as_root: bool
    """Whether root of the host made it."""
    swap: Swap
    """Whether the work area can reach a disk: "forbidden" by the mount, "none" on this host now, or "possible"."""
    reads: tuple[tuple[str, str], ...]
    """(source, target) of what was bound read-only."""
    works: tuple[str, ...]
    """Private folders."""
    sockets: tuple[tuple[str, str], ...]
    """(source, target) of sockets that could be connected to."""
    size_bytes: int
    """Limit of the work area."""
    peers: tuple[str, ...]
    """Addresses of jails on other nodes that it reaches by TCP; none: its network is its own loopback."""
    command: tuple[str, ...]
    """Program and arguments."""

    @property
    def digest(self) -> str:
        """sha256 of the record's canonical JSON: equal walls and binds have equal digests."""
        return digest_value(self)


def record_of(plan: Plan, jailed: Jailed | Path, peers: tuple[str, ...] = ()) -> JailRecord:
    """The record of a jail that was started from a plan and is not released yet.

    Args:
        plan: what it was started from.
        jailed: the jail, or its root as `start` hands it to `fill`.
        peers: addresses that its wire leads to.
    """
    root = jailed if isinstance(jailed, Path) else jailed.root
    name = os.uname()
    return JailRecord(
        layers=tuple(n for n in LAYERS if n in plan.layers.on),
        taken_away=tuple(n for n in LAYERS if n not in plan.layers.on),
        kernel=f"{name.release} {name.machine}",
        landlock_abi=landlock.abi(),
        as_root=os.geteuid() == 0,
        swap=_swap(root.parent),
        reads=tuple((str(b.source), str(b.target)) for b in plan.reads),
        works=tuple(str(w) for w in plan.works),
        sockets=tuple((str(b.source), str(b.target)) for b in plan.sockets),
        size_bytes=plan.size_bytes,
        peers=peers,
        command=plan.command,
    )


def _swap(init: Path) -> Swap:
    """Read from the mounts of the init itself, where the kernel says what it holds."""
    for line in (init / "mountinfo").read_text("utf-8").splitlines():
        fields = line.split()
        if fields[4] == "/tmp" and fields[-3] == "tmpfs" and "noswap" in fields[-1].split(","):
            return "forbidden"
    return "possible" if len(Path("/proc/swaps").read_text("utf-8").splitlines()) > 1 else "none"
