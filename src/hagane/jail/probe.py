"""Probe: which walls this kernel gives, found by building them; never read from a version number."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hagane.jail import landlock
from hagane.jail.plan import LAYERS, Layer, Layers, Plan, system_reads
from hagane.jail.run import Jailed, start
from hagane.terms import JailError

_SECCOMP = "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or 64-bit ARM"
_WITHOUT: dict[Layer, tuple[str, str]] = {
    "userns": (
        "privileges of the host",
        "sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
        "user.max_user_namespaces above 0; or run as root",
    ),
    "mountns": ("files of the host, file drops, unix sockets by path", "Linux 5.12 or later with user namespaces on"),
    "pidns": ("reading other processes, signals, outliving the jail", "CONFIG_PID_NS; an uncovered /proc"),
    "netns": ("TCP, UDP, DNS, abstract unix sockets", "CONFIG_NET_NS"),
    "ipcns": ("System V and POSIX message queues", "CONFIG_IPC_NS, CONFIG_POSIX_MQUEUE"),
    "utsns": ("the host's name", "CONFIG_UTS_NS"),
    "cgroupns": ("names of the host's control groups", "CONFIG_CGROUPS"),
    "timens": ("nothing that is tried; clocks are shared", "CONFIG_TIME_NS (Linux 5.6)"),
    "private_tmpfs": ("file drops in the works", "CONFIG_TMPFS, Linux 5.12 or later"),
    "read_only": ("file drops in what is read", "Linux 5.12 or later (mount_setattr)"),
    "proc_masked": ("what /proc tells of the host", "Linux 5.8 or later, and a host whose own /proc is not covered"),
    "landlock": ("file drops after a mistake in the mounts", "boot with landlock in lsm= (Linux 5.13)"),
    "landlock_scope": (
        "abstract unix sockets and signals after a mistake",
        "Linux 6.12 or later with landlock in lsm=",
    ),
    "seccomp_families": ("rare address families, kernel events", _SECCOMP),
    "seccomp_vsock": ("AF_VSOCK to the hypervisor: no network namespace holds it", _SECCOMP),
    "seccomp_io_uring": ("sockets and files through io_uring", _SECCOMP),
    "seccomp_ptrace": ("memory and descriptors of neighbours inside", _SECCOMP),
    "seccomp_namespaces": ("new namespaces, and the kernel code that they open", _SECCOMP),
    "seccomp_mounts": ("mounts, file handles", _SECCOMP),
    "seccomp_kernel": ("BPF, performance events, modules, clocks", _SECCOMP),
    "seccomp_keys": ("the kernel's keyrings", _SECCOMP),
    "seccomp_tty": ("typing into a terminal by ioctl", _SECCOMP),
    "core": ("a core dump through the host's handler", "a hard limit of cores above 0: ulimit -Hc unlimited"),
    "fds": ("inherited descriptors", "Linux 5.11 or later (close_range)"),
    "caps": ("what capabilities allow", "CAP_SETPCAP, which root and owners of a user namespace have"),
}
# what must stand for a layer to be tried apart from the others
_NEEDS: dict[str, set[Layer]] = {
    "private_tmpfs": {"mountns", "pidns"},
    "read_only": {"mountns", "pidns"},
    "proc_masked": {"mountns", "pidns"},
    "mountns": {"pidns"},
    "landlock": {"no_new_privs"},
    "landlock_scope": {"no_new_privs"},
}


@dataclass(frozen=True)
class Missing:
    """A wall that could not be built here."""

    layer: Layer
    """Which."""
    why: str
    """What the kernel said."""
    passes: str
    """The kinds of attempt that it would stop."""
    remedy: str
    """What an operator does."""


@dataclass(frozen=True)
class Kernel:
    """What the running kernel gives to this user."""

    release: str
    """As `uname -r`; to be shown, nothing is concluded from it."""
    machine: str
    """As `uname -m`."""
    landlock_abi: int
    """Version of Landlock, 0 for none."""
    as_root: bool
    """Whether it was tried as root."""
    missing: tuple[Missing, ...]
    """Walls that could not be built, in the order of `LAYERS`."""

    def demand_all(self) -> None:
        """Strict mode: refuse unless every wall stands.

        Raises:
            JailError: says what is missing, which attempts would pass without it, and what an operator does.
        """
        if not self.missing:
            return
        lines = [f"{m.layer}: {m.why}; would pass: {m.passes}" for m in self.missing]
        raise JailError(
            "this host gives no whole jail:\n  " + "\n  ".join(lines),
            where=f"Linux {self.release} ({self.machine}{', root' if self.as_root else ''})",
            next_step="; ".join(dict.fromkeys(m.remedy for m in self.missing)),
        )


def probe(among: Layers | None = None) -> Kernel:
    """Build a jail with every layer; only when that fails, each layer apart, to find which ones are missing.

    Args:
        among: the layers to try; all when None.
    """
    wanted = [name for name in LAYERS if name in (among or Layers()).on]
    missing: list[Missing] = []
    if _refusal(frozenset(wanted)):
        # the walls of others need it, unless root builds them
        base: set[Layer] = set() if _refusal(frozenset({"userns"})) else {"userns"}
        for layer in wanted:
            needs = _NEEDS.get(layer, {"no_new_privs"} if layer.startswith(("seccomp", "core")) else set())
            if refusal := _refusal(frozenset({layer, *needs, *base})):
                why = refusal.what.removeprefix("no jail was made, and nothing ran: ")
                passes, remedy = _WITHOUT.get(layer, ("what it stops", "see the message"))
                # the layer may be there, and /proc alone in the way
                missing.append(Missing(layer, why, passes, refusal.next_step if why.startswith("/proc: ") else remedy))
    name = os.uname()
    return Kernel(name.release, name.machine, landlock.abi(), os.geteuid() == 0, tuple(missing))


def start_whole(
    plan: Plan,
    stdout: int,
    stderr: int,
    fill: Callable[[Path], None] | None = None,
    wire: Callable[[int], None] | None = None,
) -> Jailed:
    """As `start`; where this host lacks a wall, the error says which, and what would pass without it.

    Raises:
        JailError: as `start`, and as `Kernel.demand_all`.
    """
    try:
        return start(plan, stdout, stderr, fill, wire)
    except JailError:
        probe().demand_all()
        raise


def _refusal(layers: frozenset[Layer]) -> JailError | None:
    """Why a jail of these layers cannot be made; None when it was."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        with start(Plan(("/bin/true",), reads=system_reads(), layers=Layers(layers)), null, null) as jailed:
            jailed.wait()
    except JailError as e:
        return e
    finally:
        os.close(null)
    return None
