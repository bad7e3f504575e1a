"""Namespaces: what the jail sees of users, processes, network, IPC, names, control groups and clocks is its own."""

from __future__ import annotations

import _socket  # the C part alone: half of the start's imports otherwise
import os
import struct
from fcntl import ioctl

from hagane.jail.syscalls import call

# include/uapi/linux/sched.h
FLAGS = {
    "timens": 0x80,
    "mountns": 0x20000,
    "cgroupns": 0x2000000,
    "utsns": 0x4000000,
    "ipcns": 0x8000000,
    "userns": 0x10000000,
    "pidns": 0x20000000,
    "netns": 0x40000000,
}
"""Flag of unshare(2) by the layer it makes."""
INSIDE_ID = 1000
"""User and group inside a user namespace: no root there either, whoever started it."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def new_user() -> None:
    """Enter a new user namespace in which we, whoever we are outside, are `INSIDE_ID` with all capabilities.

    One line each maps our own user and group alone, which needs no privilege once setgroups is denied
    (user_namespaces(7)). The process must have one thread.

    Raises:
        OSError: user namespaces are off (EPERM, ENOSPC), or the process has threads (EINVAL).
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _may_set_groups():
        os.setgroups([])  # groups of the host's root still count inside; others may not drop theirs
    call("unshare", FLAGS["userns"])
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INSIDE_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{INSIDE_ID} {gid} 1")


def enter(layer: str) -> None:
    """Leave the namespace of a layer for a new one; "pidns" and "timens" take effect in children.

    Raises:
        OSError: the kernel has no such namespace or does not allow it.
    """
    call("unshare", FLAGS[layer])


def loopback_up() -> None:
    """Bring up `lo`, the only device of a new network namespace; 127.0.0.1 and ::1 then work.

    Raises:
        OSError: not the owner of the network namespace.
    """
    s = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    name = b"lo".ljust(16, b"\0")
    (flags,) = struct.unpack_from("H", ioctl(s.fileno(), _SIOCGIFFLAGS, name + bytes(24)), 16)
    ioctl(s.fileno(), _SIOCSIFFLAGS, name + struct.pack("H22x", flags | _IFF_UP))
    s.close()


def _may_set_groups() -> bool:
    """False for the root of an outer user namespace that was made without privilege, which has no groups to drop."""
    with open("/proc/self/setgroups", "rb") as f:
        return f.read().strip() == b"allow"


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
