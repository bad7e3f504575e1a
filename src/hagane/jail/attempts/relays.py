"""Attempts to hand a token to a program outside: by a named socket or pipe, or by a descriptor left open at start.

Run as hostile code: `python -I relays.py NAME TOKEN JSON`, stdlib only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any


def unix_path(token: bytes, at: dict[str, Any]) -> None:
    """A relay's unix socket by its path in /tmp."""
    _unix(at["unix_path"], token)


def unix_run(token: bytes, at: dict[str, Any]) -> None:
    """A relay's unix socket in /run, where a host's services listen."""
    _unix(at["unix_run"], token)


def unix_abstract(token: bytes, at: dict[str, Any]) -> None:
    """A relay's unix socket in the abstract namespace: no path, so no rule of paths."""
    _unix("\0" + at["unix_abstract"], token)


def unix_datagram(token: bytes, at: dict[str, Any]) -> None:
    """One datagram to a log socket by its path."""
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(token, at["unix_datagram"])


def fifo(token: bytes, at: dict[str, Any]) -> None:
    """A named pipe in /tmp that somebody reads."""
    os.write(os.open(at["fifo"], os.O_WRONLY | os.O_NONBLOCK), token)


def inherited_pipe(token: bytes, at: dict[str, Any]) -> None:
    """A pipe that was open when the process started."""
    os.write(at["inherited_pipe"], token)


def inherited_socket(token: bytes, at: dict[str, Any]) -> None:
    """A connected socket that was open when the process started."""
    os.write(at["inherited_socket"], token)


def inherited_file(token: bytes, at: dict[str, Any]) -> None:
    """A file that was open for writing when the process started."""
    os.write(at["inherited_file"], token)


def inherited_folder(token: bytes, at: dict[str, Any]) -> None:
    """A new file below a folder that was open when the process started."""
    os.write(os.open("dropped", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at["inherited_folder"]), token)


def inherited_anyhow(token: bytes, at: dict[str, Any]) -> None:
    """Every open descriptor but 0, 1 and 2, whatever it is."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.write(int(name), token)
            except OSError:
                continue  # the next may do


def _unix(address: str, token: bytes) -> None:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(2.0)
    s.connect(address)
    s.sendall(token)
    s.close()


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
