"""What the judge looks at in the kernel's shared objects: memory, queues, keys, maps, ports of vsock, names.

Each look returns the bytes it found, or nothing; `clear` removes what an attempt left. Numbers: ipc.h, keyctl.h, bpf.h
of Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

from hagane.jail.syscalls import call

IPC_RMID, SEM_GETVAL, MSG_NOERROR, IPC_NOWAIT = 0, 12, 0o10000, 0o4000
SESSION_KEYRING, USER_KEYRING = -3, -4
KEYCTL_JOIN, KEYCTL_LINK, KEYCTL_UNLINK, KEYCTL_SEARCH, KEYCTL_READ = 1, 8, 9, 10, 11
BPF_LOOKUP, BPF_NEXT_ID, BPF_BY_ID, BPF_INFO = 1, 12, 14, 15

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def system_v(key: int, size: int) -> bytes:
    """What lies in the memory, the queue and the semaphores under a System V key."""
    return _memory(key, size) + _queue(key) + _semaphores(key, size)


def posix_queue(name: str) -> bytes:
    """The first message of a POSIX queue."""
    queue = libc.mq_open(f"/{name}".encode(), os.O_RDWR | os.O_NONBLOCK)
    if queue < 0:
        return b""
    held = ctypes.create_string_buffer(8192)
    got = libc.mq_receive(queue, held, len(held), None)
    os.close(queue)
    return held.raw[: max(got, 0)]


def keys(name: str) -> bytes:
    """A user's key of this name in the user's or the session's keyring."""
    found = b""
    for ring in (USER_KEYRING, SESSION_KEYRING):
        with contextlib.suppress(OSError):
            key = call("keyctl", KEYCTL_SEARCH, ring, b"user", name.encode(), 0)
            held = ctypes.create_string_buffer(256)
            got = call("keyctl", KEYCTL_READ, key, held, len(held))
            found += held.raw[:got]
    return found


def own_session() -> None:
    """Have a session keyring of our own, so that nothing is left in the one we were started in.

    The user's keyring is linked into it: only keys that can be found from the session's may be read.
    """
    with contextlib.suppress(OSError):
        call("keyctl", KEYCTL_JOIN, None)
        call("keyctl", KEYCTL_LINK, USER_KEYRING, SESSION_KEYRING)


def bpf_map(name: str) -> bytes:
    """The first value of the bpf map of this name, by looking at every map of the host; needs its administrator."""
    wanted, number = name.replace("-", "_").encode()[:15], 0
    with contextlib.suppress(OSError):
        while True:
            ids = ctypes.create_string_buffer(struct.pack("=3I", number, 0, 0), 12)
            call("bpf", BPF_NEXT_ID, ids, 12)
            (number,) = struct.unpack_from("=I", ids.raw, 4)
            fd = call("bpf", BPF_BY_ID, ctypes.create_string_buffer(struct.pack("=3I", number, 0, 0), 12), 12)
            try:
                if _map_name(fd) == wanted:
                    return _map_value(fd)
            finally:
                os.close(fd)
    return b""


def vsock_ports(base: int, size: int) -> bytes:
    """The bytes that ports of AF_VSOCK spell: of each bit's two ports one is in use. Empty when they spell none."""
    out = bytearray(size)
    for k in range(8 * size):
        free = [_is_free(base + 2 * k), _is_free(base + 2 * k + 1)]
        if free[0] == free[1]:
            return b""
        out[k // 8] |= free[0] << (k % 8)
    return bytes(out)


def titles(start: str) -> bool:
    """True when a process of the host is called so: every user of the host may read that."""
    return any(start == text.rstrip("\n") for text in _each_process("comm"))


def arguments(token: bytes) -> bool:
    """True when a process of the host has the token among its arguments."""
    return any(token.decode() in text for text in _each_process("cmdline"))


def domain_name() -> bytes:
    """The host's NIS domain name."""
    return Path("/proc/sys/kernel/domainname").read_bytes()


def clear(key: int, name: str) -> None:
    """Remove the objects of one attempt."""
    for make, control in ((libc.shmget, libc.shmctl), (libc.semget, None), (libc.msgget, libc.msgctl)):
        number = make(key, 0) if make is libc.msgget else make(key, 0, 0)
        if number >= 0:
            control(number, IPC_RMID, None) if control else libc.semctl(number, 0, IPC_RMID)
    libc.mq_unlink(f"/{name}queue".encode())
    for ring in (USER_KEYRING, SESSION_KEYRING):
        with contextlib.suppress(OSError):
            call("keyctl", KEYCTL_UNLINK, call("keyctl", KEYCTL_SEARCH, ring, b"user", f"{name}key".encode(), 0), ring)


def _memory(key: int, size: int) -> bytes:
    number = libc.shmget(key, 0, 0)
    if number < 0:
        return b""
    where = libc.shmat(number, None, 0o10000)  # SHM_RDONLY
    data = ctypes.string_at(where, size)
    libc.shmdt(ctypes.c_void_p(where))
    return data


def _queue(key: int) -> bytes:
    number = libc.msgget(key, 0)
    held = ctypes.create_string_buffer(8 + 256)
    got = libc.msgrcv(number, held, 256, 0, IPC_NOWAIT | MSG_NOERROR) if number >= 0 else -1
    return held.raw[8 : 8 + max(got, 0)]


def _semaphores(key: int, size: int) -> bytes:
    number = libc.semget(key, 0, 0)
    values = [libc.semctl(number, k, SEM_GETVAL) for k in range(size // 2)] if number >= 0 else []
    return bytes(max(v, 0) & 0xFF for v in values).hex().encode()


def _map_name(fd: int) -> bytes:
    info = ctypes.create_string_buffer(64)  # struct bpf_map_info: six words, then the name
    asked = struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))
    call("bpf", BPF_INFO, ctypes.create_string_buffer(asked, len(asked)), len(asked))
    return info.raw[24:40].rstrip(b"\0")


def _map_value(fd: int) -> bytes:
    key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(64)
    asked = struct.pack("=I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0)
    call("bpf", BPF_LOOKUP, ctypes.create_string_buffer(asked, len(asked)), len(asked))
    return value.raw


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        try:
            s.bind((socket.VMADDR_CID_ANY, port))
        except OSError:
            return False
        return True


def _each_process(what: str) -> list[str]:
    texts = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                texts.append(Path(f"/proc/{name}/{what}").read_text("utf-8", "replace"))
    return texts
