"""Ed25519 keys as PEM files, and the folder of public keys that a site trusts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.names import check_name, is_name
from hagane.seal.private_files import read_private
from hagane.terms import ContractError, digest_bytes


def generate_key(path: Path) -> Ed25519PrivateKey:
    """Make a private key and write it as PEM (PKCS8, mode 0600). An existing file is never overwritten.

    Raises:
        ContractError: the file exists or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_new(path, pem, 0o600)
    return key


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read a private key that `generate_key` wrote.

    Raises:
        ContractError: no such file, other people may read it, or it is no Ed25519 private key.
    """
    pem = read_private(path)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ContractError(
            "not an Ed25519 private key in PEM", where=str(path), next_step="make one with `hagane contract keygen`"
        )
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key (PEM).

    Raises:
        ContractError: it cannot be read, or is no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as e:
        raise ContractError(f"the key cannot be read: {e.strerror}", where=str(path)) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ContractError("not an Ed25519 public key in PEM", where=str(path))
    return key


def public_of(private_key: Ed25519PrivateKey) -> Ed25519PublicKey:
    """The public half of a key."""
    return private_key.public_key()


def key_id_of(public_key: Ed25519PublicKey) -> str:
    """sha256 over the key's DER form (SubjectPublicKeyInfo, RFC 8410), 64 hex digits."""
    return digest_bytes(
        public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def public_pem(public_key: Ed25519PublicKey) -> bytes:
    """The public key as PEM, the form of the files in a trust store."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class TrustStore:
    """The owners that a site knows: a folder with one `<owner>.pub` (PEM) each."""

    folder: Path
    """Where the public keys lie."""

    def add(self, owner: str, public_key: Ed25519PublicKey) -> Path:
        """Trust an owner's key; returns the file. The same key again changes nothing.

        Raises:
            ConfigError: the owner's name is not safe.
            ContractError: another key is trusted under this name already, or the folder cannot be written.
        """
        path = self.path_of(owner)
        if path.exists():
            if key_id_of(self.key_of(owner)) == key_id_of(public_key):
                return path
            raise ContractError(
                f"another key of {owner!r} is trusted already",
                where=str(path),
                next_step="ask the owner which key is right, then remove the old file by hand",
            )
        write_new(path, public_pem(public_key), 0o644)
        return path

    def path_of(self, owner: str) -> Path:
        """The file of an owner's key, whether or not it exists.

        Raises:
            ConfigError: the owner's name is not safe.
        """
        return self.folder / f"{check_name(owner)}.pub"

    def owners(self) -> tuple[str, ...]:
        """Names of all trusted owners, sorted."""
        return tuple(sorted(p.stem for p in self.folder.glob("*.pub") if is_name(p.stem)))

    def key_of(self, owner: str) -> Ed25519PublicKey:
        """The public key of an owner.

        Raises:
            ConfigError: the owner's name is not safe.
            ContractError: the owner is not known here, or the file is no Ed25519 public key.
        """
        path = self.path_of(owner)
        if not path.exists():
            known = ", ".join(self.owners()) or "nobody yet"
            raise ContractError(
                f"owner {owner!r} is not known on this site (known: {known})",
                where=str(self.folder),
                next_step=f"get {owner}.pub from the owner by a way you trust and put it in this folder",
            )
        return read_public(path)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet: whole, synced, with its mode from the first byte on.

    Raises:
        ContractError: the file exists or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ContractError(
            "the file exists and is not overwritten", where=str(path), next_step="choose another name or folder"
        ) from None
    except OSError as e:
        raise ContractError(f"cannot be written: {e.strerror}", where=str(path)) from None
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        path.unlink(missing_ok=True)
        raise ContractError(f"cannot be written: {e.strerror}", where=str(path)) from None
