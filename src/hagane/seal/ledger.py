"""Ledger: an append-only log of what was decided and done, one JSON line an entry, hashed as a Merkle tree.

Every line carries its own hash, so a changed byte in it, an entry that is missing, doubled or out of place shows
without any other record. That nothing was cut off the end, or rewritten as a whole, shows only against a head (size
and root) that somebody else remembered: see `hagane.seal.history`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, TypeVar

from hagane.seal.entry import BadLineError, Entry, Signer, check_lines, read_line, write_line
from hagane.seal.facts import Fact
from hagane.seal.lines import TornError, blocks, cut, damaged, opened, set_aside, write_at
from hagane.seal.merkle import EMPTY_ROOT, Frontier, Head, Proof
from hagane.seal.tiles import Tiles, TilesError
from hagane.terms import CorruptError, StoreError, digest_bytes
from hagane.terms.files import alone

T = TypeVar("T")


class Ledger:
    """An append-only file. Several processes may write: each append holds the file's lock and is synced.

    Args:
        path: the JSONL file; made by the first append.
        clock: Unix nanoseconds; for tests.
        signer: the site's name and host key, which signs every entry. Without one entries are unsigned: they say
            no more than that somebody who could write the file wrote them.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns, signer: Signer | None = None) -> None:
        self.path, self._clock, self._signer = Path(path), clock, signer
        self._mutex = threading.Lock()
        self._known = _State()

    def append(self, kind: str, body: Mapping[str, Any], *, not_before_ns: int = 0) -> int:
        """Add an entry and sync it to disk; returns its index.

        The entry's time is the clock's, but never before that of the entry above, nor before `not_before_ns` (a time
        that somebody else vouched for); how far the clock was behind is then noted in the entry.
        A last line that a crash left torn was never acknowledged: its bytes are kept in `<file>.torn-<digest>`
        and an entry "repaired" says so before the new one.

        Raises:
            CorruptError: the ledger on disk is damaged or was cut; nothing is written.
            StoreError: the body is no JSON, or the disk refuses; nothing is left half written.
        """
        with self._mutex, alone(self.path) as fd:
            state, torn = self._catch_up(fd)
            if torn:
                line = self._line(state, "repaired", {"bytes": len(torn), "sha256": digest_bytes(torn)}, 0)
                self._line(state, kind, body, not_before_ns)  # nothing is repaired for an entry that is refused
                set_aside(torn, self.path)
                cut(fd, state.offset, self.path)
                state = self._write(fd, state, line)
            line = self._line(state, kind, body, not_before_ns)
            self._known = self._write(fd, state, line)
            return state.frontier.size

    def note(self, fact: Fact) -> int:
        """Append a fact of a known kind (`hagane.seal.facts`); as `append`."""
        return self.append(fact.KIND, fact.body())

    def entries(self) -> Iterator[Entry]:
        """All entries in order; each is parsed strictly and checked as it is read.

        Raises:
            CorruptError: a damaged line; a torn last line.
        """
        index, floor_ns = 0, 0
        with opened(self.path) as (file, until):
            for lines in blocks(file, until, 0, self.path):
                for line in lines:
                    entry = self._read(line, index)
                    if entry.time_ns < floor_ns:
                        raise damaged(self.path, index)
                    index, floor_ns = index + 1, entry.time_ns
                    yield entry

    def entry(self, index: int) -> Entry:
        """One entry, without reading those before it.

        Raises:
            StoreError: no such entry.
            CorruptError: it is damaged.
        """

        def ask(tiles: Tiles, file: IO[bytes]) -> Entry:
            self._inside(index, tiles.now.size)
            return self._read(_line_at(tiles, file, index), index)

        return self._ask(ask)

    def head(self) -> Head:
        """Size and root now; reads and checks the whole file.

        Raises:
            CorruptError: as `verify`.
        """
        return self.verify()

    def root(self) -> str:
        """Merkle root of all entries, hex; sha256 of nothing for an empty ledger.

        Raises:
            CorruptError: as `verify`.
        """
        return self.verify().root

    def verify(self, *remembered: Head | None) -> Head:
        """Check every byte, and that the ledger still begins with what was remembered; returns the head.

        Whether entries after the largest remembered head were cut off cannot be known.

        Raises:
            CorruptError: a damaged or torn line, a cut or rewritten history.
        """
        heads = [h for h in remembered if h is not None]
        stops = sorted({h.size for h in heads})
        state, roots = _State(), {0: EMPTY_ROOT.hex()}
        with opened(self.path) as (file, until):
            for lines in blocks(file, until, 0, self.path, stops):
                state.take(lines, self.path)
                if state.frontier.size in stops:
                    roots[state.frontier.size] = state.frontier.root().hex()
        for old in heads:
            if state.frontier.size < old.size:
                raise CorruptError(
                    f"the ledger was cut: it has {state.frontier.size} entries, and had {old.size}",
                    where=str(self.path),
                    next_step="restore it from a copy, and find out who cut it",
                )
            if roots.get(old.size) != old.root:
                raise CorruptError(
                    f"the ledger's history was rewritten: its first {old.size} entries are not those remembered",
                    where=str(self.path),
                    next_step="restore it from a copy, and find out who rewrote it",
                )
        return state.frontier.head()

    def prove(self, index: int, head: Head | None = None) -> Proof:
        """Inclusion proof of an entry in the ledger as it is now, or was at a head; see `check_proof(proof, root)`.

        Hashes are kept beside the ledger (`hagane.seal.tiles`), so that only new entries are read.

        Raises:
            StoreError: no such entry.
            CorruptError: the ledger is damaged, or not the one of this head.
        """

        def ask(tiles: Tiles, file: IO[bytes]) -> Proof:
            at = head or tiles.now
            self._inside(index, at.size)
            proof = tiles.prove(index, at)
            if check_lines([_line_at(tiles, file, index)], index, 0)[0][0].hex() != proof.leaf:
                raise TilesError
            return proof

        return self._ask(ask)

    def prove_growth(self, old: Head, new: Head | None = None) -> tuple[Head, tuple[str, ...]]:
        """The new head (the present one unless given), and the proof that it only appended to the old one.

        Raises:
            CorruptError: the ledger is damaged, or not the one of these heads.
        """

        def ask(tiles: Tiles, _: IO[bytes]) -> tuple[Head, tuple[str, ...]]:
            now = new or tiles.now
            return now, tiles.prove_growth(old, now)

        return self._ask(ask)

    def _ask(self, ask: Callable[[Tiles, IO[bytes]], T]) -> T:
        """An answer from the hashes kept beside the ledger; else from hashes made anew there, or in unnamed files."""
        with opened(self.path) as (file, until):
            for again, unnamed in ((False, False), (True, False), (True, True)):
                with Tiles.of(self.path, until, unnamed) as tiles:
                    try:
                        if again:
                            tiles.clear()
                        self._bring(tiles, file, until)
                        return ask(tiles, file)
                    except (TilesError, BadLineError):
                        continue
        raise CorruptError(
            "this is not the ledger of the head that was given",
            where=str(self.path),
            next_step="restore it from a copy, and find out who cut or rewrote it",
        )

    def _bring(self, tiles: Tiles, file: IO[bytes], until: int) -> None:
        """Add the hashes of entries that are not among those kept."""
        state = _State()
        if last := tiles.now.size:
            line = _line_at(tiles, file, last - 1)
            leaves, state.time_ns = check_lines([line], last - 1, 0)
            state.offset = tiles.place(last - 1)[1]
            if leaves[0] != tiles.node(0, last - 1):
                raise TilesError
        file.seek(state.offset)
        for lines in blocks(file, until - state.offset, last, self.path):
            leaves = state.check(lines, self.path, tiles.now.size)
            ends = list(accumulate(map(len, lines), initial=state.offset - sum(map(len, lines))))[1:]
            tiles.extend(leaves, ends)

    def _read(self, line: bytes, index: int) -> Entry:
        try:
            entry = read_line(line)
        except BadLineError:
            raise damaged(self.path, index) from None
        if entry.index != index:
            raise damaged(self.path, index)
        return entry

    def _inside(self, index: int, size: int) -> None:
        if not 0 <= index < size:
            raise StoreError(f"no entry {index}: the ledger has {size}", where=str(self.path))

    def _catch_up(self, fd: int) -> tuple[_State, bytes]:
        """What other writers added since our last append; second, the bytes of a torn last line."""
        state = self._known.copy()
        size = os.fstat(fd).st_size
        if size < state.offset:
            raise CorruptError("the ledger was cut while it was in use", where=str(self.path))
        with open(fd, "rb", closefd=False) as file:
            file.seek(state.offset)
            try:
                for lines in blocks(file, size - state.offset, state.frontier.size, self.path):
                    state.take(lines, self.path)
            except TornError as e:
                return state, e.torn
        return state, b""

    def _line(self, state: _State, kind: str, body: Mapping[str, Any], not_before_ns: int) -> bytes:
        """The next entry as a line."""
        now_ns, floor_ns = self._clock(), max(state.time_ns, not_before_ns)
        entry = Entry(state.frontier.size, kind, max(now_ns, floor_ns), body, max(0, floor_ns - now_ns))
        try:
            return write_line(entry, self._signer)
        except (TypeError, ValueError, RecursionError, BadLineError) as e:
            raise StoreError(f"the entry cannot be written as JSON: {e}", where=str(self.path)) from None

    def _write(self, fd: int, state: _State, line: bytes) -> _State:
        after = state.copy()
        after.take([line], self.path)
        write_at(fd, state.offset, line, self.path)
        return after


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

    def take(self, lines: Sequence[bytes], path: Path) -> None:
        """Check the next lines against what was read so far, and move past them."""
        self.frontier.extend(self.check(lines, path, self.frontier.size))

    def check(self, lines: Sequence[bytes], path: Path, first: int) -> list[bytes]:
        """Leaf hashes of the next lines, the first of which is number `first`; moves past them but for the tree."""
        try:
            leaves, self.time_ns = check_lines(lines, first, self.time_ns)
        except BadLineError as e:
            raise damaged(path, first + e.position) from None
        self.offset += sum(map(len, lines))
        return leaves


def _line_at(tiles: Tiles, file: IO[bytes], index: int) -> bytes:
    start, end = tiles.place(index)
    file.seek(start)
    return file.read(end - start)
