"""Our signed entries in public libraries, theirs in ours: securesystemslib (DSSE), in-toto-attestation (Statement)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import Entry, Signer, key_id_of, public_of
from hagane.seal.entry import signed_by, write_line
from hagane.seal.envelope import read_envelope, verify_envelope
from hagane.seal.facts import ReadFact
from hagane.seal.statement import PAYLOAD_TYPE, Statement, read_statement
from hagane.terms import ContractError

KEY = Ed25519PrivateKey.from_private_bytes(b"7" * 32)
FACT = ReadFact("road-1", "a" * 64, "b" * 64, "anchor", "plant-7")
NANO = 1_790_000_000 * 10**9


def ours() -> dict[str, Any]:
    """The envelope in a line of a ledger."""
    line = write_line(Entry(3, "read", NANO, FACT.body()), Signer("plant-7", KEY))
    return dict(json.loads(line)["entry"]["what_signed"])


def test_securesystemslib_verifies_our_envelope_and_refuses_a_changed_one() -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    error = pytest.importorskip("securesystemslib.exceptions")
    key = signer.SSlibKey.from_crypto(public_of(KEY), keyid=key_id_of(public_of(KEY)))
    other = signer.SSlibKey.from_crypto(public_of(Ed25519PrivateKey.generate()), keyid=key.keyid)
    assert list(dsse.Envelope.from_dict(ours()).verify([key], 1)) == [key.keyid]
    with pytest.raises(error.VerificationError):
        dsse.Envelope.from_dict(ours()).verify([other], 1)
    payload = dsse.Envelope.from_dict(ours()).payload
    for at in range(len(payload)):
        changed = dsse.Envelope.from_dict(ours())
        changed.payload = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        with pytest.raises(error.VerificationError):
            changed.verify([key], 1)


def test_we_verify_an_envelope_of_securesystemslib_and_refuse_a_changed_one() -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    public = signer.SSlibKey.from_crypto(public_of(KEY), keyid=key_id_of(public_of(KEY)))
    said = Statement("read", "plant-7", 3, NANO, FACT.body())
    theirs = dsse.Envelope(said.payload(), PAYLOAD_TYPE, {})
    theirs.sign(signer.CryptoSigner(KEY, public))
    data = json.dumps(theirs.to_dict()).encode()
    envelope = read_envelope(data, "theirs")
    assert verify_envelope(envelope, public_of(KEY)) and read_statement(envelope) == said
    assert json.loads(data) == ours()  # Ed25519 has no chance in it: the same bytes
    for at in range(len(data)):
        bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            changed = read_envelope(bad, "theirs")
        except ContractError:
            continue
        assert not verify_envelope(changed, public_of(KEY)) or changed == envelope


def test_in_toto_attestation_reads_our_statement() -> None:
    statement = pytest.importorskip("in_toto_attestation.v1.statement")
    from google.protobuf import json_format

    payload = Statement("read", "plant-7", 3, NANO, FACT.body()).payload()
    pb = json_format.Parse(payload, statement.spb.Statement())
    read = statement.Statement.copy_from_pb(pb)
    read.validate()
    assert pb.type == "https://in-toto.io/Statement/v1" and pb.predicate_type == "https://hagane.invalid/ledger/v1/read"
    assert {s.name: dict(s.digest) for s in pb.subject} == {
        "contract_sha256": {"sha256": "a" * 64},
        "content_sha256": {"sha256": "b" * 64},
    }
    assert pb.predicate["facts"]["dataset"] == "road-1"
    del pb.subject[:]
    with pytest.raises(ValueError):
        statement.Statement.copy_from_pb(pb).validate()


def test_without_them_our_own_reader_agrees() -> None:
    envelope = read_envelope(json.dumps(ours()).encode(), "ours")
    entry = Entry(3, "read", NANO, FACT.body(), 0, envelope)
    assert signed_by(entry, "plant-7", public_of(KEY)) and not signed_by(
        entry, "plant-7", public_of(Ed25519PrivateKey.generate())
    )
