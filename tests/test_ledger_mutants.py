"""The checkers are checked: each planted fault in proofs, lines, ledger, heads or witness makes one of these fail."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hagane.seal
from hagane.seal import Entry, Head
from hagane.seal.entry import write_line
from hagane.seal.head import countersign, sign_head
from hagane.seal.merkle import EMPTY_ROOT, leaf_hash, nodes_of, prove_growth, prove_leaf, root_of
from hagane.terms import CorruptError, Refused
from tests.test_ledger_heads import key_of, public_of

LEAVES = [leaf_hash(b"%d" % i) for i in range(12)]
HEADS = [Head(n, root_of(LEAVES[:n]).hex()) for n in range(13)]
NODE = nodes_of(LEAVES)
BAD = "5" * 64


def inclusion(m: Any, tmp: Path) -> None:
    for size in range(1, 13):
        for index in range(size):
            good, root = prove_leaf(NODE, size, index), HEADS[size].root
            assert m.check_proof(good, root)
            for lie in (
                *(replace(good, index=i) for i in range(-size, size + 3) if i != index),
                replace(good, leaf=BAD),
                replace(good, path=(*good.path, BAD)),
                replace(good, path=(*good.path, good.leaf)),
                *(replace(good, path=good.path[:i] + good.path[i + 1 :]) for i in range(len(good.path))),
                *(replace(good, path=(*good.path[:i], BAD, *good.path[i + 1 :])) for i in range(len(good.path))),
                replace(good, leaf=good.leaf.upper()),
                replace(good, path=tuple(f" {h}" for h in good.path) or (" ",)),
                replace(good, path=(7,)),
                replace(good, size="x"),
            ):
                assert not m.check_proof(lie, root)
            assert not m.check_proof(good, BAD) and not m.check_proof(good, root.upper())
    # a node is no leaf: without the leading byte a proof of an inner node would pass for one
    assert m.root_of(LEAVES[:2]) != m.leaf_hash(LEAVES[0] + LEAVES[1])
    assert m.root_of(LEAVES[:5]).hex() == HEADS[5].root and m.root_of([]).hex() == EMPTY_ROOT.hex()


def growth(m: Any, tmp: Path) -> None:
    heads = [m.Head(h.size, h.root) for h in HEADS]
    for new in range(13):
        for old in range(new + 1):
            path = prove_growth(NODE, old, new)
            assert m.check_growth(heads[old], heads[new], path)
            assert not m.check_growth(heads[old], heads[new], (*path, BAD))
            assert not m.check_growth(m.Head(old, BAD), heads[new], path)
            assert old == 0 < new or not m.check_growth(heads[old], m.Head(new, BAD), path)
            assert old == new or not m.check_growth(heads[new], heads[old], path)
            assert not m.check_growth(heads[old], heads[new], (*path[:-1], 7)) if path else True
            for i in range(len(path)):
                assert not m.check_growth(heads[old], heads[new], path[:i] + path[i + 1 :])
                assert not m.check_growth(heads[old], heads[new], (*path[:i], BAD, *path[i + 1 :]))
                assert not m.check_growth(heads[old], heads[new], (*path[:i], path[i].upper() + " ", *path[i + 1 :]))
            for other in range(-1, 14):
                assert m.check_growth(replace(heads[old], size=other), heads[new], path) == (other == old)


def line_of(index: int, time_ns: int = 10**18, **body: Any) -> bytes:
    return write_line(Entry(index, "read", time_ns, body))


def lines(m: Any, tmp: Path) -> None:
    good = [line_of(i, 10**18 + i, n=i) for i in range(5)]
    assert len(m.check_lines(good, 0, 10**18)[0]) == 5
    assert m.check_lines(good[1:], 1, 0)[1] == 10**18 + 4
    for lie, first, floor in (
        (good, 1, 0),
        (good, 0, 10**18 + 1),
        ([good[0], good[0]], 0, 0),
        ([good[0], good[2]], 0, 0),
        ([good[0], line_of(1, 10**18 - 1)], 0, 0),
        ([line_of(0, 20), line_of(1, 3)], 0, 0),
        ([line_of(0, 10**18 + 5), line_of(1, 10**18 + 4)], 0, 0),
        ([good[0], good[1].replace(b'"n":1', b'"n":2')], 0, 0),
        ([good[0], good[1].replace(b'"n":1', b'"n": 1')], 0, 0),
        ([good[0], good[1][:-2] + b"x\n"], 0, 0),
        ([good[0], good[1].replace(b'"type"', b'"typo"')], 0, 0),
        ([good[0], good[1].replace(b',"leaf":"', b',"laef":"')], 0, 0),
        ([good[0], good[1].replace(b'{"entry":', b'{"entri":')], 0, 0),
    ):
        with pytest.raises(m.BadLineError):
            m.check_lines(lie, first, floor)


def ledger(m: Any, tmp: Path) -> None:
    path = tmp / "ledger.jsonl"
    real = [line_of(i, n=i) for i in range(6)]
    path.write_bytes(b"".join(real))
    log = m.Ledger(path, lambda: 5)
    heads = [Head(n, root_of([leaf_hash(x[9:-76]) for x in real[:n]]).hex()) for n in range(7)]
    assert log.verify(*heads) == heads[6] and [e.index for e in log.entries()] == list(range(6))
    for lie in (Head(7, BAD), Head(6, BAD), Head(3, BAD), Head(0, BAD), Head(3, heads[4].root)):
        with pytest.raises(CorruptError):
            log.verify(heads[2], lie)
        with pytest.raises(CorruptError, match="cut" if lie.size == 7 else "rewritten"):
            log.verify(lie, heads[2])
    for bad in (real[:3] + real[4:], [*real[:2], real[2].replace(b'"n":2', b'"n":3')], [*real, real[5][:-1]]):
        path.write_bytes(b"".join(bad))
        for ask in (m.Ledger(path).verify, lambda: list(m.Ledger(path).entries())):
            with pytest.raises(CorruptError):
                ask()
    path.write_bytes(b"".join([line_of(0, 9), line_of(1, 8)]))
    with pytest.raises(CorruptError):
        list(m.Ledger(path).entries())
    path.write_bytes(b"".join(real[:4]))
    with pytest.raises(CorruptError):
        log.prove(1, heads[6])
    path.write_bytes(b"".join(real))
    assert log.append("read", {}) == 6 and list(log.entries())[6].time_ns == 10**18


def witness(m: Any, tmp: Path) -> None:
    member = m.Witness(tmp / "memory", "member-cars", key_of(2), lambda: 10**18)
    site, key = key_of(1), public_of(key_of(1))
    member.countersign(sign_head("plant-7", HEADS[4], site), key, ())
    for head, path, signer in (
        (Head(4, BAD), (), site),
        (HEADS[3], (), site),
        (HEADS[9], (), site),
        (Head(9, BAD), prove_growth(NODE, 4, 9), site),
        (HEADS[9], prove_growth(NODE, 4, 9), key_of(3)),
    ):
        with pytest.raises(Refused):
            member.countersign(sign_head("plant-7", head, signer), key, path)
        assert member.last("plant-7") == HEADS[4]
    with pytest.raises(Refused, match="older"):
        member.countersign(sign_head("plant-7", HEADS[3], site), key, ())
    back = m.Witness(tmp / "memory", "member-cars", key_of(2), lambda: 0)
    out = back.countersign(sign_head("plant-7", HEADS[9], site), key, prove_growth(NODE, 4, 9))
    assert member.last("plant-7") == HEADS[9] and out.note() > b""
    assert heads_seen(hagane.seal.head, out) == 10**9


def heads_seen(m: Any, signed: Any) -> Any:
    return m.seen_at(signed, "member-cars", public_of(key_of(2)))


def head(m: Any, tmp: Path) -> None:
    key = public_of(key_of(1))
    real = countersign(sign_head("plant-7", HEADS[4], key_of(1)), "member-cars", key_of(2), 77)
    assert (
        m.signed_by_site(real, key)
        and heads_seen(m, real) == 77
        and m.read_head(real.note(), "x").note() == real.note()
    )
    assert not m.signed_by_site(real, public_of(key_of(2)))
    for lie in (replace(real, head=HEADS[5]), replace(real, site="plant-8")):
        assert not m.signed_by_site(lie, key) and heads_seen(m, lie) is None
    (name, data), (who, seen) = real.signatures
    later = replace(real, signatures=((name, data), (who, seen[:11] + b"\x4e" + seen[12:])))
    assert heads_seen(m, later) is None
    for note in (
        real.note() + b"\n",
        real.note().replace(b"\n4\n", b"\n04\n"),
        real.note().replace(b"plant-7", b"Plant-7"),
        real.text() + b"\n",
        real.note() + real.note().split(b"\n\n")[1],
        real.note().replace(b"\n4\n", b"\n-4\n"),
    ):
        with pytest.raises(CorruptError):
            m.read_head(note, "x")


BATTERIES: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "inclusion": ("merkle", inclusion),
    "growth": ("merkle", growth),
    "lines": ("entry", lines),
    "ledger": ("ledger", ledger),
    "witness": ("witness", witness),
    "head": ("head", head),
}
MUTANTS: list[tuple[str, str, str]] = [
    ("inclusion", "if not 0 <= proof.index < proof.size:", "if not proof.index < proof.size:"),
    ("inclusion", "if at & 1 or at == last:\n                out =", "if at & 1:\n                out ="),
    ("inclusion", "out = node_hash(sibling, out)", "out = node_hash(out, sibling)"),
    ("inclusion", "out = node_hash(out, sibling)", "out = node_hash(sibling, out)"),
    ("inclusion", "return last == 0 and out == _hash(root)", "return out == _hash(root)"),
    ("inclusion", "return last == 0 and out == _hash(root)", "return last == 0"),
    ("inclusion", "or data.hex() != text", ""),
    ("inclusion", "except (ValueError, TypeError, AttributeError):", "except (ValueError, AttributeError):"),
    ("inclusion", 'hashlib.sha256(b"\\x00"), hashlib.sha256(b"\\x01")', 'hashlib.sha256(b""), hashlib.sha256(b"")'),
    ("growth", "same = old == new or", "same = old.size == new.size or"),
    ("growth", "return same and not hashes", "return same"),
    ("growth", "was == old_root and now == new_root", "now == new_root"),
    ("growth", "was == old_root and now == new_root", "was == old_root"),
    ("growth", "return last == 0 and was ==", "return was =="),
    ("growth", "if old.size & (old.size - 1) == 0:", "if False:"),
    ("growth", "while at & 1:\n            at, last", "while False:\n            at, last"),
    ("growth", "now = node_hash(now, sibling)\n            at", "now = node_hash(sibling, now)\n            at"),
    ("lines", "or [line[:width] for line in lines] != heads", ""),
    ("lines", "if [line[-_TAIL:] for line in lines] != tails:", "if False:"),
    ("lines", "or sorted(times) != times ", ""),
    ("lines", "or int(times[0]) < floor_ns", ""),
    ("lines", "or entry.time_ns < floor_ns", ""),
    ("lines", "if entry.index != first + position or", "if"),
    ("lines", "or line != _line_of(data)", ""),
    ("lines", "floor_ns = entry.time_ns", "pass"),
    ("ledger", "if state.frontier.size < old.size:", "if False:"),
    ("ledger", "if roots.get(old.size) != old.root:", "if False:"),
    ("ledger", "for old in heads:", "for old in heads[:1]:"),
    ("ledger", "for old in heads:", "for old in heads[-1:]:"),
    ("ledger", "{0: EMPTY_ROOT.hex()}", "{}"),
    ("ledger", "if entry.time_ns < floor_ns:", "if False:"),
    ("ledger", "if entry.index != index:", "if False:"),
    ("ledger", "max(now_ns, floor_ns)", "now_ns"),
    (
        "ledger",
        "if again:\n                            tiles.clear()",
        "if again:\n                            return None",
    ),
    ("witness", "if not check_growth(old, signed.head, growth):", "if False:"),
    ("witness", "if signed.head.size < old.size:", "if False:"),
    ("witness", "if not signed_by_site(signed, site_key):", "if False:"),
    ("witness", "keep(self._path(signed.site), out.note())", "pass"),
    ("witness", ", old_s))", ", 0))"),
    ("head", 'b"cosignature/v1\\ntime %d\\n" % time_s + signed.text()', "signed.text()"),
    ("head", "_holds(key, data[4:], signed.text())", "True"),
    ("head", "exact = signed.note() == data and", "exact ="),
    ("head", "and is_name(signed.site)", ""),
    ("head", "if _holds(key, data[12:], _witness_text(signed, time_s)):", "if True:"),
    ("head", "and 0 < len(lines) <=", "and len(lines) <="),
    ("head", "len({name for name, _ in signed.signatures}) == len(lines)", "True"),
    ("head", "and 0 <= signed.head.size <", "and signed.head.size <"),
]


def loaded(room: str, source: str) -> types.ModuleType:
    """A module of seal from other source."""
    module = types.ModuleType(f"mutant_{room}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, f"mutant_{room}", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


def source_of(room: str) -> str:
    return (Path(hagane.seal.__file__).parent / f"{room}.py").read_text("utf-8")


@pytest.mark.parametrize("name", BATTERIES)
def test_the_real_code_passes(name: str, tmp_path: Path) -> None:
    room, battery = BATTERIES[name]
    battery(loaded(room, source_of(room)), tmp_path)


@pytest.mark.parametrize(("name", "was", "becomes"), MUTANTS)
def test_a_planted_fault_is_caught(name: str, was: str, becomes: str, tmp_path: Path) -> None:
    room, battery = BATTERIES[name]
    source = source_of(room)
    assert source.count(was) >= 1, "the code changed: plant this fault anew"
    module = loaded(room, source.replace(was, becomes))
    with pytest.raises((Exception, pytest.fail.Exception)):
        battery(module, tmp_path)
