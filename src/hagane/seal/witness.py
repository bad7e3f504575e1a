"""Witness: another member that countersigns a ledger's heads, each only as a continuation of the last one it signed.

A site that shows one history here and another there, or cuts its ledger, needs two heads that no consistency proof
joins: a witness never signs both. It keeps the second as evidence. The rules are those of c2sp.org/tlog-witness.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.head import SignedHead, countersign, read_head, seen_at, signed_by_site
from hagane.seal.keys import public_of
from hagane.seal.merkle import EMPTY_ROOT, Head, check_growth
from hagane.seal.names import check_name
from hagane.terms import CorruptError, Refused, StoreError
from hagane.terms.files import alone, sync_folder, write_whole

_NOTHING = Head(0, EMPTY_ROOT.hex())


class Witness:
    """One member's memory of other sites' ledgers: a folder with the last head of each that it signed.

    Args:
        folder: where it remembers; made when missing. Who loses it trusts the next head of each site anew.
        name: the member's name.
        key: the member's private key.
        clock: Unix nanoseconds; for tests.
    """

    def __init__(
        self, folder: Path, name: str, key: Ed25519PrivateKey, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.folder, self.name, self._key, self._clock = folder, check_name(name), key, clock

    def last(self, site: str) -> Head:
        """The last head of a site's ledger that this witness signed; the empty head when there is none.

        Raises:
            CorruptError: its memory was changed.
        """
        kept = self._kept(site)
        return kept[0].head if kept else _NOTHING

    def countersign(self, signed: SignedHead, site_key: Ed25519PublicKey, growth: Sequence[str]) -> SignedHead:
        """The head with this witness's signature, remembered on disk before it is given out.

        Args:
            signed: a head that its site signed.
            site_key: the site's host key.
            growth: consistency proof from `last(site)` to this head; empty from the empty head.

        Raises:
            Refused: not the site's signature, an older head, or another history than the one signed before.
            CorruptError: the witness's memory was changed.
            StoreError: it cannot be written; nothing was signed.
        """
        with alone(self.folder / "lock"):
            kept = self._kept(signed.site)
            old, old_s = (kept[0].head, kept[1]) if kept else (_NOTHING, 0)
            if not signed_by_site(signed, site_key):
                raise Refused("the head is not signed by the site's host key", where=signed.origin)
            if signed.head.size < old.size:
                raise Refused(
                    f"the head is older ({signed.head.size} entries) than one signed before ({old.size})",
                    where=signed.origin,
                    next_step="ask the site for its newest head",
                )
            if not check_growth(old, signed.head, growth):
                self._evidence(signed, old)
            out = countersign(signed, self.name, self._key, max(self._clock() // 1_000_000_000, old_s))
            keep(self._path(signed.site), out.note())
            return out

    def _evidence(self, signed: SignedHead, old: Head) -> None:
        """Refuse a head that does not continue the last one, and keep it: its site signed it."""
        if signed.head.size == old.size:
            what = "the site signed two different histories of the same size: a fork"
        else:
            what = f"nothing proves that the head continues the one of {old.size} entries that was signed before"
        path = self.folder / f"{signed.site}.refused-{signed.head.size}-{signed.head.root[:16]}"
        keep(path, signed.note())
        raise Refused(what, where=signed.origin, next_step=f"both heads are kept: {self._path(signed.site)} and {path}")

    def _kept(self, site: str) -> tuple[SignedHead, int] | None:
        path = self._path(site)
        try:
            kept = read_head(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        time_s = seen_at(kept, self.name, public_of(self._key))
        if time_s is None or kept.site != site:
            raise CorruptError(
                "this is not what the witness signed", where=str(path), next_step="restore it from a copy"
            )
        return kept, time_s

    def _path(self, site: str) -> Path:
        return self.folder / f"{check_name(site, 'site name')}.head"


def keep(path: Path, data: bytes) -> None:
    """Write a file so that a crash or a cut of power leaves the old or the new one.

    Raises:
        StoreError: the disk refuses; the old one is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [data])
        sync_folder(path.parent)
    except OSError as e:
        raise StoreError(f"cannot be written: {e.strerror}", where=str(path)) from None
