"""Files with secrets: closed to other users, whole or absent, and overwritten when they are replaced."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from hagane.terms import ContractError, StoreError
from hagane.terms.files import sync_folder


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner may read.

    Raises:
        ContractError: it cannot be read, is no plain file, or other users may read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as f:
            mode = os.fstat(f.fileno()).st_mode
            data = f.read() if stat.S_ISREG(mode) else b""
    except OSError as e:
        raise ContractError(f"the key cannot be read: {e.strerror}", where=str(path)) from None
    if not stat.S_ISREG(mode):
        raise ContractError("the key is no plain file", where=str(path))
    if stat.S_IMODE(mode) & 0o077:
        raise ContractError(
            f"the private key is open to other users (mode {stat.S_IMODE(mode):04o})",
            where=str(path),
            next_step=f"chmod 600 {path}",
        )
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of mode 0600: the old one or the new one, whatever happens; the old one's bytes are overwritten.

    Overwriting is what a file system can be asked for: a journal, a snapshot, a flash disk or a backup may keep them.

    Raises:
        StoreError: the disk refuses; the old file is there.
    """
    beside = path.with_name(f".{path.name}.making")
    old = -1
    try:
        _shred(beside)  # of a writer that was killed
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        with contextlib.suppress(FileNotFoundError):
            old = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        beside.replace(path)
        sync_folder(path.parent)
        if old >= 0:
            _overwrite(old)
    except OSError as e:
        with contextlib.suppress(OSError):
            _shred(beside)
        raise StoreError(
            f"the keys cannot be written: {e.strerror}", where=str(path), next_step="free some disk and try again"
        ) from None
    finally:
        if old >= 0:
            os.close(old)


def _shred(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _overwrite(fd)
    finally:
        os.close(fd)
    path.unlink()


def _overwrite(fd: int) -> None:
    size = os.fstat(fd).st_size
    os.pwrite(fd, bytes(size), 0)
    os.fsync(fd)
