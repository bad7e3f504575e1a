"""Collect: read what a jail left in its works, trusting nothing in it.

A path below `Jailed.root` must not simply be opened: a link that the jail made leads, for us, to the host's own files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hagane.jail.run import Jailed
from hagane.terms import JailError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def collect(jailed: Jailed, work: Path) -> Iterator[tuple[PurePosixPath, int]]:
    """Every file of a work: its path below the work, and a descriptor that is open until the next one is asked for.

    Call it after `wait`, when nothing inside writes any more. Names are the jail's own choice: check them.

    Raises:
        JailError: the work holds a link, a pipe, a socket or a name that is no UTF-8; what came before stays read.
    """
    top = os.open(jailed.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in work.parts[1:]:
            top, above = os.open(part, _FOLDER, dir_fd=top), top
            os.close(above)
        for folder, folders, names, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            folders.sort()
            for name in sorted([*names, *folders]):
                path = PurePosixPath(folder, name)
                kind = os.lstat(name, dir_fd=fd).st_mode
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or not _plain(name):
                    raise JailError(
                        "a jail may leave files and folders with plain names only",
                        where=repr(str(work / path)),
                        next_step="nothing of it is taken; see what the command wrote",
                    )
                if stat.S_ISREG(kind):
                    file = os.open(name, _FILE, dir_fd=fd)
                    try:
                        yield path, file
                    finally:
                        os.close(file)
    finally:
        os.close(top)


def _plain(name: str) -> bool:
    return name.isprintable() and not any("\ud800" <= c <= "\udfff" for c in name)
