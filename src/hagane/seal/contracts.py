"""Contracts on disk: TOML that an owner writes, signs, and a site verifies before it believes a word.

`load_contract` verifies form and signature only, so that an expired contract can still be shown;
`hagane.seal.permit` decides about dates and terms.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal.countries import is_country
from hagane.seal.envelope import read_envelope, seal_bytes, verify_envelope
from hagane.seal.keys import TrustStore, key_id_of
from hagane.seal.names import check_name, is_name
from hagane.terms import PURPOSES, ConfigError, Contract, ContractError, digest_bytes, parse_toml

PAYLOAD_TYPE = "application/vnd.hagane.contract+toml"
VERSION = 1


@dataclass(frozen=True)
class SignedContract:
    """A contract whose owner's signature was verified by `load_contract`."""

    contract: Contract
    """The terms."""
    digest: str
    """sha256 of the exact TOML bytes."""
    key_id: str
    """Id of the owner's key that signed."""
    toml: bytes
    """The exact TOML bytes."""
    signature: bytes
    """The DSSE envelope (JSON)."""


def signature_path(contract_toml: Path) -> Path:
    """Where the signature of a contract file lies: `<file>.sig`."""
    return contract_toml.with_name(contract_toml.name + ".sig")


def sign_contract(contract_toml: Path, private_key: Ed25519PrivateKey) -> Path:
    """Sign the exact bytes of a contract file; returns the signature file beside it.

    Raises:
        ContractError: the contract is not well formed, or the signature cannot be written.
    """
    toml = _read(contract_toml)
    read_contract(toml, str(contract_toml))
    path = signature_path(contract_toml)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as f:
            f.write(seal_bytes(PAYLOAD_TYPE, toml, private_key))
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise ContractError(f"the signature cannot be written: {e.strerror}", where=str(path)) from None
    return path


def load_contract(path: Path, trust: TrustStore) -> SignedContract:
    """Read a contract and verify its form and its owner's signature.

    Raises:
        ContractError: missing, not well formed, unsigned, changed after signing, of an unknown owner, or
            signed by another key than the owner's.
    """
    toml = _read(path)
    try:
        signature = signature_path(path).read_bytes()
    except FileNotFoundError:
        raise ContractError(
            "the contract is not signed",
            where=str(path),
            next_step=f"its owner signs it: hagane contract sign {path} --key KEY.pem",
        ) from None
    except OSError as e:
        raise ContractError(f"the signature cannot be read: {e.strerror}", where=str(signature_path(path))) from None
    return verify_contract(toml, signature, trust, where=str(path))


def verify_contract(toml: bytes, signature: bytes, trust: TrustStore, *, where: str = "contract") -> SignedContract:
    """As `load_contract`, from bytes; `where` names them in messages.

    Raises:
        ContractError: as `load_contract`.
    """
    contract = read_contract(toml, where)
    envelope = read_envelope(signature, f"{where}.sig")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ContractError(f"the signature is for {envelope.payload_type!r}, not for a contract", where=where)
    if envelope.payload != toml:
        raise ContractError(
            "the contract was changed after it was signed",
            where=where,
            next_step="use the text that was signed, or ask the owner to sign the new one",
        )
    key = trust.key_of(contract.owner)
    key_id = key_id_of(key)
    if key_id not in {k for k, _ in envelope.signatures}:
        raise ContractError(
            f"the contract is signed by another key than that of its owner {contract.owner!r}",
            where=where,
            next_step=f"only the owner can sign; the key of {contract.owner!r} known here is {key_id[:16]}...",
        )
    if not verify_envelope(envelope, key):
        raise ContractError(
            f"the signature is forged or damaged: it is not one by {contract.owner!r}",
            where=where,
            next_step="do not use the data; ask the owner",
        )
    return SignedContract(contract, digest_bytes(toml), key_id, toml, signature)


def read_contract(toml: bytes, where: str = "contract") -> Contract:
    """The terms in TOML bytes, checked strictly but without a signature.

    Raises:
        ContractError: not UTF-8 TOML, unknown, missing or empty keys, unknown purposes or countries, bad names.
    """
    try:
        contract = parse_toml(toml.decode("utf-8"), Contract, where=where)
        check_name(contract.owner)
        for site in contract.sites:
            check_name(site, "site name")
    except (UnicodeDecodeError, RecursionError):
        raise ContractError("not UTF-8 text in TOML", where=where) from None
    except ConfigError as e:
        raise ContractError(e.what, where=e.where or where, next_step=e.next_step) from None
    for field in ("datasets", "residency", "sites", "purposes"):
        if not getattr(contract, field):
            raise ContractError(f"`{field}` is empty: the contract grants nothing", where=where)
    if unknown := [c for c in contract.residency if not is_country(c)]:
        raise ContractError(
            f"`residency` has no such country: {', '.join(unknown)}",
            where=where,
            next_step='use ISO 3166-1 alpha-2 codes in capitals, as "JP"',
        )
    if contract.version != VERSION:
        raise ContractError(f"version {contract.version} of contracts is not known (known: {VERSION})", where=where)
    if odd := [d for d in contract.datasets if not is_name(d)]:
        raise ContractError(f"`datasets` has no usable name: {odd[0]!a}", where=where)
    for purpose in contract.purposes:
        if purpose not in PURPOSES:
            near = difflib.get_close_matches(purpose, PURPOSES, 1)
            step = f"did you mean `{near[0]}`?" if near else f"use some of {', '.join(PURPOSES)}"
            raise ContractError(f"`purposes` has no such purpose: {purpose!a}", where=where, next_step=step)
    return contract


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ContractError(
            "no such contract", where=str(path), next_step="write one with `hagane contract new`"
        ) from None
    except OSError as e:
        raise ContractError(f"the contract cannot be read: {e.strerror}", where=str(path)) from None
