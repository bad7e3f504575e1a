"""A text file and its signature beside it: FILE and FILE.sig (a DSSE envelope of FILE's exact bytes)."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.envelope import read_envelope, seal_bytes, verify_envelope
from hagane.seal.keys import key_id_of
from hagane.terms import ContractError
from hagane.terms.files import write_whole


def signature_path(path: Path) -> Path:
    """Where the signature of a file lies: `<file>.sig`."""
    return path.with_name(path.name + ".sig")


def write_signature(path: Path, payload_type: str, data: bytes, private_key: Ed25519PrivateKey) -> Path:
    """Write the signature of a file's bytes beside it, whole or not at all; returns its path.

    Raises:
        ContractError: it cannot be written.
    """
    target = signature_path(path)
    try:
        write_whole(target, [seal_bytes(payload_type, data, private_key)])
    except OSError as e:
        raise ContractError(f"the signature cannot be written: {e.strerror}", where=str(target)) from None
    return target


def check_payload(data: bytes, signature: bytes, payload_type: str, *, what: str, where: str) -> None:
    """Check that a signature is one of exactly these bytes as such a document; whose it is stays open.

    Args:
        data: the signed bytes.
        signature: the envelope (JSON).
        payload_type: media type of the document.
        what: the document in messages: "contract".
        where: the file in messages.

    Raises:
        ContractError: no envelope, one of another kind, or one of other bytes.
    """
    envelope = read_envelope(signature, f"{where}.sig")
    if envelope.payload_type != payload_type:
        raise ContractError(f"the signature is for {envelope.payload_type!a}, not for a {what}", where=where)
    if envelope.payload != data:
        raise ContractError(
            f"the {what} was changed after it was signed",
            where=where,
            next_step="use the text that was signed, or let it be signed again",
        )


def check_signer(signature: bytes, key: Ed25519PublicKey, signer: str, *, what: str, where: str) -> str:
    """Check that a signature whose payload was checked is by this key; returns the key's id.

    Raises:
        ContractError: it is by another key, or forged.
    """
    envelope, key_id = read_envelope(signature, f"{where}.sig"), key_id_of(key)
    if key_id not in {k for k, _ in envelope.signatures}:
        raise ContractError(
            f"the {what} is signed by another key than that of {signer}",
            where=where,
            next_step=f"only {signer} can sign it; the key known here is {key_id[:16]}...",
        )
    if not verify_envelope(envelope, key):
        raise ContractError(
            f"the signature is forged or damaged: it is not one by {signer}",
            where=where,
            next_step=f"do not use it; ask {signer}",
        )
    return key_id
