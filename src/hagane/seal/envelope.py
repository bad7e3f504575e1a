"""DSSE: signed bytes in a JSON envelope that in-toto tools read too (github.com/secure-systems-lab/dsse v1.0)."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.keys import key_id_of, public_of
from hagane.terms import ContractError


@dataclass(frozen=True)
class Envelope:
    """A DSSE envelope after its form was checked; nothing in it is verified yet."""

    payload_type: str
    """Media type of the payload."""
    payload: bytes
    """The signed bytes."""
    signatures: tuple[tuple[str, bytes], ...]
    """(key id, signature) of every signer."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what DSSE signs ("DSSEv1", lengths and contents, separated by spaces)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_payload(payload_type: str, payload: bytes, *private_keys: Ed25519PrivateKey) -> Envelope:
    """Sign bytes with one key or several."""
    message = pae(payload_type, payload)
    signatures = tuple((key_id_of(public_of(key)), key.sign(message)) for key in private_keys)
    return Envelope(payload_type, payload, signatures)


def seal_bytes(payload_type: str, payload: bytes, *private_keys: Ed25519PrivateKey) -> bytes:
    """Sign bytes with one key or several; returns the envelope as JSON text."""
    return write_envelope(sign_payload(payload_type, payload, *private_keys))


def write_envelope(envelope: Envelope) -> bytes:
    """The one JSON text that we write for an envelope."""
    return (json.dumps(envelope_table(envelope), indent=1) + "\n").encode()


def envelope_table(envelope: Envelope) -> dict[str, Any]:
    """An envelope as JSON."""
    return {
        "payloadType": envelope.payload_type,
        "payload": base64.b64encode(envelope.payload).decode(),
        "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in envelope.signatures],
    }


def read_envelope(data: bytes, where: str) -> Envelope:
    """Check the form of an envelope.

    Raises:
        ContractError: not JSON, a part is missing or has the wrong type, base64 that is not exact.
    """
    try:
        return read_envelope_table(json.loads(data, object_pairs_hook=_once))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ContractError(
            "the signature file is damaged or no DSSE envelope",
            where=where,
            next_step="ask the owner to send the contract and its signature again",
        ) from None


def read_envelope_table(table: Any) -> Envelope:
    """Check the form of an envelope that was read as JSON. Fields that DSSE does not know are passed over, as it asks.

    Raises:
        KeyError, TypeError, ValueError: a part is missing, has the wrong type, or is no exact base64.
    """
    return Envelope(
        _text(table["payloadType"]),
        _bytes(table["payload"]),
        tuple((_text(s["keyid"]), _bytes(s["sig"])) for s in table["signatures"]),
    )


def verify_envelope(envelope: Envelope, public_key: Ed25519PublicKey) -> bool:
    """True when a signature under this key's id is valid for the payload."""
    wanted = key_id_of(public_key)
    message = pae(envelope.payload_type, envelope.payload)
    for key_id, signature in envelope.signatures:
        if key_id != wanted:
            continue
        try:
            public_key.verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):  # two readers could each believe another copy
        raise ValueError("a key occurs twice")
    return table


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _bytes(value: object) -> bytes:
    """Exact base64: the spare bits of the last character must be 0, so that every changed character shows."""
    text = _text(value)
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not exact base64")
    return data
