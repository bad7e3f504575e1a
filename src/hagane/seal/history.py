"""History: what other members can vouch for in a ledger. Heads go out and countersignatures come back as files.

The folder of exchange needs no network: `<size>.head` is what the site signed, `<size>.from-<size>` the consistency
proof from an older head, `<size>.by-<member>` the head with that member's countersignature. Nothing in it is believed
before its signatures are verified.

An entry is *witnessed* once a countersigned head covers it, *pending* before. Only a witnessed entry cannot be cut off
or rewritten unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hagane.seal.entry import Signer
from hagane.seal.facts import WitnessedFact
from hagane.seal.head import SignedHead, read_head, seen_at, sign_head, signed_by_site
from hagane.seal.keys import TrustStore, public_of
from hagane.seal.ledger import Ledger
from hagane.seal.merkle import Head, check_proof
from hagane.seal.names import is_name
from hagane.seal.witness import Witness, keep
from hagane.terms import CorruptError, Decision, StoreError

SKEW_S = 300
"""How far two members' clocks may be apart."""
_NANO = 1_000_000_000


@dataclass(frozen=True)
class Witnessed:
    """A head that other members countersigned; every signature in it was verified."""

    head: Head
    """Size and root."""
    by: tuple[tuple[str, int], ...]
    """(member, Unix seconds at which it signed), sorted by member."""


def publish(ledger: Ledger, signer: Signer, folder: Path) -> SignedHead:
    """Check the whole ledger, sign its head, and lay it out for witnesses with a proof from every head seen before.

    Raises:
        CorruptError: damaged, or not the continuation of a head in the folder that this site signed.
        StoreError: the ledger is empty, or the folder cannot be written.
    """
    before = [_read_signed(p, signer.site, public_of(signer.key)) for p in _files(folder, "head")]
    head = ledger.verify(*(s.head for s in before))
    if not head.size:
        raise StoreError("the ledger is empty: there is nothing to sign", where=str(ledger.path))
    for old in {s.head for s in before}:
        if old.size < head.size:
            _, growth = ledger.prove_growth(old, head)
            keep(folder / f"{_name(head)}.from-{old.size}", "".join(f"{h}\n" for h in growth).encode())
    signed = sign_head(signer.site, head, signer.key)
    keep(folder / f"{_name(head)}.head", signed.note())  # last: a witness that sees it finds the proofs
    return signed


def witness_newest(folder: Path, site: str, site_key: Ed25519PublicKey, witness: Witness) -> SignedHead:
    """Countersign the newest head in a folder and lay the countersignature beside it.

    Raises:
        StoreError: there is no head, or none with a proof from the last one that this witness signed.
        Refused, CorruptError: as `Witness.countersign`.
    """
    heads = _files(folder, "head")
    if not heads:
        raise StoreError(
            "there is no head to countersign", where=str(folder), next_step="the site runs hagane audit head"
        )
    path = heads[-1]
    signed, old = _read_signed(path, site, site_key), witness.last(site)
    growth: list[str] = []
    if 0 < old.size < signed.head.size:
        proof = path.with_suffix(f".from-{old.size}")
        try:
            growth = proof.read_bytes()[:16_384].decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            raise StoreError(
                f"there is no proof from the {old.size} entries that {witness.name!r} signed before",
                where=str(proof),
                next_step="leave the older .head files in the folder when the site signs a new one",
            ) from None
    out = witness.countersign(signed, site_key, growth)
    mine = replace(out, signatures=tuple(s for s in out.signatures if s[0] in (out.origin, witness.name)))
    keep(path.with_suffix(f".by-{witness.name}"), mine.note())
    return out


def witnessed_heads(
    folder: Path, site: str, site_key: Ed25519PublicKey, witnesses: TrustStore, quorum: int = 1
) -> tuple[Witnessed, ...]:
    """Heads in a folder that enough of the members whose keys are given countersigned, smallest first.

    Countersignatures of members without a key here count for nothing; a false one of a member with a key is an error.

    Raises:
        CorruptError: a file was changed or forged.
        ContractError: a member's key cannot be read.
    """
    known = set(witnesses.owners())
    found: dict[Head, dict[str, int]] = {}
    for path in _files(folder, "by-*"):
        name = path.suffix.removeprefix(".by-")
        if not is_name(name) or name not in known:
            continue
        signed = _read_signed(path, site, site_key)
        time_s = seen_at(signed, name, witnesses.key_of(name))
        if time_s is None:
            raise CorruptError(
                f"the countersignature is not one of {name!r}", where=str(path), next_step=f"ask {name} for it again"
            )
        found.setdefault(signed.head, {})[name] = time_s
    heads = [Witnessed(h, tuple(sorted(by.items()))) for h, by in found.items() if len(by) >= max(1, quorum)]
    return tuple(sorted(heads, key=lambda w: w.head.size))


