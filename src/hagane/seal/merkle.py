"""Merkle tree hashing and inclusion proofs as in RFC 9162, sections 2.1.1 to 2.1.3: pure functions on hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash of an entry: sha256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: sha256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The left edges of a growing tree: adds a leaf in O(log n) and gives the root at every size."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # roots of the complete subtrees, largest first: the binary digits of size

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        carry, below = leaf, self.size
        while below & 1:
            carry = node_hash(self._full.pop(), carry)
            below >>= 1
        self._full.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """Root over all leaves so far; sha256 of nothing when there are none."""
        if not self._full:
            return EMPTY_ROOT
        out = self._full[-1]
        for left in reversed(self._full[:-1]):
            out = node_hash(left, out)
        return out

    def copy(self) -> Frontier:
        """An independent copy."""
        other = Frontier()
        other.size, other._full = self.size, list(self._full)
        return other


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    return frontier.root()


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


def prove_leaf(leaves: Sequence[bytes], index: int) -> Proof:
    """Inclusion proof of a leaf (RFC 9162, 2.1.3.1).

    Raises:
        IndexError: no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} in a tree of {len(leaves)}")
    return Proof(index, len(leaves), leaves[index].hex(), tuple(h.hex() for h in _path(leaves, index)))


def check_proof(proof: Proof, root: str) -> bool:
    """True when the proof leads to this root (hex) (RFC 9162, 2.1.3.2). Total: damaged proofs are False."""
    try:
        if not 0 <= proof.index < proof.size:
            return False
        at, last, out = proof.index, proof.size - 1, bytes.fromhex(proof.leaf)
        for sibling in map(bytes.fromhex, proof.path):
            if last == 0:
                return False
            if at & 1 or at == last:
                out = node_hash(sibling, out)
                while not at & 1 and at:
                    at, last = at >> 1, last >> 1
            else:
                out = node_hash(out, sibling)
            at, last = at >> 1, last >> 1
        return last == 0 and out.hex() == root
    except (ValueError, TypeError, AttributeError):
        return False


def _path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = 1 << ((len(leaves) - 1).bit_length() - 1)  # largest power of two below the size
    if index < split:
        return [*_path(leaves[:split], index), root_of(leaves[split:])]
    return [*_path(leaves[split:], index - split), root_of(leaves[:split])]
