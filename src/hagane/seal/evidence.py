"""Evidence: that entries stand in a ledger, as proofs that anybody checks against a head that others countersigned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hagane.seal.entry import signed_by
from hagane.seal.history import Witnessed
from hagane.seal.ledger import Ledger
from hagane.seal.merkle import Head, Proof, check_proof
from hagane.terms import CorruptError


@dataclass(frozen=True)
class Evidence:
    """One entry's inclusion proof."""

    index: int
    """Place of the entry."""
    kind: str
    """Its kind."""
    proof: Proof
    """Checked against `head`."""
    head: Head
    """The witnessed head that covers the entry; the ledger's own where none does."""
    by: tuple[str, ...]
    """Members that countersigned the head; empty while the entry is pending."""

    def __str__(self) -> str:
        seen = f"countersigned by {', '.join(self.by)}" if self.by else "pending: this site alone says it"
        return f"entry {self.index}, {self.kind}: proved by {len(self.proof.path)} hashes, {seen}"


def prove(ledger: Ledger, indices: Iterable[int], now: Head, witnessed: Sequence[Witnessed]) -> tuple[Evidence, ...]:
    """Prove that entries stand in the ledger, each against the smallest witnessed head that covers it.

    Args:
        ledger: verified already.
        indices: places of the entries.
        now: the ledger's head.
        witnessed: heads that others countersigned, verified, smallest first.

    Raises:
        StoreError: no such entry.
        CorruptError: the ledger is damaged, or not the one of these heads.
    """
    out = []
    for index in sorted(set(indices)):
        seen = next((w for w in witnessed if w.head.size > index), None)
        head = seen.head if seen else now
        proof = ledger.prove(index, head)
        if not check_proof(proof, head.root):
            raise CorruptError("the entry is not in the head", where=f"{ledger.path}:{index + 1}")
        by = tuple(name for name, _ in seen.by) if seen else ()
        out.append(Evidence(index, ledger.entry(index).kind, proof, head, by))
    return tuple(out)


def check_signatures(ledger: Ledger, site: str, key: Ed25519PublicKey) -> tuple[int, int]:
    """Check the site's signature on every signed entry; returns (signed, unsigned after the first signed one).

    Raises:
        CorruptError: an entry is signed by another key, or for another site.
    """
    signed, bare = 0, 0
    for entry in ledger.entries():
        if entry.envelope is None:
            bare += signed > 0
        elif signed_by(entry, site, key):
            signed += 1
        else:
            raise CorruptError(
                f"entry {entry.index} is not signed by site {site!r}",
                where=f"{ledger.path}:{entry.index + 1}",
                next_step="ask the site which host key it had then; if none fits, the entry is forged",
            )
    return signed, bare
