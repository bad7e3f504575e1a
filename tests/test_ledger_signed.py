"""Signed entries and their statements, and the hashes kept beside a ledger: bound to their place, found if changed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import Entry, Ledger, Signer, check_proof, public_of
from hagane.seal.entry import BadLineError, check_lines, read_line, signed_by, write_line
from hagane.seal.facts import FACTS, CheckpointFact, Fact, ReadFact, RunFact, read_fact
from hagane.seal.merkle import leaf_hash, nodes_of, prove_leaf, root_of
from hagane.terms import ContractError, CorruptError, canonical_json

NANO = 1_790_000_000 * 10**9
SIGNER = Signer("plant-7", Ed25519PrivateKey.from_private_bytes(b"7" * 32))
KEY = public_of(SIGNER.key)
A, B = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def ledger_of(path: Path, n: int, signer: Signer | None = None) -> Ledger:
    """A ledger of n entries, written at once."""
    lines = (write_line(Entry(i, "read", NANO + i, {"dataset": f"road-{i}"}), signer) for i in range(n))
    path.write_bytes(b"".join(lines))
    return Ledger(path, lambda: NANO + n, signer)


def test_a_signed_entry_reads_as_an_unsigned_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", lambda: NANO, SIGNER)
    fact = ReadFact("road-1", A, B, "anchor", "plant-7")
    ledger.note(fact)
    Ledger(ledger.path, lambda: NANO).note(fact)
    first, second = ledger.entries()
    assert first.body == second.body == fact.body() and read_fact(first.kind, first.body) == fact
    assert signed_by(first, "plant-7", KEY) and not signed_by(second, "plant-7", KEY)
    assert not signed_by(first, "plant-8", KEY)
    assert not signed_by(first, "plant-7", public_of(Ed25519PrivateKey.generate()))
    assert first.envelope is not None
    table = json.loads(first.envelope.payload)
    assert table["_type"] == "https://in-toto.io/Statement/v1"
    assert {(s["name"], s["digest"]["sha256"]) for s in table["subject"]} == {
        ("contract_sha256", A),
        ("content_sha256", B),
    }


def test_a_signature_is_bound_to_its_place(tmp_path: Path) -> None:
    line = write_line(Entry(3, "erase", NANO, {"dataset": "road-1"}), SIGNER)
    for change in ({"index": 4}, {"time_ns": NANO + 1}, {"type": "read"}):
        table = {**json.loads(line)["entry"], **change}
        moved = canonical_json({"entry": table, "leaf": leaf_hash(canonical_json(table)).hex()}) + b"\n"
        with pytest.raises(BadLineError):
            read_line(moved)
    assert read_line(line).index == 3


@pytest.mark.parametrize("signer", [None, SIGNER])
def test_every_flipped_bit_of_a_line_is_found(signer: Signer | None) -> None:
    line = write_line(Entry(0, "read", NANO, {"dataset": "road-1", "to": None}, 5), signer)
    for at in range(len(line)):
        for bit in range(8):
            bad = line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :]
            with pytest.raises(BadLineError):
                check_lines([bad], 0, 0)


def test_every_flipped_bit_of_a_signed_statement_is_found_although_the_line_is_hashed_again() -> None:
    line = write_line(Entry(0, "read", NANO, {"dataset": "road-1"}), SIGNER)
    data = line[len(b'{"entry":') : line.index(b',"leaf":')]
    for at in range(len(data)):
        for bit in (0, 1, 5):
            bad = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                entry = read_line(b'{"entry":' + bad + b',"leaf":"' + leaf_hash(bad).hex().encode() + b'"}\n')
            except BadLineError:
                continue
            assert not signed_by(entry, "plant-7", KEY)


def test_the_quick_look_and_the_strict_one_agree() -> None:
    lines = [write_line(Entry(i, "read", NANO + i, {"n": i}, i % 3), None if i % 2 else SIGNER) for i in range(60)]
    strict = [leaf_hash(line[len(b'{"entry":') : line.rindex(b',"leaf":')]) for line in lines]
    for first in (0, 5, 9, 10):  # with and without a change of the index's digits
        assert check_lines(lines[first:], first, 0) == (strict[first:], NANO + 59)
    rng = random.Random(6962)
    for _ in range(200):  # lines moved, doubled or dropped, each sound in itself
        lie = list(lines[10:])
        at, other = rng.sample(range(len(lie) - 1), 2)
        match rng.randrange(3):
            case 0:
                lie[at], lie[other] = lie[other], lie[at]
            case 1:
                lie.insert(at, lie[other])
            case _:
                del lie[at]
        with pytest.raises(BadLineError) as caught:
            check_lines(lie, 10, 0)
        assert lie[: caught.value.position] == lines[10 : 10 + caught.value.position]
    with pytest.raises(BadLineError) as caught:
        check_lines(lines[10:], 10, NANO + 11)
    assert caught.value.position == 0
    late = write_line(Entry(11, "read", NANO - 1, {}))
    with pytest.raises(BadLineError) as caught:
        check_lines([lines[10], late], 10, 0)
    assert caught.value.position == 1


SAMPLES: dict[Any, Any] = {"str": "x", "int": 3, "tuple[str, ...]": ("x",), "Mapping[str, int]": {"x": 3}}


def sample(kind: type[Fact]) -> Fact:
    values = {}
    for f in dataclasses.fields(kind):
        if f.name.endswith("_sha256"):
            values[f.name] = {"x": A} if str(f.type).startswith("Mapping") else A
        else:
            values[f.name] = SAMPLES[f.type]
    return kind(**values)


@pytest.mark.parametrize("kind", FACTS.values(), ids=FACTS)
def test_every_fact_comes_back_and_a_wrong_field_does_not(kind: type[Fact], tmp_path: Path) -> None:
    fact = sample(kind)
    ledger = Ledger(tmp_path / "ledger.jsonl", lambda: NANO, SIGNER)
    ledger.note(fact)
    (entry,) = ledger.entries()
    assert read_fact(entry.kind, entry.body) == fact and signed_by(entry, "plant-7", KEY)
    body = fact.body()
    for name in body:
        with pytest.raises(ContractError, match="missing or unknown"):
            read_fact(fact.KIND, {k: v for k, v in body.items() if k != name})
        with pytest.raises(ContractError, match=name):
            read_fact(fact.KIND, {**body, name: None})
    with pytest.raises(ContractError, match="missing or unknown"):
        read_fact(fact.KIND, {**body, "more": 1})


def test_facts_are_strict() -> None:
    assert len(FACTS) == 12
    with pytest.raises(ContractError, match="no sha256"):
        CheckpointFact(A.upper(), "r", 1)
    with pytest.raises(ContractError, match="below 0"):
        CheckpointFact(A, "r", -1)
    with pytest.raises(ContractError, match="no sha256"):
        RunFact("r", A, A, {"x": "short"}, {}, {}, {}, A, A, {})
    with pytest.raises(ContractError, match="no kind of fact"):
        read_fact("chekpoint", {})


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 600])
def test_proofs_from_tiles_are_those_from_all_leaves(tmp_path: Path, n: int) -> None:
    ledger = ledger_of(tmp_path / "ledger.jsonl", n)
    leaves = check_lines(ledger.path.read_bytes().splitlines(keepends=True), 0, 0)[0]
    head = ledger.verify()
    assert head.root == root_of(leaves).hex()
    for index in {0, n // 2, n - 1}:
        proof = ledger.prove(index)
        assert proof == prove_leaf(nodes_of(leaves), n, index) and check_proof(proof, head.root)
        assert ledger.entry(index).body == {"dataset": f"road-{index}"}
    ledger.append("read", {})
    assert check_proof(ledger.prove(n), ledger.root())
    assert check_proof(ledger.prove(0, head), head.root)
    now, growth = ledger.prove_growth(head)
    assert now == ledger.verify() and growth == ledger.prove_growth(head, now)[1]


def test_kept_hashes_that_were_changed_are_made_again(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger.jsonl", 300)
    root, good = ledger.root(), ledger.prove(299)
    folder = tmp_path / "ledger.jsonl.tiles"
    rng = random.Random(1)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for _ in range(12 if data else 0):
            at = rng.randrange(len(data))
            for bad in (data[:at], data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], b""):
                path.write_bytes(bad)
                index = rng.randrange(300)
                assert check_proof(ledger.prove(index), root) and ledger.entry(index).index == index
    for path in folder.iterdir():
        path.unlink()
    assert ledger.prove(299) == good


def test_hashes_of_another_ledger_are_not_believed(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger.jsonl", 20)
    old = ledger.verify()
    ledger.prove(3)
    other = ledger_of(tmp_path / "ledger.jsonl", 30, SIGNER)
    assert check_proof(other.prove(3), other.root())
    for ask in (
        lambda: other.prove(3, old),
        lambda: other.prove_growth(old),
        lambda: other.prove_growth(other.verify(), old),
    ):
        with pytest.raises(CorruptError, match="not the ledger of the head"):
            ask()


def test_a_ledger_in_a_folder_that_cannot_be_written_is_proved(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger.jsonl", 20)
    (tmp_path / "ledger.jsonl.tiles").write_text("in the way")
    assert check_proof(ledger.prove(7), ledger.root())
