"""Keys stay in memory: no core dump, no look by other processes of the user, no swap where the system allows."""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True)
class Hardened:
    """What holds now for this process."""

    no_core: bool
    """No core dump is written; children inherit it."""
    not_dumpable: bool
    """Other processes of the same user cannot read its memory (root can). It ends with an exec."""
    locked: bool
    """Its memory is never written to swap; needs root or an unlimited RLIMIT_MEMLOCK."""


def harden(*, lock: bool = False) -> Hardened:
    """Do all of it that the system allows; never raises.

    While a process is not dumpable, /proc/<pid>/root, fd and mem are closed to other processes without CAP_SYS_PTRACE.

    Args:
        lock: also keep all memory, now and later, out of swap: for a small process that holds wrapping keys. A process
            without a memory limit of that kind is left alone, since its allocations would fail later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return Hardened(_no_core(), libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, lock and _lock(libc))


def _no_core() -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        return False
    return True


def _lock(libc: ctypes.CDLL) -> bool:
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited and os.geteuid() != 0:
        return False
    return int(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)) == 0
