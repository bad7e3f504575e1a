"""What the judge looks at on the host's disks: new files, their contents and names, times, attributes, modes, locks.

Everything that an attempt may leave carries a prefix of that attempt or its token in the name, so nothing of other
programs is opened, and all of it is removed afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

SEEN_MODE = 0o644
MOST_BYTES = 256 * 2**20  # of a core file that is searched


@dataclass(frozen=True)
class Places:
    """Folders that attempts try to write to."""

    root: Path
    """The judge's own folder outside /tmp; below it `data` (shown read-only in a jail), `runs` (a private tmpfs in a
    jail), `here` (the working folder of an attempt) and `held` (open as a descriptor)."""
    home: Path
    """A home folder."""

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.root / "data"

    @property
    def runs(self) -> Path:
        """The folder of a run."""
        return self.root / "runs"

    @property
    def here(self) -> Path:
        """The working folder."""
        return self.root / "here"

    @property
    def held(self) -> Path:
        """The folder that is inherited as a descriptor."""
        return self.root / "held"

    @property
    def watched(self) -> tuple[Path, ...]:
        """Every folder that is looked at."""
        mine = (self.data, self.runs, self.here, self.held)
        return (*mine, self.home, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))

    def fresh(self) -> None:
        """Make the judge's own folders new, with the two files of the data folder."""
        for folder in (self.data, self.runs, self.here):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.held.mkdir(exist_ok=True)
        for left in self.held.iterdir():
            if left.name != "inherited.txt":  # a descriptor of it is open
                left.unlink()
        for name in ("seen.bin", "renamed.bin"):
            (self.data / name).write_bytes(bytes(64))
            (self.data / name).chmod(SEEN_MODE)

    def found(self, prefix: str, token: bytes) -> str:
        """Where the token lies, in words; empty when it is nowhere."""
        if marked := self._marked(token):
            return marked  # looked at first: reading a file changes its times
        for folder in self.watched:
            for entry in _entries(folder, own=folder.is_relative_to(self.root)):
                if token.decode() in entry.name:
                    return f"a name in {self._called(folder)}"
                if (entry.name.startswith(prefix) or folder.is_relative_to(self.root)) and _holds(entry, token):
                    return f"a file in {self._called(folder)}"
        return ""

    def locked(self, token: bytes) -> bool:
        """True when shared locks on the data folder's file spell the token: a lock a bit."""
        fd = os.open(self.data / "seen.bin", os.O_RDWR)
        try:
            read = bytearray(len(token) // 2)
            for k in range(8 * len(read)):
                if _is_locked(fd, 2 * k):
                    read[k // 8] |= 1 << (k % 8)
        finally:
            os.close(fd)
        return bytes(read) == bytes.fromhex(token.decode())

    def clear(self, prefix: str, token: bytes) -> None:
        """Remove what the attempt left outside the judge's own folders."""
        for folder in (self.home, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            for entry in _entries(folder, own=False):
                if entry.name.startswith(prefix) or token.decode() in entry.name:
                    with contextlib.suppress(OSError):
                        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _called(self, folder: Path) -> str:
        return {self.home: "home", self.held: "an inherited folder"}.get(
            folder, str(folder).replace(str(self.root), "")
        )

    def _marked(self, token: bytes) -> str:
        """A mark on the data folder's file itself."""
        with contextlib.suppress(OSError):
            status = (self.data / "seen.bin").stat()
            if struct.pack(">II", int(status.st_atime), int(status.st_mtime)) == bytes.fromhex(token.decode())[:8]:
                return "the times of a file"
            mode = status.st_mode & 0o777
            if mode != SEEN_MODE and mode == int(token[:3], 16) & 0o777:
                return "the mode of a file"
        return ""


def _entries(folder: Path, *, own: bool) -> list[Path]:
    try:
        found = [folder / name for name in os.listdir(folder)]
        return [inner for path in found for inner in (path, *(_below(path) if own else ()))]
    except OSError:
        return []


def _below(path: Path) -> list[Path]:
    return [] if path.is_symlink() or not path.is_dir() else [path / name for name in os.listdir(path)]


def _holds(path: Path, token: bytes) -> bool:
    """True when a file's content, link target or attribute is the token."""
    with contextlib.suppress(OSError):
        if path.is_symlink():
            return token in os.fsencode(path.readlink())
        if any(token in os.getxattr(path, name) for name in os.listxattr(path)):
            return True
        if path.is_file():
            with path.open("rb") as f:
                return token in f.read(MOST_BYTES)
    return False


def _is_locked(fd: int, start: int) -> bool:
    # struct flock of 64-bit Linux: type, whence, start, length, pid
    wish = struct.pack("=hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
    (kind,) = struct.unpack_from("=h", fcntl.fcntl(fd, fcntl.F_GETLK, wish))
    return bool(kind != fcntl.F_UNLCK)
