"""What is signed when weights leave: an in-toto statement over every file, in a DSSE envelope, by every owner.

OUT/release.json holds it. `check_release` needs only the folder and public keys, so whoever receives the weights can
check who let them go, what was checked, and what could not be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal.envelope import read_envelope, seal_bytes, verify_envelope, write_envelope
from hagane.seal.keys import TrustStore, key_id_of, public_of
from hagane.seal.release import CANNOT_EXCLUDE, Gate, Passed
from hagane.seal.release_claims import as_name, as_sha256
from hagane.seal.statement import PAYLOAD_TYPE, STATEMENT_TYPE
from hagane.seal.tensorfile import refusal
from hagane.terms import ContractError, canonical_json, digest_bytes, digest_file

RELEASE = "release.json"
"""Name of the statement in a released folder."""
PREDICATE_TYPE = "https://hagane.invalid/release/v1"
_MOST_BYTES = 2**24


@dataclass(frozen=True)
class Release:
    """A released folder whose statement and files were checked."""

    owners: tuple[str, ...]
    """Who signed: every owner of a tensor in it."""
    facts: Mapping[str, Any]
    """The statement's predicate."""
    files: Mapping[str, str]
    """File name to sha256."""
    digest: str
    """sha256 of the signed payload; the ledger names it."""


def sign_release(
    files: Mapping[str, str],
    passed: Passed,
    gate: Gate,
    keys: Mapping[str, Ed25519PrivateKey],
    trust: TrustStore,
    *,
    lineage: Mapping[str, Any] | None = None,
    membership: Mapping[str, Any] | None = None,
) -> bytes:
    """The signed statement over files that passed.

    Args:
        files: every file that leaves, name to sha256.
        passed: from `pass_tensors`.
        gate: what was asked.
        keys: owner to private key.
        trust: the site's public keys: a key that is not its owner's signs nothing.
        lineage: from `lineage_of`.
        membership: figures of the membership-inference check; None says that none was made.

    Raises:
        Refused: an owner of a tensor that leaves does not sign.
        ContractError: an owner is not known here.
    """
    owners = sorted({e.owner for e in gate.expected})
    for owner in owners:
        if owner not in keys:
            raise refusal(f"weights of {owner!r} leave, and {owner!r} does not sign", RELEASE, f"--key {owner}=KEY.pem")
        if key_id_of(public_of(keys[owner])) != key_id_of(trust.key_of(owner)):
            raise refusal(f"the key given for {owner!r} is not the one trusted here", RELEASE, "use the owner's key")
    free = passed.free_bits + 8 * len(canonical_json([lineage, membership]))
    facts = {
        "owners": owners,
        "list": gate.digest,
        "anchor": passed.anchor,
        "tensors": len(gate.expected),
        "numbers": passed.numbers,
        "frozen_numbers": passed.frozen,
        "bytes": passed.size,
        "budget_bytes": gate.budget_bytes,
        "rounding": gate.rounding,
        "free_bits": free,
        "told_bits": passed.told_bits,
        "cannot_exclude": CANNOT_EXCLUDE,
        "lineage": lineage,
        "membership": membership,
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": facts,
    }
    return seal_bytes(PAYLOAD_TYPE, canonical_json(statement), *(keys[owner] for owner in owners))


def check_release(folder: Path, trust: TrustStore) -> Release:
    """Check a released folder: the statement's signatures, and every file against it.

    Raises:
        ContractError: no statement, damaged, an owner's signature missing or forged, an owner not known here, a
            file that differs, is missing, or is not named.
    """
    where = str(folder / RELEASE)
    try:
        with (folder / RELEASE).open("rb") as f:
            data = f.read(_MOST_BYTES)
    except OSError as e:
        raise ContractError(f"no signed release: {e.strerror}", where=where) from None
    envelope = read_envelope(data, where)
    if write_envelope(envelope) != data or envelope.payload_type != PAYLOAD_TYPE:
        raise _bad("the statement is not written as it was signed", where)
    files, facts = _statement(envelope.payload, where)
    owners = facts["owners"]
    if len(envelope.signatures) != len(owners):
        raise _bad(f"{len(owners)} owners have to sign, {len(envelope.signatures)} did", where)
    for owner in owners:
        if not verify_envelope(envelope, trust.key_of(owner)):
            raise _bad(f"the signature of {owner!r} is missing or forged", where)
    _check_files(folder, files)
    return Release(tuple(owners), facts, files, digest_of(data))


def digest_of(statement: bytes) -> str:
    """sha256 of the signed payload of a statement."""
    return digest_bytes(read_envelope(statement, RELEASE).payload)


def _statement(payload: bytes, where: str) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        table = json.loads(payload)
        facts = table["predicate"]
        files = {s["name"]: as_sha256(s["digest"]["sha256"]) for s in table["subject"]}
        whole = canonical_json(table) == payload and len(files) == len(table["subject"])
        known = (table["_type"], table["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
        owners = [as_name(o) for o in facts["owners"]]
        if not (whole and known and owners) or len(set(owners)) < len(owners):
            raise ValueError("of another form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _bad("the statement is no statement about a release", where) from None
    return files, facts


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    here = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    here.pop(RELEASE)
    for name in sorted(set(here) ^ set(files)):
        raise _bad("is missing" if name in files else "was not released", str(folder / name))
    for name, path in sorted(here.items()):
        if path.is_symlink() or not path.is_file() or digest_file(path) != files[name]:
            raise _bad("is not the file that was released", str(path))


def _bad(what: str, where: str) -> ContractError:
    return ContractError(what, where=where, next_step="do not use these weights; ask their owner for them again")
