"""Attempts to show a token on what a process has from its start: its output, exit code, terminal and title.

Run as hostile code: `python -I output.py NAME TOKEN JSON`, stdlib and ctypes only.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import sys
import termios
import time
from typing import Any


def stdout(token: bytes, at: dict[str, Any]) -> None:
    """Raw text on standard output, where only whitelisted events may leave."""
    os.write(1, token + b"\n")


def stderr(token: bytes, at: dict[str, Any]) -> None:
    """Raw text on standard error."""
    os.write(2, token + b"\n")


def exit_code(token: bytes, at: dict[str, Any]) -> None:
    """The exit code: a byte a run."""
    os._exit(int(token[:2], 16))


def killed_by(token: bytes, at: dict[str, Any]) -> None:
    """The signal that ends the process: another few bits of the exit status."""
    os.kill(os.getpid(), at["deadly"][int(token[:2], 16) % len(at["deadly"])])


def terminal_text(token: bytes, at: dict[str, Any]) -> None:
    """An escape sequence to the controlling terminal: the window's title, the clipboard."""
    os.write(os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY), b"\033]0;" + token + b"\007")


def terminal_input(token: bytes, at: dict[str, Any]) -> None:
    """TIOCSTI: type into the controlling terminal as if a person did; the shell would run it."""
    fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    for byte in token + b"\n":
        fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))


def terminal_other(token: bytes, at: dict[str, Any]) -> None:
    """Text to another terminal of the host by its path."""
    os.write(os.open(at["terminal_other"], os.O_WRONLY | os.O_NOCTTY), token)


def terminal_inherited(token: bytes, at: dict[str, Any]) -> None:
    """Text on standard input, when that is a terminal: it can be written too."""
    os.write(0, token)


def kernel_log(token: bytes, at: dict[str, Any]) -> None:
    """A line in the kernel's log."""
    os.write(os.open("/dev/kmsg", os.O_WRONLY), b"<7>" + token + b"\n")


def title(token: bytes, at: dict[str, Any]) -> None:
    """The name of the process, which everybody on the host may read in /proc: 15 bytes at a time."""
    libc = ctypes.CDLL(None)
    libc.prctl(15, b"~" + token[:14], 0, 0, 0)
    time.sleep(at["hold_s"])


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
