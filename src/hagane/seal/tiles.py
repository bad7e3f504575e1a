"""Hashes kept beside a ledger, so that a proof in a million entries reads a few of them: `<ledger>.tiles/`.

The tree is cut into tiles of 256 hashes as in C2SP tlog-tiles (c2sp.org/tlog-tiles): file `n` holds level 8 n of the
tree one hash after the other, a tile being 8 KiB of it. `ends` holds where each line ends, `head` size and root.
All of it follows from the ledger: whatever is missing or does not fit is made again from its lines.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from hagane.seal.merkle import (
    EMPTY_ROOT,
    Head,
    Proof,
    check_growth,
    check_proof,
    level_above,
    prove_growth,
    prove_leaf,
    root_at,
)

_HEIGHT = 8  # levels of the tree in a tile
_LEVELS = 4  # files of hashes: enough for 2**39 entries
_NAMES = ("head", "ends", *(str(n) for n in range(_LEVELS)))
_EMPTY = Head(0, EMPTY_ROOT.hex())


class TilesError(Exception):
    """The hashes kept here do not lead to the root they should."""


class Tiles:
    """The open files of one ledger's hashes, locked against other processes."""

    def __init__(self, files: Sequence[IO[bytes]], ledger_bytes: int) -> None:
        self._ledger_bytes = ledger_bytes
        self._head, self._ends, *self._hashes = files
        self.now = self._stored()
        """The head that these hashes were made at."""

    @classmethod
    @contextmanager
    def of(cls, ledger: Path, ledger_bytes: int, unnamed: bool = False) -> Iterator[Tiles]:
        """The hashes of a ledger of so many bytes; in unnamed files if asked, or if its folder cannot be written."""
        folder = ledger.with_name(ledger.name + ".tiles")
        with ExitStack() as stack:
            try:
                if unnamed:
                    raise OSError
                folder.mkdir(exist_ok=True)
                opened = [os.open(folder / n, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) for n in _NAMES]
                files = [stack.enter_context(os.fdopen(fd, "r+b", buffering=0)) for fd in opened]
                fcntl.flock(files[0], fcntl.LOCK_EX)
            except OSError:
                files = [stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in _NAMES]
            yield cls(files, ledger_bytes)

    def clear(self) -> None:
        """Forget everything."""
        self._store(_EMPTY)

    def place(self, index: int) -> tuple[int, int]:
        """First byte of an entry's line in the ledger, and the first byte after it.

        Raises:
            TilesError: not known.
        """
        first = max(index - 1, 0)
        data = self._read(self._ends, 8 * first, 8 * (index - first + 1))
        ends = [0, *struct.unpack(f"<{len(data) // 8}Q", data)]
        if not ends[-2] < ends[-1] <= self._ledger_bytes:
            raise TilesError
        return ends[-2], ends[-1]

    def node(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree, as `merkle.Node`.

        Raises:
            TilesError: not known.
        """
        file, rest = divmod(level, _HEIGHT)
        return self._joined(file, index << rest, rest)

    def extend(self, leaves: Sequence[bytes], ends: Sequence[int]) -> None:
        """Add leaf hashes and the ends of their lines.

        Raises:
            TilesError: what is here already does not lead to its root.
        """
        old = self.now.size
        if root_at(self.node, old).hex() != self.now.root:
            raise TilesError
        new = old + len(leaves)
        self._write(self._ends, 8 * old, struct.pack(f"<{len(ends)}Q", *ends))
        self._write(self._hashes[0], 32 * old, b"".join(leaves))
        for file in range(1, _LEVELS):
            level = _HEIGHT * file
            full = range(old >> level, new >> level)
            roots = [self._joined(file - 1, tile << _HEIGHT, _HEIGHT) for tile in full]
            self._write(self._hashes[file], 32 * full.start, b"".join(roots))
        self._store(Head(new, root_at(self.node, new).hex()))

    def prove(self, index: int, head: Head) -> Proof:
        """Inclusion proof of an entry in the tree of a head.

        Raises:
            TilesError: these hashes do not lead to that head.
        """
        proof = prove_leaf(self.node, head.size, index)
        if not check_proof(proof, head.root):
            raise TilesError
        return proof

    def prove_growth(self, old: Head, new: Head) -> tuple[str, ...]:
        """Consistency proof between two heads.

        Raises:
            TilesError: these hashes do not lead to them.
        """
        if old.size > new.size:
            raise TilesError
        path = prove_growth(self.node, old.size, new.size)
        if not check_growth(old, new, path):
            raise TilesError
        return path

    def _joined(self, file: int, first: int, levels: int) -> bytes:
        """Root over 2**levels hashes of a file."""
        data = self._read(self._hashes[file], 32 * first, 32 << levels)
        hashes = [data[i : i + 32] for i in range(0, len(data), 32)]
        while len(hashes) > 1:
            hashes = level_above(hashes)
        return hashes[0]

    def _stored(self) -> Head:
        data = self._head.read(200)
        try:
            size, root = data.decode("ascii").split()
            head = Head(int(size), root)
            return head if _text(head) == data and 0 <= head.size < 1 << 39 else _EMPTY
        except ValueError:
            return _EMPTY

    def _store(self, head: Head) -> None:
        self._write(self._head, 0, _text(head))
        self._head.truncate(len(_text(head)))
        self.now = head

    @staticmethod
    def _read(file: IO[bytes], start: int, size: int) -> bytes:
        data = os.pread(file.fileno(), size, start)
        if len(data) != size:
            raise TilesError
        return data

    @staticmethod
    def _write(file: IO[bytes], start: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(file.fileno(), view, start)
            except OSError:  # a full disk: the ledger itself is sound
                raise TilesError from None
            view, start = view[done:], start + done


def _text(head: Head) -> bytes:
    return b"%d %s\n" % (head.size, head.root.encode())
