"""Attempts to leave a token in what a kernel shares between processes: memory, queues, keys, maps, names.

Run as hostile code: `python -I shared.py NAME TOKEN JSON`, stdlib and ctypes only. Numbers: ipc.h, keyctl.h and
bpf.h of Linux.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from typing import Any

IPC_CREAT = 0o1000
SESSION_KEYRING, USER_KEYRING = -3, -4
BPF_MAP_CREATE, BPF_MAP_UPDATE, BPF_ARRAY = 0, 2, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def sysv_memory(token: bytes, at: dict[str, Any]) -> None:
    """System V shared memory under a key that both sides know."""
    where = libc.shmat(_check(libc.shmget(at["key"], 4096, IPC_CREAT | 0o600)), None, 0)
    ctypes.memmove(where, token, len(token))


def sysv_queue(token: bytes, at: dict[str, Any]) -> None:
    """A System V message queue."""
    queue = _check(libc.msgget(at["key"], IPC_CREAT | 0o600))
    _check(libc.msgsnd(queue, struct.pack("=q", 1) + token, len(token), 0o4000))


def sysv_semaphores(token: bytes, at: dict[str, Any]) -> None:
    """Values of System V semaphores: 15 bits in each."""
    data = bytes.fromhex(token.decode())
    group = _check(libc.semget(at["key"], len(data), IPC_CREAT | 0o600))
    for k, byte in enumerate(data):
        _check(libc.semctl(group, k, 16, byte))


def posix_queue(token: bytes, at: dict[str, Any]) -> None:
    """A POSIX message queue."""
    queue = _check(libc.mq_open(f"/{at['prefix']}queue".encode(), os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600, None))
    _check(libc.mq_send(queue, token, len(token), 0))


def user_keyring(token: bytes, at: dict[str, Any]) -> None:
    """A key in the kernel's keyring of the user."""
    _add_key(token, at, USER_KEYRING)


def session_keyring(token: bytes, at: dict[str, Any]) -> None:
    """A key in the session's keyring, which a child inherits."""
    _add_key(token, at, SESSION_KEYRING)


def bpf_map(token: bytes, at: dict[str, Any]) -> None:
    """A map of bpf: whoever may read maps finds it by number in every namespace."""
    name = at["prefix"].replace("-", "_").encode()[:15]
    made = struct.pack("=7I16s", BPF_ARRAY, 4, 32, 1, 0, 0, 0, name).ljust(120, b"\0")
    fd = _check(libc.syscall(_number(321, 280), BPF_MAP_CREATE, made, len(made)))
    key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(token, 32)
    update = struct.pack("=I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0).ljust(120, b"\0")
    _check(libc.syscall(_number(321, 280), BPF_MAP_UPDATE, update, len(update)))
    time.sleep(at["hold_s"])


def domain_name(token: bytes, at: dict[str, Any]) -> None:
    """The host's NIS domain name, which every process of the host may read."""
    _check(libc.setdomainname(token, len(token)))


def control_group(token: bytes, at: dict[str, Any]) -> None:
    """A control group whose name is the token."""
    os.mkdir(f"{at['cgroup']}/{token.decode()}")


def _add_key(token: bytes, at: dict[str, Any], ring: int) -> None:
    name = f"{at['prefix']}key".encode()
    _check(libc.syscall(_number(248, 217), b"user", name, token, len(token), ring))


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
