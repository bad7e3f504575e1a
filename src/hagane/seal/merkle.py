"""Merkle trees as in RFC 9162, section 2.1: roots, inclusion and consistency proofs. Pure functions on hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

EMPTY_ROOT = hashlib.sha256(b"").digest()
_LEAF, _NODE = hashlib.sha256(b"\x00"), hashlib.sha256(b"\x01")
_BLOCK = 256  # leaves that `Frontier.extend` joins level by level

Node = Callable[[int, int], bytes]
"""Hash of the complete subtree (level, index): over 2**level leaves from number index * 2**level on."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of an entry: sha256(0x00 || data)."""
    h = _LEAF.copy()  # cheaper than a new context, and the entry is not copied
    h.update(data)
    return h.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: sha256(0x01 || left || right)."""
    h = _NODE.copy()
    h.update(left + right)
    return h.digest()


def level_above(hashes: Sequence[bytes]) -> list[bytes]:
    """Hashes of the parents of an even number of neighbours; a last one without a partner is left out."""
    each, sha256 = iter(hashes), hashlib.sha256
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(each, each, strict=False)]


@dataclass(frozen=True)
class Head:
    """What to remember of a ledger: with it, every later rewriting or cutting is found."""

    size: int
    """Entries."""
    root: str
    """Merkle root over them, hex."""


class Frontier:
    """The left edges of a growing tree: adds a leaf in O(log n) and gives the root at every size."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # roots of the complete subtrees, largest first: the binary digits of size

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        self._push(leaf, 1)

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Append leaf hashes; whole blocks cost one hash call a node."""
        at = 0
        while at < len(leaves):
            if self.size % _BLOCK == 0 and len(leaves) - at >= _BLOCK:
                level = list(leaves[at : at + _BLOCK])
                while len(level) > 1:
                    level = level_above(level)
                self._push(level[0], _BLOCK)
                at += _BLOCK
            else:
                self._push(leaves[at], 1)
                at += 1

    def root(self) -> bytes:
        """Root over all leaves so far; sha256 of nothing when there are none."""
        return _join(self._full)

    def head(self) -> Head:
        """Size and root."""
        return Head(self.size, self.root().hex())

    def copy(self) -> Frontier:
        """An independent copy."""
        other = Frontier()
        other.size, other._full = self.size, list(self._full)
        return other

    def _push(self, subtree: bytes, leaves: int) -> None:
        carry, below = subtree, self.size // leaves
        while below & 1:
            carry = node_hash(self._full.pop(), carry)
            below >>= 1
        self._full.append(carry)
        self.size += leaves


def nodes_of(leaves: Sequence[bytes]) -> Node:
    """The complete subtrees over leaf hashes in memory."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(level_above(levels[-1]))
    return lambda level, index: levels[level][index]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


def root_at(node: Node, size: int) -> bytes:
    """Root over the first `size` leaves of a tree."""
    return _range_root(node, 0, size)


@dataclass(frozen=True)
class Proof:
    """That a leaf stands at `index` in a tree of `size` leaves. Hashes are hex."""

    index: int
    """Place of the leaf, from 0."""
    size: int
    """Leaves in the tree."""
    leaf: str
    """Hash of the leaf."""
    path: tuple[str, ...]
    """Sibling hashes from the leaf up."""


def prove_leaf(node: Node, size: int, index: int) -> Proof:
    """Inclusion proof of a leaf in the tree of the first `size` leaves (RFC 9162, 2.1.3.1).

    Raises:
        IndexError: no such leaf.
    """
    if not 0 <= index < size:
        raise IndexError(f"no leaf {index} in a tree of {size}")
    low, high, path = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_range_root(node, middle, high))
            high = middle
        else:
            path.append(_range_root(node, low, middle))
            low = middle
    return Proof(index, size, node(0, index).hex(), tuple(h.hex() for h in reversed(path)))


def check_proof(proof: Proof, root: str) -> bool:
    """True when the proof leads to this root (hex) (RFC 9162, 2.1.3.2). Total: damaged proofs are False."""
    try:
        if not 0 <= proof.index < proof.size:
            return False
        at, last, out = proof.index, proof.size - 1, _hash(proof.leaf)
        for sibling in map(_hash, proof.path):
            if last == 0:
                return False
            if at & 1 or at == last:
                out = node_hash(sibling, out)
                while not at & 1 and at:
                    at, last = at >> 1, last >> 1
            else:
                out = node_hash(out, sibling)
            at, last = at >> 1, last >> 1
        return last == 0 and out == _hash(root)
    except (ValueError, TypeError, AttributeError):
        return False


def prove_growth(node: Node, old_size: int, new_size: int) -> tuple[str, ...]:
    """Consistency proof (RFC 9162, 2.1.4.1): the first `old_size` of `new_size` leaves are the older tree.

    Hashes are hex.

    Raises:
        IndexError: the old tree is larger than the new one.
    """
    if not 0 <= old_size <= new_size:
        raise IndexError(f"a tree of {new_size} leaves has not grown from one of {old_size}")
    low, high, whole = 0, new_size, True
    path: list[bytes] = []
    while 0 < old_size < high:
        middle = low + _split(high - low)
        if old_size <= middle:
            path.append(_range_root(node, middle, high))
            high = middle
        else:
            path.append(_range_root(node, low, middle))
            low, whole = middle, False
    if old_size and not whole:
        path.append(_range_root(node, low, high))
    return tuple(h.hex() for h in reversed(path))


def check_growth(old: Head, new: Head, path: Sequence[str]) -> bool:
    """True when the proof shows that `new` only appended to `old` (RFC 9162, 2.1.4.2). Total, as `check_proof`.

    Every tree has grown from the empty one: then, and between equal heads, the proof is empty.
    """
    try:
        old_root, new_root, hashes = _hash(old.root), _hash(new.root), [_hash(h) for h in path]
        if not 0 < old.size < new.size:
            same = old == new or (old == Head(0, EMPTY_ROOT.hex()) and new.size > 0)
            return same and not hashes
        if old.size & (old.size - 1) == 0:
            hashes.insert(0, old_root)
        at, last = old.size - 1, new.size - 1
        while at & 1:
            at, last = at >> 1, last >> 1
        if not hashes:
            return False
        was = now = hashes[0]
        for sibling in hashes[1:]:
            if last == 0:
                return False
            if at & 1 or at == last:
                was, now = node_hash(sibling, was), node_hash(sibling, now)
                while not at & 1 and at:
                    at, last = at >> 1, last >> 1
            else:
                now = node_hash(now, sibling)
            at, last = at >> 1, last >> 1
        return last == 0 and was == old_root and now == new_root
    except (ValueError, TypeError, AttributeError):
        return False


def _hash(text: str) -> bytes:
    """A hash in exactly the hex form that we write, so that every changed character shows."""
    data = bytes.fromhex(text)
    if len(data) != 32 or data.hex() != text:
        raise ValueError("no sha256 in hex")
    return data


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)  # largest power of two below the size


def _range_root(node: Node, low: int, high: int) -> bytes:
    """Root over leaves low to high; low is a multiple of a power of two that is not below high - low."""
    full = []
    while low < high:
        level = (high - low).bit_length() - 1
        full.append(node(level, low >> level))
        low += 1 << level
    return _join(full)


def _join(subtrees: Sequence[bytes]) -> bytes:
    if not subtrees:
        return EMPTY_ROOT
    out = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        out = node_hash(left, out)
    return out
