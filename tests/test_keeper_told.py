"""Text, tells and notes: what comes out of a jail by its pipes and by its socket."""

from __future__ import annotations

import json
import os
import unicodedata
from codecs import getincrementaldecoder
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.cli import tells
from hagane.cli.house import House
from hagane.cli.opens import Opens
from hagane.cli.tells import Curve, Teller
from hagane.cli.text import Text, cleaned
from tests.keeper_fixture import Said, carriers

TOKEN = bytes.fromhex("9f3ac1e5027bd846115efd0c93a8b7e2")
HEX = TOKEN.hex()
WORDS = frozenset({"mill", "ours", "stuck"})


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_no_control_character_reaches_a_terminal_whatever_the_cuts(parts: list[bytes]) -> None:
    decoder = getincrementaldecoder("utf-8")("replace")
    out = "".join(cleaned(decoder.decode(part)) for part in parts)
    assert not [c for c in out if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@pytest.mark.parametrize(
    "trick", [b"\xc2\xc2\x9b\x9b31m", b"\x1b[31m", b"\xc2\x9b31m", "\u202eabc".encode(), b"\r\x07"]
)
def test_controls_that_join_after_one_was_dropped(trick: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with Text(shown=True) as text:
        with text.pipes() as (out, _):
            for at in range(len(trick)):
                os.write(out, trick[at : at + 1])
        text.drain()
    said = capsys.readouterr().out
    assert not set(said) & set("\x1b\x9b\u202e\r\x07")
    assert bytes(text.kept["stdout.txt"]) == trick


FORGED = [
    (HEX, {"step": 1}),
    ("metrics", {f"loss/{HEX}": 1.0, HEX: 2.0, "loss": HEX}),
    ("row", {"case": HEX, "who": "ours", "score": 1, "n": 1}),
    ("row", {"case": "mill", "who": "ours", "score": HEX, "n": 1}),
    ("findings", {"kind": HEX, "count": 1}),
    ("failed", {"error": HEX}),
    ("checkpoint", {"step": [HEX]}),
    ("ended", {"step": int(HEX, 16)}),
]


@pytest.mark.parametrize("faulty", [False, True], ids=["", "planted-fault"])
def test_forged_events_carry_no_words(
    faulty: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if faulty:
        monkeypatch.setattr(tells, "passed", lambda event, fields, words: dict(fields))
    teller = Teller(WORDS, curve=Curve(tmp_path / "run" / "metrics.jsonl"))
    for event, fields in FORGED:
        if event != HEX or not faulty:
            try:
                teller.hear(event, {**fields, **({"step": 1} if event == "metrics" else {})})
            except (ValueError, TypeError):
                assert faulty
    teller.end(0)
    out = capsys.readouterr()
    assert bool(carriers(TOKEN, Said(0, out.out, out.err), [tmp_path])) == faulty


def test_a_flood_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller(WORDS)
    teller.allowance.clock = lambda: 0.0
    teller.allowance._last = 0.0
    for step in range(20_000):
        teller.hear("checkpoint", {"step": step})
    assert len(capsys.readouterr().out.splitlines()) == teller.allowance.at_once
    assert teller.refused == 20_000 - teller.allowance.at_once


def test_a_jail_has_nothing_written_into_the_ledger_unless_it_may_export(tmp_path: Path) -> None:
    house: dict[str, House] = {
        purpose: House(Opens(tmp_path, purpose), None, None, None, {}, ())  # type: ignore[arg-type]
        for purpose in ("anchor", "member-training", "evaluate", "view", "intake", "export")
    }
    assert [p for p, h in house.items() if h.notes] == ["export"]


def test_the_curve_of_a_run_that_goes_on_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    first = Curve(path)
    for step in range(1, 7):
        first.add({"step": step, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 7, "lo')  # the keeper was killed
    again = Curve(path)
    for step in range(5, 9):
        again.add({"step": step, "loss": 2.0})
    again.add({"loss": 3.0})
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(m["step"], m["loss"]) for m in lines] == [(n, 1.0 if n < 5 else 2.0) for n in range(1, 9)]
