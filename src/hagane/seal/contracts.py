"""Contracts on disk: TOML that an owner writes, signs, and a site verifies before it believes a word.

`load_contract` verifies form and signature only, so that an expired contract can still be shown;
`hagane.seal.permit` decides about dates and terms.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal.countries import is_country
from hagane.seal.keys import TrustStore
from hagane.seal.names import ROOT, check_name, is_name
from hagane.seal.signed_file import check_payload, check_signer, signature_path, write_signature
from hagane.terms import PURPOSES, ConfigError, Contract, ContractError, digest_bytes, parse_toml

PAYLOAD_TYPE = "application/vnd.hagane.contract+toml"
VERSION = 2
MAX_BYTES = 1 << 20
"""A contract is a page of text; nothing larger is parsed."""
MAX_SERIAL = 1 << 53
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


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


def sign_contract(contract_toml: Path, private_key: Ed25519PrivateKey) -> Path:
    """Sign the exact bytes of a contract file; returns the signature file beside it.

    Raises:
        ContractError: the contract is not well formed, or the signature cannot be written.
    """
    toml = _read(contract_toml)
    read_contract(toml, str(contract_toml))
    return write_signature(contract_toml, PAYLOAD_TYPE, toml, private_key)


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
    check_payload(toml, signature, PAYLOAD_TYPE, what="contract", where=where)
    owner = f"its owner {contract.owner!r}"
    key_id = check_signer(signature, trust.key_of(contract.owner), owner, what="contract", where=where)
    return SignedContract(contract, digest_bytes(toml), key_id, toml, signature)


def is_digest(text: object) -> bool:
    """True for a sha256 in 64 lower-case hex digits."""
    return type(text) is str and _DIGEST.fullmatch(text) is not None


def read_contract(toml: bytes, where: str = "contract") -> Contract:
    """The terms in TOML bytes, checked strictly but without a signature.

    Raises:
        ContractError: not UTF-8 TOML, unknown, missing or empty keys, unknown purposes or countries, bad names,
            digests or numbers.
    """
    if len(toml) > MAX_BYTES:
        raise ContractError(f"a contract of {len(toml)} bytes is none (at most {MAX_BYTES})", where=where)
    try:
        contract = parse_toml(toml.decode("utf-8"), Contract, where=where)
        _check_names(contract)
    except (UnicodeDecodeError, RecursionError):
        raise ContractError("not UTF-8 text in TOML", where=where) from None
    except ConfigError as e:
        raise ContractError(e.what, where=e.where or where, next_step=e.next_step) from None
    what, step = _fault(contract)
    if what:
        raise ContractError(what, where=where, next_step=step)
    return contract


def _check_names(contract: Contract) -> None:
    check_name(contract.owner)
    for site in contract.sites:
        check_name(site, "site name")
    for member in (*contract.may_merge, *contract.may_serve):
        check_name(member)


def _fault(contract: Contract) -> tuple[str, str]:
    """What makes a contract void whatever is asked, and the next step; two "" when nothing does."""
    for field in ("datasets", "residency", "sites", "purposes"):
        if not getattr(contract, field):
            return f"`{field}` is empty: the contract grants nothing", "name what it grants"
    if unknown := [c for c in contract.residency if not is_country(c)]:
        no_such = f"`residency` has no such country: {ascii(unknown[0])[1:-1]}"
        return no_such, 'use ISO 3166-1 alpha-2 codes in capitals, as "JP"'
    if contract.version != VERSION:
        return f"version {contract.version} of contracts is not known (known: {VERSION})", "let its owner write it anew"
    if contract.owner == ROOT:
        return f"{ROOT!r} signs sites and owns no data", "name the member that owns the data"
    if odd := [d for d in contract.datasets if not is_name(d)]:
        return f"`datasets` has no usable name: {odd[0]!a}", "use names as `hagane catalog ls` prints them"
    for purpose in contract.purposes:
        if purpose not in PURPOSES:
            near = difflib.get_close_matches(purpose, PURPOSES, 1)
            step = f"did you mean `{near[0]}`?" if near else f"use some of {', '.join(PURPOSES)}"
            return f"`purposes` has no such purpose: {purpose!a}", step
    for name, digest in contract.digests.items():
        if name not in contract.datasets:
            near = difflib.get_close_matches(name, contract.datasets, 1)
            step = f"did you mean `{near[0]}`?" if near else "name it in `datasets`, too"
            return f"`digests` names {name!a}, which is not in `datasets`", step
        if not is_digest(digest):
            return (
                f"`digests` of {name!r} is no sha256 in hex: {digest[:80]!a}",
                "fill it in with `hagane contract pin`",
            )
    if not 1 <= contract.serial <= MAX_SERIAL:
        return f"`serial` cannot be {contract.serial}", "use 1 for the first contract and count up"
    if contract.issued > contract.until:
        return f"it ends ({contract.until}) before it is issued ({contract.issued})", "give a later `until`"
    return "", ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ContractError(
            "no such contract", where=str(path), next_step="write one with `hagane contract new`"
        ) from None
    except OSError as e:
        raise ContractError(f"the contract cannot be read: {e.strerror}", where=str(path)) from None
