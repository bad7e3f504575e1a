"""The file of an owner's wrapping keys: what lies in it, with a passphrase or without.

The file is JSON that exactly our encoder writes, so no changed byte is read as the same. Without a passphrase its
data are covered by a sha256 (against accidents); with one they are ciphertext under AES-256-GCM, the key made by
scrypt (RFC 7914).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hagane.terms import ContractError, CorruptError, digest_bytes

T = TypeVar("T")
VERSION = 1
SCRYPT = (1 << 16, 8, 1)
"""n, r, p: about .2 s and 64 MiB a guess."""


class WrappingKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One generation of the key that wraps the keys of one data set's, or one run's, sealed files."""

    name: str
    """Data set or run."""
    generation: int
    """From 1; a rotation adds one and destroys those before."""
    key: bytes
    """32 bytes."""
    made_ns: int
    """When, Unix nanoseconds."""

    def __repr__(self) -> str:
        return f"WrappingKey({self.name!r}, {self.generation})"  # the key never gets into a message or a log


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sealed folder that needs one of the keys."""

    name: str
    """Data set or run."""
    folder_id: str
    """32 hex digits, in its sealed.json."""
    path: str
    """Where it was made; it may have been moved since."""


class Tombstone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that was destroyed on purpose: no other may take its name."""

    name: str
    """Data set or run."""
    time_ns: int
    """When."""
    recorded: bool
    """True once the ledger has it."""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An owner's keys."""

    owner: str
    """The member, or who runs the site."""
    keys: tuple[WrappingKey, ...] = ()
    """All living generations."""
    places: tuple[Place, ...] = ()
    """Sealed folders that need them."""
    erased: tuple[Tombstone, ...] = ()
    """Keys destroyed on purpose."""


class _Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    owner: str
    n: int
    r: int
    p: int
    salt: bytes
    nonce: bytes
    sha256: str
    data: bytes


@dataclass(frozen=True)
class Lock:
    """The key made of a passphrase, and what it was made with."""

    salt: bytes
    """16 random bytes."""
    cost: tuple[int, int, int]
    """scrypt's n, r, p."""
    key: bytes
    """32 bytes."""


def new_lock(passphrase: bytes) -> Lock:
    """A lock for a new passphrase."""
    salt = os.urandom(16)
    return Lock(salt, SCRYPT, _stretch(passphrase, salt, SCRYPT))


def salt_of(data: bytes, where: Path) -> bytes:
    """What the passphrase is stretched with; empty when the file needs none.

    Raises:
        CorruptError: the file is damaged.
    """
    return _outer(data, where).salt


def open_lock(data: bytes, passphrase: bytes, where: Path) -> Lock:
    """The lock of an existing file; whether the passphrase is right shows in `decode`.

    Raises:
        CorruptError: the file is damaged, or asks for work beyond reason.
    """
    outer = _outer(data, where)
    cost = (outer.n, outer.r, outer.p)
    return Lock(outer.salt, cost, _stretch(passphrase, outer.salt, cost))


def encode(file: KeyFile, lock: Lock | None) -> bytes:
    """The bytes of the file."""
    body = msgspec.json.encode(file)
    if lock is None:
        return msgspec.json.encode(_Outer(VERSION, file.owner, 0, 0, 0, b"", b"", digest_bytes(body), body)) + b"\n"
    nonce = os.urandom(12)
    outer = _Outer(VERSION, file.owner, *lock.cost, lock.salt, nonce, "", b"")
    sealed = AESGCM(lock.key).encrypt(nonce, body, msgspec.json.encode(outer))
    return msgspec.json.encode(msgspec.structs.replace(outer, data=sealed)) + b"\n"


def decode(data: bytes, lock: Lock | None, where: Path, owner: str) -> KeyFile:
    """What `encode` was given.

    Raises:
        ContractError: the passphrase is wrong.
        CorruptError: the file is damaged, or that of another owner.
    """
    outer = _outer(data, where)
    if lock is None:
        if outer.n or digest_bytes(outer.data) != outer.sha256:
            raise _damaged(where)
        body = outer.data
    else:
        try:
            head = msgspec.structs.replace(outer, data=b"")
            body = AESGCM(lock.key).decrypt(outer.nonce, outer.data, msgspec.json.encode(head))
        except (InvalidTag, ValueError):
            raise ContractError(
                "the passphrase is wrong, or the file of keys is damaged",
                where=str(where),
                next_step="try again; if it stays so, take the file from a copy",
            ) from None
    file = _parse(body, KeyFile, where)
    if outer.owner != file.owner or file.owner != owner or any(len(k.key) != 32 for k in file.keys):
        raise _damaged(where)
    return file


def _stretch(passphrase: bytes, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    return Scrypt(salt, 32, n, r, p).derive(passphrase)


def _outer(data: bytes, where: Path) -> _Outer:
    outer = _parse(data[:-1], _Outer, where)
    plain = (outer.n, outer.r, outer.p) == (0, 0, 0) and not outer.salt and not outer.nonce
    # a file that asks for terabytes of memory, or for next to no work, is none of ours
    costly = outer.n in (1 << k for k in range(15, 21)) and outer.r == 8 and outer.p == 1
    form = plain or (costly and len(outer.salt) == 16 and len(outer.nonce) == 12 and not outer.sha256)
    if data[-1:] != b"\n" or outer.version != VERSION or not form:
        raise _damaged(where)
    return outer


def _parse(data: bytes, kind: type[T], where: Path) -> T:
    try:
        value = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _damaged(where) from None
    if msgspec.json.encode(value) != data:
        raise _damaged(where)
    return value


def _damaged(where: Path) -> CorruptError:
    return CorruptError(
        "the file of keys is damaged, or another owner's", where=str(where), next_step="take it from a copy"
    )
