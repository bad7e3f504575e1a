"""The ledger: every flipped byte, cut, forged history and torn line is found; nothing acknowledged is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.seal import Head, Ledger, check_proof
from hagane.seal.entry import BadLineError, check_lines
from hagane.seal.merkle import leaf_hash, node_hash, nodes_of, prove_leaf, root_of
from hagane.terms import CorruptError, StoreError


def clock() -> int:
    return 1_790_000_000_000_000_000


def make(path: Path, n: int = 5) -> Ledger:
    ledger = Ledger(path, clock)
    for i in range(n):
        assert ledger.append("refusal" if i % 2 else "contract", {"dataset": f"road-{i}", "until": None, "n": i}) == i
    return ledger


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    ledger = make(tmp_path / "ledger.jsonl")
    entries = list(Ledger(tmp_path / "ledger.jsonl").entries())
    assert [e.index for e in entries] == [0, 1, 2, 3, 4]
    assert entries[3].kind == "refusal" and entries[3].body == {"dataset": "road-3", "until": None, "n": 3}
    assert ledger.verify() == ledger.head() == Ledger(tmp_path / "ledger.jsonl").verify()


def test_an_empty_ledger_has_the_root_of_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "none.jsonl")
    assert ledger.head() == Head(0, hashlib.sha256(b"").hexdigest())
    assert list(ledger.entries()) == []
    assert not ledger.path.exists()
    make(ledger.path).verify(ledger.verify(Head(0, hashlib.sha256(b"").hexdigest())))


def test_hashes_are_those_of_rfc_9162() -> None:
    def plain(leaves: list[bytes]) -> bytes:
        """The recursive definition, section 2.1.1."""
        if not leaves:
            return hashlib.sha256(b"").digest()
        if len(leaves) == 1:
            return leaf_hash(leaves[0])
        k = max(p for p in (1 << i for i in range(20)) if p < len(leaves))
        return node_hash(plain(leaves[:k]), plain(leaves[k:]))

    for n in range(40):
        data = [b"%d" % i for i in range(n)]
        assert root_of([leaf_hash(d) for d in data]) == plain(data)
    # the known answer of certificate transparency's reference tests: eight leaves
    known = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    assert root_of([leaf_hash(bytes.fromhex(k)) for k in known]).hex() == (
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    make(path, 3)
    good = path.read_bytes()
    for at in range(len(good)):
        for change in (1, 0x20, 0x80):
            bad = good[:at] + bytes([good[at] ^ change]) + good[at + 1 :]
            with pytest.raises(BadLineError):
                check_lines(bad.splitlines(keepends=True), 0, 0)
    for at in range(len(good)):  # the whole way too
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(CorruptError):
            Ledger(path).verify()
    path.write_bytes(good)
    Ledger(path).verify()


def test_a_damaged_ledger_takes_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    make(path)
    bad = path.read_bytes().replace(b"road-1", b"road-9")
    path.write_bytes(bad)
    with pytest.raises(CorruptError, match="damaged here") as caught:
        Ledger(path).append("run", {})
    assert caught.value.where.endswith(":2")
    assert path.read_bytes() == bad


def rewritten(path: Path, rows: list[tuple[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    ledger = Ledger(path, clock)
    for kind, body in rows:
        ledger.append(kind, body)


def test_forged_histories_are_refused_against_a_remembered_head(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    ledger = make(tmp_path / "ledger.jsonl", 6)
    head = ledger.verify()
    rows = [(e.kind, dict(e.body)) for e in ledger.entries()]
    forged = tmp_path / "forged.jsonl"
    for seed in range(40):
        rng = random.Random(seed)
        lie = [(k, dict(b)) for k, b in rows]
        at = rng.randrange(len(lie))
        match rng.randrange(5):
            case 0:
                lie[at][1]["dataset"] = f"road-{rng.randrange(10, 99)}"
            case 1:
                del lie[at]
            case 2:
                lie.insert(at, ("contract", {"dataset": "road-x"}))
            case 3:
                other = (at + rng.randrange(1, len(lie))) % len(lie)
                lie[at], lie[other] = lie[other], lie[at]
            case _:
                lie[at] = ("forged", lie[at][1])
        lie += [("later", {"n": i}) for i in range(rng.randrange(3))]
        rewritten(forged, lie)
        Ledger(forged).verify()  # in itself it is sound: only memory tells
        with pytest.raises(CorruptError, match=r"rewritten|cut"):
            Ledger(forged).verify(head)
    rewritten(forged, [*rows, ("later", {})])
    Ledger(forged).verify(head)


def test_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    head = make(path, 3).head()
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at])
        with pytest.raises(CorruptError):
            Ledger(path).verify(head)
        whole = at == 0 or good[at - 1 : at] == b"\n"
        if whole:
            Ledger(path).verify()
        else:
            with pytest.raises(CorruptError, match="torn"):
                Ledger(path).verify()


def test_a_torn_line_is_set_aside_and_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    make(path, 3)
    with path.open("ab") as f:
        f.write(b'{"body":{"data')
    ledger = Ledger(path, clock)
    assert ledger.append("run", {"id": "a"}) == 4
    entries = list(ledger.entries())
    assert [e.kind for e in entries][3:] == ["repaired", "run"]
    assert entries[3].body["bytes"] == 14
    (aside,) = tmp_path.glob("ledger.jsonl.torn-*")
    assert aside.read_bytes() == b'{"body":{"data'


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = make(path, 3)
    good, write = path.read_bytes(), os.write

    def full(fd: int, data: Any) -> int:
        write(fd, bytes(data)[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "write", full)
        with pytest.raises(StoreError, match="No space left"):
            ledger.append("run", {"id": "a"})
    assert path.read_bytes() == good
    assert ledger.append("run", {"id": "a"}) == 3


@pytest.mark.parametrize(
    ("kind", "body"),
    [("", {}), (3, {}), ("x", []), ("x", {"a": float("nan")}), ("x", {"a": object()}), ("x", {"a": "\ud800"})],
)
def test_what_is_no_json_is_refused_and_nothing_written(tmp_path: Path, kind: Any, body: Any) -> None:
    ledger = make(tmp_path / "ledger.jsonl", 2)
    good = ledger.path.read_bytes()
    with pytest.raises(StoreError):
        ledger.append(kind, body)
    assert ledger.path.read_bytes() == good


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4))
def test_any_json_comes_back(tmp_path_factory: pytest.TempPathFactory, bodies: list[dict[str, Any]]) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("any") / "ledger.jsonl")
    for body in bodies:
        try:
            ledger.append("any", body)
        except StoreError:  # lone surrogates are no UTF-8
            bodies = [b for b in bodies if b is not body]
    assert [e.body for e in ledger.entries()] == [json.loads(json.dumps(b)) for b in bodies]
    ledger.verify()


def test_a_clock_set_back_does_not_turn_the_order(tmp_path: Path) -> None:
    times = iter([100, 50, 200])
    ledger = Ledger(tmp_path / "ledger.jsonl", lambda: next(times))
    for _ in range(3):
        ledger.append("x", {})
    assert [e.time_ns for e in ledger.entries()] == [100, 100, 200]


def test_cut_while_in_use_is_found(tmp_path: Path) -> None:
    ledger = make(tmp_path / "ledger.jsonl", 3)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(CorruptError, match="cut while it was in use"):
        ledger.append("x", {})


def write_many(path: Path, who: int, n: int, out: Any) -> None:
    ledger = Ledger(path)
    out.put([ledger.append("x", {"who": who, "i": i}) for i in range(n)])


def test_two_writers_never_lose_an_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path, out = tmp_path / "ledger.jsonl", context.Queue()
    writers = [context.Process(target=write_many, args=(path, who, 40, out)) for who in (1, 2)]
    for w in writers:
        w.start()
    given_out = sorted(out.get(timeout=60) + out.get(timeout=60))
    for w in writers:
        w.join(60)
    assert given_out == list(range(80))
    entries = list(Ledger(path).entries())
    for who in (1, 2):
        assert [e.body["i"] for e in entries if e.body["who"] == who] == list(range(40))
    Ledger(path).verify()


def test_proofs_hold_and_false_ones_do_not(tmp_path: Path) -> None:
    ledger = make(tmp_path / "ledger.jsonl", 7)
    root = ledger.root()
    for i in range(7):
        proof = ledger.prove(i)
        assert check_proof(proof, root)
        assert not check_proof(replace(proof, index=(i + 1) % 7), root)
        assert not check_proof(replace(proof, leaf="00" * 32), root)
        assert not check_proof(replace(proof, path=proof.path[:-1]), root)
        assert not check_proof(replace(proof, path=(*proof.path, "00" * 32)), root)
        assert not check_proof(replace(proof, path=("zz",)), root)
        assert not check_proof(proof, "00" * 32)
    with pytest.raises(StoreError, match="no entry 7"):
        ledger.prove(7)
    with pytest.raises(StoreError):
        ledger.prove(-1)


@given(st.integers(1, 70), st.data())
def test_inclusion_at_every_size(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    index = data.draw(st.integers(0, size - 1))
    proof, root = prove_leaf(nodes_of(leaves), size, index), root_of(leaves).hex()
    assert check_proof(proof, root)
    other = data.draw(st.integers(0, size))
    assert check_proof(replace(proof, index=other), root) == (other == index)
