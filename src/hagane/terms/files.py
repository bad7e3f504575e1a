"""Files that are whole or absent, one writer at a time, and folders read without following a link."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from hagane.terms.errors import StoreError

DEPTH = 32
"""Names in the path of a file below its folder, at most."""
_PAGE = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe that comes between does not block us


def write_whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Write blocks to a file that is the old one or the new one, never half of it.

    Raises:
        OSError: the disk is full or the folder cannot be written; the caller says it in its own room's words.
    """
    beside = path.with_name(f".{path.name}.making")
    try:
        with beside.open("wb") as f:
            for block in blocks:
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
    except BaseException:  # also what the blocks raise: half a file stays nowhere
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last.

    Raises:
        OSError: the disk refuses.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def alone(path: Path, *, private: bool = False) -> Iterator[int]:
    """Hold the lock of a file (made if absent); waits for whoever holds it, in this process too. A killed holder lets
    go by dying. Gives the file's descriptor, for reading and writing.

    Args:
        path: the file; its folder is made.
        private: what is made is closed to other users.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600 if private else 0o644)
    except OSError as e:
        raise StoreError(
            f"the disk refused a lock: {e.strerror}",
            where=str(path),
            next_step="see that the folder may be written, or free some disk, and run the same command again",
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def folder_at(root: Path, path: PurePath) -> int:
    """Descriptor of a folder, at a path that is read as if `root` were /, for the caller to close.

    Raises:
        OSError: FileNotFoundError where it is absent; a link or a file on the way is never followed.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.parts[path.is_absolute() :]:
        try:
            if part == "..":
                raise NotADirectoryError(f"a path with ..: {path}")
            further = os.open(part, _FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = further
    return fd


def files_below(folder: int, leave_out: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Path, with /, and descriptor of every file below an open folder; it is open until the next is asked for.

    Whoever made the folder, and may still write to it, is not trusted: whatever they change meanwhile, every
    descriptor is that of a plain file which lay below the folder.

    Args:
        folder: descriptor of a folder.
        leave_out: names directly in it that are passed over, whatever they are.

    Raises:
        StoreError: a link, pipe, socket or device; a name that does not print; more than `DEPTH` names in a path.
        OSError: something cannot be read, or went meanwhile.
    """
    yield from _below(folder, "", leave_out)


def check_total(folder: int, most_bytes: int, leave_out: frozenset[str] = frozenset()) -> None:
    """Refuse a folder whose files claim to be larger in all than they can be; every file counts as 4 KiB at least.

    Raises:
        StoreError: the sum of apparent sizes is above `most_bytes`; or as `files_below`.
        OSError: as `files_below`.
    """
    total = 0
    for path, fd in files_below(folder, leave_out):
        total += max(os.fstat(fd).st_size, _PAGE)
        if total > most_bytes:
            raise StoreError(
                f"its files claim more than {most_bytes} bytes, up to {path!a}: a file with holes?",
                next_step="nothing of it is taken; see what wrote it",
            )


def _below(folder: int, above: str, leave_out: frozenset[str]) -> Iterator[tuple[str, int]]:
    for name in sorted(set(os.listdir(folder)) - leave_out):
        path = above + name
        mode = os.lstat(name, dir_fd=folder).st_mode
        if not name.isprintable() or path.count("/") >= DEPTH:
            raise _odd(path, f"a name that does not print, or more than {DEPTH} in a path")
        if stat.S_ISDIR(mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                yield from _below(inner, path + "/", frozenset())
            finally:
                os.close(inner)
        elif stat.S_ISREG(mode):
            file = os.open(name, _FILE, dir_fd=folder)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise _odd(path, "no plain file any more")
                yield path, file
            finally:
                os.close(file)
        else:
            raise _odd(path, "neither file nor folder (a link?)")


def _odd(path: str, what: str) -> StoreError:
    return StoreError(f"{what}: {path!a}", next_step="nothing of it is taken; see what wrote it")
