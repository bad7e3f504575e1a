"""Ledger: an append-only log of what was decided and done, one JSON line an entry, hashed as a Merkle tree.

Every line carries the tree's root after it, so a changed byte anywhere shows without any other record. That
nothing was cut off or rewritten as a whole shows only against a head (size and root) that somebody remembered.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hagane.seal.merkle import EMPTY_ROOT, Frontier, Proof, leaf_hash, prove_leaf
from hagane.terms import CorruptError, StoreError, canonical_json, digest_bytes


@dataclass(frozen=True)
class Entry:
    """One line of a ledger, its hash already checked."""

    index: int
    """Place in the ledger, from 0."""
    kind: str
    """What happened: "contract", "refusal", "run", "checkpoint"..."""
    time_ns: int
    """When, Unix nanoseconds; never before the entry above it."""
    body: Mapping[str, Any]
    """The facts, as JSON."""


@dataclass(frozen=True)
class Head:
    """What to remember of a ledger: with it, every later rewriting or cutting is found."""

    size: int
    """Entries."""
    root: str
    """Merkle root over them, hex."""


class Ledger:
    """An append-only file. Several processes may write: each append holds the file's lock and is synced.

    Args:
        path: the JSONL file; made by the first append.
        clock: Unix nanoseconds; for tests.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self.path, self._clock = Path(path), clock
        self._mutex = threading.Lock()
        self._known = _State()

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Add an entry and sync it to disk; returns its index.

        A last line that a crash left torn was never acknowledged: its bytes are kept in `<file>.torn-<digest>`
        and an entry "repaired" says so before the new one.

        Raises:
            CorruptError: the ledger on disk is damaged or was cut; nothing is written.
            StoreError: the body is no JSON, or the disk refuses; nothing is left half written.
        """
        with self._mutex, self._locked() as fd:
            state, torn = self._catch_up(fd)
            if torn:
                _, line = self._line(state, "repaired", {"bytes": len(torn), "sha256": digest_bytes(torn)})
                self._set_aside(torn)
                _cut(fd, state.offset, self.path)
                state = self._write(fd, state, line)
            index, line = self._line(state, kind, body)
            self._known = self._write(fd, state, line)
            return index

    def entries(self) -> Iterator[Entry]:
        """All entries in order; each is checked as it is read.

        Raises:
            CorruptError: a damaged line; a torn last line.
        """
        state = _State()
        for number, line in enumerate(self._lines(), 1):
            yield state.take(line, f"{self.path}:{number}")

    def head(self) -> Head:
        """Size and root now; reads and checks the whole file.

        Raises:
            CorruptError: as `entries`.
        """
        state = self._read_all()
        return Head(state.frontier.size, state.frontier.root().hex())

    def root(self) -> str:
        """Merkle root of all entries, hex; sha256 of nothing for an empty ledger.

        Raises:
            CorruptError: as `entries`.
        """
        return self.head().root

    def verify(self, remembered: Head | None = None) -> Head:
        """Check every byte, and that the ledger still begins with what was remembered; returns the head.

        Raises:
            CorruptError: a damaged or torn line, a cut or rewritten history.
        """
        state = _State()
        seen = EMPTY_ROOT.hex() if remembered and remembered.size == 0 else ""
        for number, line in enumerate(self._lines(), 1):
            state.take(line, f"{self.path}:{number}")
            if remembered and number == remembered.size:
                seen = state.frontier.root().hex()
        if remembered and state.frontier.size < remembered.size:
            raise CorruptError(
                f"the ledger was cut: it has {state.frontier.size} entries, and had {remembered.size}",
                where=str(self.path),
                next_step="restore it from a copy, and find out who cut it",
            )
        if remembered and seen != remembered.root:
            raise CorruptError(
                f"the ledger's history was rewritten: its first {remembered.size} entries are not those remembered",
                where=str(self.path),
                next_step="restore it from a copy, and find out who rewrote it",
            )
        return Head(state.frontier.size, state.frontier.root().hex())

    def prove(self, index: int) -> Proof:
        """Inclusion proof of an entry in the ledger as it is now; check it with `check_proof(proof, root)`.

        Raises:
            StoreError: no such entry.
            CorruptError: as `entries`.
        """
        leaves = [leaf_hash(_leaf_bytes(e)) for e in self.entries()]
        if not 0 <= index < len(leaves):
            raise StoreError(f"no entry {index}: the ledger has {len(leaves)}", where=str(self.path))
        return prove_leaf(leaves, index)

    def _read_all(self) -> _State:
        state = _State()
        for number, line in enumerate(self._lines(), 1):
            state.take(line, f"{self.path}:{number}")
        return state

    def _lines(self) -> Iterator[bytes]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as e:
            raise StoreError(f"the ledger cannot be read: {e.strerror}", where=str(self.path)) from None
        with file:
            # another process may be writing a line right now: read only up to what was whole under the lock
            fcntl.flock(file, fcntl.LOCK_SH)
            left = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_UN)
            for number, line in enumerate(file, 1):
                line, left = line[:left], left - len(line)
                if line and not line.endswith(b"\n"):
                    raise CorruptError(
                        f"the last line is torn ({len(line)} bytes without an end), as after a crash",
                        where=f"{self.path}:{number}",
                        next_step="the next append sets it aside and says so in the ledger",
                    )
                if line:
                    yield line
                if left <= 0:
                    return

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise StoreError(f"the ledger cannot be opened: {e.strerror}", where=str(self.path)) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # closing lets go of it, also after a kill
            yield fd
        finally:
            os.close(fd)

    def _catch_up(self, fd: int) -> tuple[_State, bytes]:
        """What other writers added since our last append; second, the bytes of a torn last line."""
        state = self._known.copy()
        size = os.fstat(fd).st_size
        if size < state.offset:
            raise CorruptError("the ledger was cut while it was in use", where=str(self.path))
        data = _read_from(fd, state.offset, size)
        whole, _, torn = data.rpartition(b"\n")
        for line in (whole + b"\n").splitlines(keepends=True) if whole or data.startswith(b"\n") else []:
            state.take(line, f"{self.path}:{state.frontier.size + 1}")
        return state, torn

    def _line(self, state: _State, kind: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """The next entry as a line, read back once before it is believed."""
        index = state.frontier.size
        try:
            facts = json.loads(canonical_json(body), parse_constant=_refuse)
            if not isinstance(facts, dict) or not isinstance(kind, str) or not kind:
                raise TypeError("kind must be a word and body a table")
            entry = Entry(index, kind, max(self._clock(), state.time_ns), facts)
            after = state.frontier.copy()
            after.add(leaf_hash(_leaf_bytes(entry)))
            line = canonical_json({**_table(entry), "root": after.root().hex()}) + b"\n"
            state.copy().take(line, str(self.path))
        except (TypeError, ValueError, RecursionError, CorruptError) as e:
            raise StoreError(f"the entry cannot be written as JSON: {e}", where=str(self.path)) from None
        return index, line

    def _write(self, fd: int, state: _State, line: bytes) -> _State:
        after = state.copy()
        after.take(line, str(self.path))
        try:
            os.lseek(fd, state.offset, os.SEEK_SET)
            view = memoryview(line)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except OSError as e:
            _cut(fd, state.offset, self.path)
            raise StoreError(
                f"the entry could not be written: {e.strerror}",
                where=str(self.path),
                next_step="free some disk and try again; the ledger is as it was",
            ) from None
        return after

    def _set_aside(self, torn: bytes) -> None:
        aside = self.path.with_name(f"{self.path.name}.torn-{digest_bytes(torn)[:16]}")
        try:
            with aside.open("wb") as f:
                f.write(torn)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise StoreError(f"a torn line could not be set aside: {e.strerror}", where=str(aside)) from None


class _State:
    """How far a ledger was read: tree, byte offset, last time."""

    def __init__(self) -> None:
        self.frontier = Frontier()
        self.offset = 0
        self.time_ns = 0

    def copy(self) -> _State:
        other = _State()
        other.frontier, other.offset, other.time_ns = self.frontier.copy(), self.offset, self.time_ns
        return other

    def take(self, line: bytes, where: str) -> Entry:
        """Check the next line against what was read so far, and move past it."""
        try:
            table = json.loads(line, parse_constant=_refuse)
            entry = Entry(table["index"], table["kind"], table["time_ns"], table["body"])
            # exact bytes: a line that merely means the same is not the line that was written
            whole = canonical_json({**_table(entry), "root": table["root"]}) + b"\n" == line
            ordered = type(entry.index) is int and entry.index == self.frontier.size
            ordered = ordered and type(entry.time_ns) is int and entry.time_ns >= self.time_ns
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = ordered = False
        if not whole or not ordered:
            raise _damaged(where)
        after = self.frontier.copy()
        after.add(leaf_hash(_leaf_bytes(entry)))
        if after.root().hex() != table["root"]:
            raise _damaged(where)
        self.frontier, self.time_ns = after, entry.time_ns
        self.offset += len(line)
        return entry


def _table(entry: Entry) -> dict[str, Any]:
    return {"index": entry.index, "kind": entry.kind, "time_ns": entry.time_ns, "body": entry.body}


def _leaf_bytes(entry: Entry) -> bytes:
    return canonical_json(_table(entry))


def _damaged(where: str) -> CorruptError:
    return CorruptError(
        "the ledger is damaged here: this line is not the one that was written",
        where=where,
        next_step="restore the ledger from a copy; entries above this line are sound",
    )


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read_from(fd: int, start: int, end: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)
    parts = []
    while start < end and (part := os.read(fd, end - start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _cut(fd: int, size: int, path: Path) -> None:
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as e:
        raise StoreError(f"the ledger cannot be cut back to its last entry: {e.strerror}", where=str(path)) from None
