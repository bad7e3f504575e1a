"""Attempts to leave a token in the host's files: contents, names, times, attributes, locks.

Run as hostile code: `python -I files.py NAME TOKEN JSON`, stdlib and ctypes only. `data` is a folder that the jail
shows read-only, with a file `seen.bin` in it; `runs` is a folder that a run writes to.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import struct
import sys
import time
from typing import Any


def drop_tmp(token: bytes, at: dict[str, Any]) -> None:
    """A new file in /tmp."""
    _drop(f"{at['tmp']}/{at['prefix']}drop", token)


def drop_var_tmp(token: bytes, at: dict[str, Any]) -> None:
    """A new file in /var/tmp."""
    _drop(f"{at['var_tmp']}/{at['prefix']}drop", token)


def drop_home(token: bytes, at: dict[str, Any]) -> None:
    """A new file in the home folder."""
    _drop(f"{at['home']}/{at['prefix']}drop", token)


def drop_shm(token: bytes, at: dict[str, Any]) -> None:
    """A new file in /dev/shm: POSIX shared memory."""
    _drop(f"/dev/shm/{at['prefix']}drop", token)


def drop_data(token: bytes, at: dict[str, Any]) -> None:
    """A new file in the data folder, which the jail shows read-only."""
    _drop(f"{at['data']}/{at['prefix']}drop", token)


def drop_run(token: bytes, at: dict[str, Any]) -> None:
    """A file shaped like a checkpoint in the run's folder, which the jail lets a run write to."""
    head = json.dumps({"__metadata__": {"note": token.decode()}}).encode()
    _drop(f"{at['runs']}/{at['prefix']}step-000001.safetensors", struct.pack("<Q", len(head)) + head)


def drop_here(token: bytes, at: dict[str, Any]) -> None:
    """A new file in the working folder that the process was started in."""
    _drop(f"{at['prefix']}drop", token)


def append(token: bytes, at: dict[str, Any]) -> None:
    """More bytes at the end of a file of the data folder."""
    os.write(os.open(_seen(at), os.O_WRONLY | os.O_APPEND), token)


def file_name(token: bytes, at: dict[str, Any]) -> None:
    """An empty folder whose name is the token, beside the data."""
    os.mkdir(f"{at['data']}/{token.decode()}")


def hard_link(token: bytes, at: dict[str, Any]) -> None:
    """A second name for a file of the data folder: the name is the token."""
    os.link(_seen(at), f"{at['data']}/{token.decode()}")


def rename(token: bytes, at: dict[str, Any]) -> None:
    """Another name for a file of the data folder."""
    os.rename(f"{at['data']}/renamed.bin", f"{at['data']}/{token.decode()}")


def symlink(token: bytes, at: dict[str, Any]) -> None:
    """A symbolic link whose target is the token."""
    os.symlink(token.decode(), f"{at['data']}/{at['prefix']}link")


def file_time(token: bytes, at: dict[str, Any]) -> None:
    """Times of a file of the data folder, 8 bytes in its two times."""
    atime, mtime = struct.unpack(">II", bytes.fromhex(token.decode())[:8])
    os.utime(_seen(at), (atime, mtime))


def attribute(token: bytes, at: dict[str, Any]) -> None:
    """An extended attribute of a file of the data folder."""
    os.setxattr(_seen(at), "user.note", token)


def mode_bits(token: bytes, at: dict[str, Any]) -> None:
    """Permission bits of a file of the data folder: 9 bits."""
    os.chmod(_seen(at), int(token[:3], 16) & 0o777)


def record_lock(token: bytes, at: dict[str, Any]) -> None:
    """Shared locks on byte ranges of a file that may only be read: a lock a bit, seen by whoever asks the kernel."""
    fd = os.open(_seen(at), os.O_RDONLY)
    for k, byte in enumerate(bytes.fromhex(token.decode())):
        for bit in range(8):
            if byte >> bit & 1:
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 2 * (8 * k + bit))
    time.sleep(at["hold_s"])


def core_dump(token: bytes, at: dict[str, Any]) -> None:
    """A core file: the kernel writes the process's memory where the process stood."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.chdir(at["runs"])
    held = ctypes.create_string_buffer(b"core:" + token)
    ctypes.CDLL(None).abort(held)


def _drop(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(fd, data)
    os.close(fd)


def _seen(at: dict[str, Any]) -> str:
    return f"{at['data']}/seen.bin"


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
