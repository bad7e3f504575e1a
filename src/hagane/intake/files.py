"""Reading and writing whole files: clear messages, and nothing half written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hagane.terms import LogError
from hagane.terms.files import write_whole


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        LogError: it is missing, unreadable or empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LogError("no such file", where=str(path), next_step="check the path") from None
    except OSError as e:
        raise LogError(f"cannot be read: {e.strerror}", where=str(path), next_step="check the file") from None
    if not data:
        raise LogError("the file is empty", where=str(path), next_step="copy it again from the machine")
    return data


def refuse_unreadable(path: Path) -> None:
    """Refuse a file that nobody may open.

    Raises:
        LogError: it is one.
    """
    try:
        path.open("rb").close()
    except OSError as e:
        raise LogError(f"cannot be read: {e.strerror}", where=str(path), next_step="check its rights") from None


def head_of(path: Path, size: int = 4096) -> bytes:
    """First bytes of a file; b"" when it cannot be read or is none: a pipe would be waited for."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as f:
            return f.read(size)
    except OSError:
        return b""


def refuse_outside(path: Path, root: Path) -> None:
    """Refuse a path that leads out of `root`, by a symbolic link or by "..", or that leads nowhere.

    Raises:
        LogError: it does.
    """
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as e:
        # links in a circle, or a name with a zero byte, as metadata may claim one
        raise LogError(f"is no path: {e}", where=repr(str(path)), next_step="take it out, or copy it again") from None
    if not real.is_relative_to(home):
        raise LogError(
            f"leads out of the folder, to {real}",
            where=str(path),
            next_step="copy the file itself into the folder: links are not followed",
        )


def write_atomic(path: Path, blocks: Iterable[bytes]) -> None:
    """Write blocks to a file that is complete or absent: temporary name, fsync, rename.

    Raises:
        LogError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, blocks)
    except OSError as e:
        raise LogError(f"cannot be written: {e.strerror}", where=str(path), next_step="check disk and rights") from None
