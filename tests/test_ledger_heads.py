"""Signed heads and witnesses: no fork, cut, rewriting or changed byte passes for a witnessed history."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import Entry, Head, Ledger, Signer, TrustStore, check_growth, public_of
from hagane.seal.entry import write_line
from hagane.seal.head import SignedHead, countersign, read_head, seen_at, sign_head, signed_by_site
from hagane.seal.history import (
    Witnessed,
    note_witnessed,
    publish,
    require_witnessed,
    verify_history,
    witness_newest,
    witnessed_heads,
)
from hagane.seal.merkle import EMPTY_ROOT, leaf_hash, nodes_of, prove_growth, root_of
from hagane.seal.witness import Witness
from hagane.terms import CorruptError, Refused, StoreError

T0_S = 1_790_000_000
NANO = 1_000_000_000


def key_of(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@dataclass
class Site:
    """A site with a ledger, a folder of exchange, and a witness; its clock stands until it is moved."""

    home: Path
    time_s: int = T0_S

    def __post_init__(self) -> None:
        self.signer = Signer("plant-7", key_of(1))
        self.public = public_of(self.signer.key)
        self.ledger = Ledger(self.home / "ledger.jsonl", lambda: self.time_s * NANO)
        self.folder = self.home / "heads"
        self.witness = Witness(self.home / "memory", "member-cars", key_of(2), lambda: (self.time_s + 60) * NANO)
        self.trust = TrustStore(self.home / "witnesses")
        self.trust.add("member-cars", public_of(key_of(2)))

    def fill(self, n: int) -> None:
        for i in range(n):
            self.ledger.append("read", {"dataset": f"road-{i}"})

    def exchange(self) -> SignedHead:
        publish(self.ledger, self.signer, self.folder)
        return witness_newest(self.folder, "plant-7", self.public, self.witness)

    def witnessed(self, quorum: int = 1) -> tuple[Witnessed, ...]:
        return witnessed_heads(self.folder, "plant-7", self.public, self.trust, quorum)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_every_growth_is_proved_and_no_other() -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(33)]
    heads = [Head(n, root_of(leaves[:n]).hex()) for n in range(34)]
    node = nodes_of(leaves)
    for new in range(34):
        for old in range(new + 1):
            path = prove_growth(node, old, new)
            assert check_growth(heads[old], heads[new], path)
            assert not check_growth(heads[old], heads[new], (*path, "00" * 32))
            assert not check_growth(replace(heads[old], root="11" * 32), heads[new], path)
            # all trees have grown from the empty one
            assert check_growth(heads[old], replace(heads[new], root="11" * 32), path) == (old == 0 < new)
            if path:
                assert not check_growth(heads[old], heads[new], path[:-1])
                assert not check_growth(heads[old], heads[new], path[1:])
            for other in range(34):
                assert check_growth(replace(heads[old], size=other), heads[new], path) == (other == old)
    with pytest.raises(IndexError):
        prove_growth(node, 5, 4)


def test_a_history_is_witnessed_and_grows(site: Site) -> None:
    site.fill(5)
    first = site.exchange()
    assert signed_by_site(first, site.public) and seen_at(first, "member-cars", public_of(key_of(2))) == T0_S + 60
    site.time_s += 100
    site.fill(8)
    site.exchange()
    assert [w.head.size for w in site.witnessed()] == [5, 13]
    assert verify_history(site.ledger, site.witnessed()).size == 13
    assert site.witnessed(quorum=2) == ()
    site.exchange()  # the same head again is signed again
    assert site.witness.last("plant-7").size == 13


def test_a_fork_is_refused_and_kept(site: Site, tmp_path: Path) -> None:
    site.fill(5)
    site.exchange()
    other = Site(tmp_path / "other")
    for n in (5, 9):
        other.fill(n - other.ledger.verify().size - 1)
        other.ledger.append("read", {"dataset": "hidden"})
        lie = publish(other.ledger, other.signer, other.folder)
        with pytest.raises(Refused, match="fork" if n == 5 else "nothing proves"):
            site.witness.countersign(lie, site.public, ())
        growth = prove_growth(nodes_of([leaf_hash(b"x")] * n), 5, n)
        with pytest.raises(Refused):
            site.witness.countersign(lie, site.public, growth)
    assert len(list((tmp_path / "memory").glob("plant-7.refused-*"))) == 2
    assert site.witness.last("plant-7") == site.ledger.verify()


def test_a_witness_signs_nothing_old_nor_of_another_key(site: Site) -> None:
    site.fill(3)
    old = publish(site.ledger, site.signer, site.folder)
    site.fill(2)
    site.exchange()
    with pytest.raises(Refused, match="older"):
        site.witness.countersign(old, site.public, ())
    with pytest.raises(Refused, match="host key"):
        site.witness.countersign(old, public_of(key_of(3)), ())
    memory = site.home / "memory" / "plant-7.head"
    good = memory.read_bytes()
    memory.write_bytes(good.replace(b"\n5\n", b"\n3\n"))
    with pytest.raises(CorruptError, match="not what the witness signed"):
        site.witness.last("plant-7")


def test_a_witness_without_a_proof_says_what_is_missing(site: Site) -> None:
    site.fill(3)
    site.exchange()
    for path in site.folder.iterdir():
        path.unlink()
    site.fill(1)
    with pytest.raises(StoreError, match="no proof from the 3 entries"):
        site.exchange()
    with pytest.raises(StoreError, match="no head"):
        witness_newest(site.home / "empty", "plant-7", site.public, site.witness)


def test_every_flipped_byte_of_a_head_or_countersignature_is_found(site: Site) -> None:
    site.fill(4)
    note = site.exchange().note()
    cars = public_of(key_of(2))
    for at in range(len(note)):
        for bit in range(8):
            bad = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            try:
                signed = read_head(bad, "head")
            except CorruptError:
                continue
            held = signed.site == "plant-7" and signed_by_site(signed, site.public)
            assert not held or seen_at(signed, "member-cars", cars) is None


@pytest.mark.parametrize("bad", [b"", b"\n", b"\n\n", b"a\n1\nAA==\n\n", b"x" * 20_000, "é\n\n".encode(), b"\xff"])
def test_what_is_no_head_is_one_message(bad: bytes) -> None:
    with pytest.raises(CorruptError, match="no signed head"):
        read_head(bad, "head")


def test_forged_files_of_the_exchange_are_found(site: Site) -> None:
    site.fill(4)
    real = site.exchange()
    by = site.folder / f"{4:012d}.by-member-cars"
    thief = countersign(sign_head("plant-7", real.head, site.signer.key), "member-cars", key_of(9), T0_S)
    by.write_bytes(thief.note())
    with pytest.raises(CorruptError, match="not one of 'member-cars'"):
        site.witnessed()
    by.rename(by.with_name(f"{5:012d}.by-member-cars"))
    with pytest.raises(CorruptError, match="not signed by site"):
        site.witnessed()
    by.with_name(f"{5:012d}.by-member-cars").rename(by.with_name(f"{4:012d}.by-stranger"))
    assert site.witnessed() == ()  # no key of theirs is trusted here


def test_pending_has_an_age_and_witnessed_has_none(site: Site) -> None:
    site.fill(1)

    def ask(index: int, after_s: int, heads: tuple[Witnessed, ...] = ()) -> Any:
        return require_witnessed(site.ledger, index, heads, (T0_S + after_s) * NANO, 3600)

    assert ask(0, 3600).allowed and not ask(0, 3601).allowed
    assert "pending for 3601 s (allowed: 3600)" in ask(0, 3601).reason
    site.exchange()
    site.fill(1)
    heads = site.witnessed()
    assert ask(0, 10**9, heads).allowed and "witnessed by member-cars" in ask(0, 0, heads).reason
    assert not ask(1, 10**9, heads).allowed
    assert ask(1, 0, heads).allowed  # the witness's clock is a minute ahead: within the skew
    back = ask(1, -7200, heads)  # a clock set back stops no age
    assert not back.allowed and "cannot be told" in back.reason
    with pytest.raises(StoreError, match="no entry 2"):
        ask(2, 0)


def test_a_witnessed_time_is_a_floor(site: Site) -> None:
    site.fill(2)
    site.exchange()
    (seen,) = site.witnessed()
    site.time_s -= 50_000
    at = note_witnessed(site.ledger, seen)
    entry = site.ledger.entry(at)
    assert entry.kind == "witnessed" and entry.time_ns == (T0_S + 60) * NANO
    assert entry.set_back_ns == 50_060 * NANO
    site.fill(1)
    assert site.ledger.entry(at + 1).time_ns == entry.time_ns


def test_entries_later_than_their_witness_are_found(site: Site) -> None:
    site.time_s += 9000
    site.fill(3)
    site.time_s -= 9000
    site.exchange()
    with pytest.raises(CorruptError, match="8940 s later than 'member-cars' saw it"):
        verify_history(site.ledger, site.witnessed())


def test_a_cut_or_another_ledger_is_found_against_witnessed_heads(site: Site) -> None:
    site.fill(6)
    site.exchange()
    lines = site.ledger.path.read_bytes().splitlines(keepends=True)
    site.ledger.path.write_bytes(b"".join(lines[:4]))
    with pytest.raises(CorruptError, match="cut: it has 4 entries, and had 6"):
        verify_history(site.ledger, site.witnessed())
    with pytest.raises(CorruptError, match="cut"):
        publish(Ledger(site.ledger.path), site.signer, site.folder)
    with pytest.raises(CorruptError, match="not the ledger of the head"):
        site.ledger.prove(2, site.witnessed()[0].head)


def forge(rows: list[tuple[str, dict[str, Any]]], rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Another history: an edit, drop, insertion, swap, copy, other kind, splice or cut, and perhaps more entries."""
    lie = [(k, dict(b)) for k, b in rows]
    at, other = rng.randrange(len(lie)), rng.randrange(1, len(lie))
    match rng.randrange(8):
        case 0:
            lie[at][1]["dataset"] = f"road-{rng.randrange(100, 999)}"
        case 1:
            del lie[at]
        case 2:
            lie.insert(at, ("read", {"dataset": "road-x"}))
        case 3:
            lie[at], lie[(at + other) % len(lie)] = lie[(at + other) % len(lie)], lie[at]
        case 4:
            lie.insert(other - 1, lie[other - 1])  # not the last: that would be an entry more
        case 5:
            lie[at] = ("forged", lie[at][1])
        case 6:
            lie = lie[at:] + lie[:at] if at else lie[1:]
        case _:
            lie = lie[:at]
    return lie + [("later", {"n": i}) for i in range(rng.randrange(4))]


def test_none_of_a_thousand_forged_histories_is_accepted(site: Site, tmp_path: Path) -> None:
    site.fill(9)
    site.exchange()
    heads = site.witnessed()
    rows = [(e.kind, dict(e.body)) for e in site.ledger.entries()]
    forged = tmp_path / "forged.jsonl"
    for seed in range(1000):
        rng = random.Random(seed)
        lie = forge(rows, rng)
        # each line sound in itself: only the witness's memory tells
        forged.write_bytes(b"".join(write_line(Entry(i, k, T0_S * NANO, b)) for i, (k, b) in enumerate(lie)))
        assert Ledger(forged).verify().size == len(lie)
        with pytest.raises(CorruptError, match=r"rewritten|cut"):
            verify_history(Ledger(forged), heads)
    wrong = replace(heads[0], head=Head(heads[0].head.size, EMPTY_ROOT.hex()))
    with pytest.raises(CorruptError):
        verify_history(site.ledger, (wrong,))