def verify_history(ledger: Ledger, witnessed: Sequence[Witnessed], remembered: Head | None = None) -> Head:
    """As `Ledger.verify`, against all witnessed heads, whose times bound those of the entries.

    Raises:
        CorruptError: damaged, cut or rewritten; or an entry claims a time after a witness had already seen it.
    """
    head = ledger.verify(remembered, *(w.head for w in witnessed))
    for seen in witnessed:
        last_ns = ledger.entry(seen.head.size - 1).time_ns if seen.head.size else 0
        for name, time_s in seen.by:
            if last_ns > (time_s + SKEW_S) * _NANO:
                raise CorruptError(
                    f"entry {seen.head.size - 1} is {last_ns // _NANO - time_s} s later than {name!r} saw it",
                    where=str(ledger.path),
                    next_step="compare the clocks of the site and the witness",
                )
    return head


def note_witnessed(ledger: Ledger, witnessed: Witnessed) -> int:
    """Write into the ledger that its head was witnessed; from here on no entry is earlier than the witnesses' times."""
    fact = WitnessedFact(witnessed.head.size, witnessed.head.root, dict(witnessed.by))
    return ledger.append(fact.KIND, fact.body(), not_before_ns=_seen_ns(witnessed))


def noted(ledger: Ledger, witnessed: Witnessed) -> bool:
    """Whether the ledger says already that a head was witnessed by these members."""
    wanted = WitnessedFact(witnessed.head.size, witnessed.head.root, dict(witnessed.by)).body()
    return any(e.kind == WitnessedFact.KIND and e.body == wanted for e in ledger.entries())


def require_witnessed(
    ledger: Ledger, index: int, witnessed: Iterable[Witnessed], now_ns: int, max_pending_s: float
) -> Decision:
    """Whether something may rest on an entry: it is witnessed, or has been pending for no longer than allowed.

    Time runs from the entry to `now_ns`, or to the latest time that a witness vouched for, when the clock is behind it.

    Raises:
        StoreError: no such entry.
        CorruptError: the ledger is damaged, or not the one that was witnessed.
    """
    entry = ledger.entry(index)
    heads = sorted(witnessed, key=lambda w: w.head.size)
    covering = next((w for w in heads if w.head.size > index), None)
    if covering is not None:
        if not check_proof(ledger.prove(index, covering.head), covering.head.root):
            raise CorruptError("the entry is not in the head that was witnessed", where=f"{ledger.path}:{index + 1}")
        names = ", ".join(name for name, _ in covering.by)
        return Decision(True, f"entry {index} is witnessed by {names} in a head of {covering.head.size} entries")
    floor_ns = max([entry.time_ns, *(_seen_ns(w) for w in heads)])
    age_s = (max(now_ns, floor_ns) - entry.time_ns) / _NANO
    behind = f"; the clock is {(floor_ns - now_ns) / _NANO:.0f} s behind the ledger" if now_ns < floor_ns else ""
    if behind and floor_ns - now_ns > SKEW_S * _NANO:
        return Decision(False, f"entry {index} is pending, and its age cannot be told{behind}")
    if age_s > max_pending_s:
        return Decision(
            False, f"entry {index} has been pending for {age_s:.0f} s (allowed: {max_pending_s:.0f}){behind}"
        )
    return Decision(True, f"entry {index} is pending for {age_s:.0f} s (allowed: {max_pending_s:.0f}){behind}")


def _seen_ns(witnessed: Witnessed) -> int:
    return min(time_s for _, time_s in witnessed.by) * _NANO  # the one that all of them vouch for


def _read_signed(path: Path, site: str, site_key: Ed25519PublicKey) -> SignedHead:
    try:
        signed = read_head(path.read_bytes(), str(path))
    except OSError as e:
        raise StoreError(f"the head cannot be read: {e.strerror}", where=str(path)) from None
    if signed.site != site or not signed_by_site(signed, site_key) or _name(signed.head) != path.stem:
        raise CorruptError(
            f"this head is not signed by site {site!r}", where=str(path), next_step="ask the site for it again"
        )
    return signed


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"*.{kind}") if p.stem.isdigit())


def _name(head: Head) -> str:
    return f"{head.size:012d}"
