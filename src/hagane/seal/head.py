"""Signed heads of a ledger, as text that public tools read: a C2SP signed note (c2sp.org/signed-note) with a checkpoint
(c2sp.org/tlog-checkpoint), countersigned by witnesses with the time at which they saw it (c2sp.org/tlog-cosignature).

    hagane.invalid/plant-7
    1042
    <root, base64>

    — hagane.invalid/plant-7 <4 bytes of key id and the ledger's signature, base64>
    — member-cars <4 bytes of key id, 8 of Unix seconds, and the witness's signature, base64>
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.keys import public_of
from hagane.seal.merkle import Head
from hagane.seal.names import check_name, is_name
from hagane.terms import CorruptError

_ORIGIN = "hagane.invalid/"  # a name that belongs to nobody (RFC 2606): nothing is fetched from it
_DASH = "— "
_LOG, _WITNESS = b"\x01", b"\x04"  # kinds of Ed25519 signatures in a note: plain, and with a time
_MOST_BYTES, _MOST_SIGNATURES = 16_384, 64


@dataclass(frozen=True)
class SignedHead:
    """A head of one site's ledger with signatures, none of which is verified yet."""

    site: str
    """Name of the site whose ledger it is."""
    head: Head
    """Size and root."""
    signatures: tuple[tuple[str, bytes], ...] = ()
    """(name, key id and signature) of every signer, the ledger's own name being its origin."""

    @property
    def origin(self) -> str:
        """Name of the ledger in the note."""
        return _ORIGIN + self.site

    def text(self) -> bytes:
        """What is signed: three lines."""
        root = base64.b64encode(bytes.fromhex(self.head.root)).decode()
        return f"{self.origin}\n{self.head.size}\n{root}\n".encode()

    def note(self) -> bytes:
        """The text and the signatures, as they lie in a file."""
        lines = [f"{_DASH}{name} {base64.b64encode(data).decode()}\n" for name, data in self.signatures]
        return self.text() + b"\n" + "".join(lines).encode()


def sign_head(site: str, head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """A head signed by the site's host key.

    Raises:
        ConfigError: the site's name is not safe.
    """
    bare = SignedHead(check_name(site, "site name"), head)
    data = _key_id(bare.origin, _LOG, public_of(key)) + key.sign(bare.text())
    return replace(bare, signatures=((bare.origin, data),))


def countersign(signed: SignedHead, name: str, key: Ed25519PrivateKey, time_s: int) -> SignedHead:
    """The head with a witness's signature and time added. It says only that the witness saw it: see `Witness`."""
    signature = key.sign(_witness_text(signed, time_s))
    data = _key_id(check_name(name), _WITNESS, public_of(key)) + struct.pack(">Q", time_s) + signature
    others = tuple(s for s in signed.signatures if s[0] != name)
    return replace(signed, signatures=(*others, (name, data)))


def signed_by_site(signed: SignedHead, key: Ed25519PublicKey) -> bool:
    """True when the site's host key signed the head."""
    wanted = _key_id(signed.origin, _LOG, key)
    return any(
        data[:4] == wanted and _holds(key, data[4:], signed.text())
        for name, data in signed.signatures
        if name == signed.origin
    )


def seen_at(signed: SignedHead, name: str, key: Ed25519PublicKey) -> int | None:
    """When a witness signed the head, Unix seconds; None when it did not."""
    wanted = _key_id(name, _WITNESS, key)
    for signer, data in signed.signatures:
        if signer == name and data[:4] == wanted and len(data) == 4 + 8 + 64:
            (time_s,) = struct.unpack(">Q", data[4:12])
            if _holds(key, data[12:], _witness_text(signed, time_s)):
                return int(time_s)
    return None


def read_head(data: bytes, where: str) -> SignedHead:
    """A signed head in exactly the form that `SignedHead.note` writes; its signatures are not verified.

    Raises:
        CorruptError: another form, too long, a hash or base64 that is not exact, a site's name that is not safe.
    """
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError("too long")
        text, _, tail = data.decode("utf-8").partition("\n\n")
        origin, size, root = text.split("\n")
        lines = tail.split("\n")[:-1]
        pairs = [line.removeprefix(_DASH).split(" ") for line in lines]
        signed = SignedHead(
            origin.removeprefix(_ORIGIN),
            Head(int(size), base64.b64decode(root, validate=True).hex()),
            tuple((name, base64.b64decode(signature, validate=True)) for name, signature in pairs),
        )
        exact = signed.note() == data and is_name(signed.site) and 0 <= signed.head.size < 1 << 63
        exact = exact and len(signed.head.root) == 64 and 0 < len(lines) <= _MOST_SIGNATURES
        exact = exact and len({name for name, _ in signed.signatures}) == len(lines)
    except ValueError:
        exact = False
    if not exact:
        raise CorruptError(
            "this is no signed head of a ledger, or it was changed", where=where, next_step="ask for it again"
        )
    return signed


def _witness_text(signed: SignedHead, time_s: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % time_s + signed.text()


def _key_id(name: str, kind: bytes, key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + key.public_bytes_raw()).digest()[:4]


def _holds(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
