"""DBC files with broken lines, in other encodings, of both byte orders: what is lost is named, the rest is used."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hagane.intake import read_logs
from hagane.intake.can_dbc import load_dbc, text_of
from hagane.intake.can_write import encode_can
from hagane.intake.signals import decode
from hagane.terms import Channel, LogError
from tests.conftest import shared_data
from tests.intake_cases import CAR, noise

cantools = pytest.importorskip("cantools")

DBC = """VERSION ""
NS_ :
    CM_
    BA_
BS_:
BU_: X
BO_ 256 EGO: 8 X
 SG_ SPEED : 0|16@1+ (0.01,0) [0|100] "m/s" X
 SG_ YAW : 23|16@0- (0.001,-1) [-1|1] "rad/s" X

BO_ 257 BRAKE: 8 X
 SG_ P : 0|8@1+ (1,0) [0|0] "bar" X

BO_ 258 MUXED: 8 X
 SG_ SEL M : 0|8@1+ (1,0) [0|0] "" X
 SG_ A m0 : 8|16@1+ (1,0) [0|0] "" X
 SG_ B m1 : 8|16@1+ (2,0) [0|0] "" X

BO_ 259 FLOATS: 8 X
 SG_ F : 0|32@1- (1,0) [0|0] "" X

CM_ SG_ 256 SPEED "a comment
BO_ in it, over
lines";
VAL_ 257 P 0 "none" 1 "some" ;
SIG_VALTYPE_ 259 F : 1;
"""


def broken(tmp_path: Path, *edits: tuple[str, str], encoding: str = "utf-8") -> Path:
    text = DBC
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "car.dbc"
    path.write_bytes(text.encode(encoding))
    return path


def names(path: Path) -> set[str]:
    return {f"{m.name}.{s}" for m in load_dbc(path).messages.values() for s in m.signals}


ALL = {"EGO.SPEED", "EGO.YAW", "BRAKE.P", "MUXED.SEL", "MUXED.A", "MUXED.B", "FLOATS.F"}


def test_a_whole_dbc_has_no_bad_line(tmp_path: Path) -> None:
    assert names(broken(tmp_path)) == ALL and load_dbc(tmp_path / "car.dbc").words() == ""


@pytest.mark.parametrize(
    ("edit", "line", "lost", "words"),
    [
        ((": 23|16@0- (0.001,-1)", ": 23|16@0- (0.001,-1"), 9, {"EGO.YAW"}, "signal EGO.YAW is lost"),
        (("(0.01,0) [0|100]", "(0.01;0) [0|100]"), 8, {"EGO.SPEED"}, "signal EGO.SPEED is lost"),
        (("BO_ 257 BRAKE: 8", "BO_ 257 BRAKE 8"), 11, {"BRAKE.P"}, "message BRAKE is lost"),
        (('0|8@1+ (1,0) [0|0] "bar" X', '0|8@1+ (1,0) [0|0] "bar X'), 12, {"BRAKE.P"}, "BRAKE.P is lost"),
        (("SEL M : 0|8@1+", "SEL M : 0:8@1+"), 15, {"MUXED.SEL", "MUXED.A", "MUXED.B"}, "message MUXED is lost"),
        (("A m0 : 8|16@1+", "A m0 : 8|16@"), 16, {"MUXED.SEL", "MUXED.A", "MUXED.B"}, "message MUXED is lost"),
        (("SIG_VALTYPE_ 259 F : 1;", "SIG_VALTYPE_ 259 F : one;"), 26, {"FLOATS.F"}, "message FLOATS is lost"),
        (("BO_ 258 MUXED", "<<<<<<< HEAD\nBO_ 258 MUXED"), 14, set(), "line 14 '<<<<<<< HEAD'"),
        (('VAL_ 257 P 0 "none"', 'VAL_ 257 P 0 none"'), 25, set(), "line 25"),
        (('lines";', 'lines" what;'), 24, set(), "line 24"),
    ],
)
def test_a_broken_line_loses_what_it_defines_and_no_more(
    tmp_path: Path, edit: tuple[str, str], line: int, lost: set[str], words: str
) -> None:
    path = broken(tmp_path, edit)
    definitions = load_dbc(path)
    assert names(path) == ALL - lost
    assert [b.number for b in definitions.bad] == [line] and words in definitions.words()
    rest = load_dbc(broken(tmp_path)).messages
    for name, message in definitions.messages.items():
        for signal in message.signals.values():
            assert replace(signal, choices={}) == replace(rest[name].signals[signal.name], choices={})


def test_a_lost_signal_is_refused_when_asked_for_and_a_finding_when_not(tmp_path: Path) -> None:
    log, dbc = encode_can([noise(CAR, 0, 30)], CAR, tmp_path)
    lines = dbc.read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if " SG_ YAW " in line)
    lines[at] = lines[at].replace("@", " at ")
    dbc.write_text("\n".join(lines) + "\n")
    with pytest.raises(LogError) as e:
        read_logs(log, CAR)
    assert "message 'EGO' has no signal 'YAW'" in str(e.value) and f"line {at + 1} " in str(e.value)
    assert "SG_ YAW : 16|16 at 1+" in str(e.value) and "signal EGO.YAW is lost" in str(e.value)
    without = replace(CAR, observe=(Channel("ego", unit=("m/s",), source=("EGO.SPEED",)),))
    (episode,) = read_logs(log, without)
    (finding,) = episode.findings
    assert finding.kind == "note" and "drives.dbc" in finding.detail and f"line {at + 1} " in finding.detail


def test_a_dbc_without_anything_to_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dbc"
    for text, words in (
        ("hello\n", "cannot be read as DBC"),
        ('VERSION ""\n', "defines no message"),
        ("", "DBC|message"),
    ):
        path.write_text(text)
        with pytest.raises(LogError, match=words):
            load_dbc(path)
    with pytest.raises(LogError, match="cannot be read"):
        load_dbc(tmp_path)


def test_long_bad_lines_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "car.dbc"
    bad = ' SG_ X : 0|8@1+ (1,0) [0|0] "" ' + "a " * 2000 + "a" * 4000 + "!\n"
    path.write_text(DBC.replace("BO_ 258", bad + "VAL_ 1 S " + '1 "a" ' * 3000 + "!\nBO_ 258"))
    start = time.monotonic()
    assert len(load_dbc(path).bad) == 1 and time.monotonic() - start < 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(DBC)), st.integers(0, 30), st.text(max_size=8))
def test_any_damage_gives_one_message_or_only_true_signals(tmp_path: Path, at: int, drop: int, junk: str) -> None:
    path = tmp_path / "car.dbc"
    path.write_text(DBC[:at] + junk + DBC[at + drop :], "utf-8")
    try:
        definitions = load_dbc(path)
    except LogError as e:
        assert "car.dbc" in e.where
    else:
        assert definitions.messages


def test_the_real_dbc_with_a_broken_line(tmp_path: Path) -> None:
    text = shared_data("can", "dbc", "toyota_nodsu_pt.dbc").read_text("utf-8")
    (tmp_path / "whole.dbc").write_text(text)
    lines = text.splitlines()
    at = next(k for k, line in enumerate(lines) if "SG_ STEER_ANGLE :" in line)
    lines[at] = lines[at][:30]
    (tmp_path / "car.dbc").write_text("\n".join(lines))
    whole, rest = names(tmp_path / "whole.dbc"), names(tmp_path / "car.dbc")
    assert whole - rest == {"STEER_ANGLE_SENSOR.STEER_ANGLE"} and rest < whole
    assert load_dbc(tmp_path / "car.dbc").bad[0].number == at + 1


@pytest.mark.parametrize(
    ("encoding", "comment", "unit"),
    [
        ("utf-8", "速度 für", "°C"),
        ("utf-8-sig", "速度", "°C"),
        ("cp1252", "Geschwindigkeit der Räder, größer", "°C"),
        ("cp1252", "vitesse d’une roue", "µm"),
        ("cp932", "車速とヨーレート", "℃"),
        ("cp932", "ｽﾋﾟｰﾄﾞ 速度", "m/s"),
    ],
)
def test_dbc_files_in_other_encodings(tmp_path: Path, encoding: str, comment: str, unit: str) -> None:
    path = broken(tmp_path, ("a comment", comment), ('"bar"', f'"{unit}"'), encoding=encoding)
    definitions = load_dbc(path)
    assert comment in text_of(path.read_bytes())
    assert definitions.messages["BRAKE"].signals["P"].unit == unit and definitions.bad == ()


def test_both_byte_orders_in_one_message_equal_cantools(tmp_path: Path) -> None:
    path = broken(tmp_path)
    theirs = cantools.database.load_file(path, strict=False).get_message_by_name("EGO")
    ours = load_dbc(path).messages["EGO"]
    assert [s.big_endian for s in ours.signals.values()] == [False, True]
    data = np.random.default_rng(1).integers(0, 256, (500, 8), dtype=np.uint8)
    wanted = [theirs.decode(bytes(row)) for row in data]
    for name, signal in ours.signals.items():
        values, present = decode(data, np.full(500, 8, np.uint8), ours, signal)
        assert present.all() and values.tolist() == [float(w[name]) for w in wanted]


def test_multiplexed_twice_equals_cantools(tmp_path: Path) -> None:
    text = (
        'VERSION ""\nNS_ :\n\tSG_MUL_VAL_\nBS_:\nBU_: X\nBO_ 5 M: 8 X\n SG_ TOP M : 0|4@1+ (1,0) [0|0] "" X\n'
        ' SG_ MID m1M : 4|4@1+ (1,0) [0|0] "" X\n SG_ LOW m2 : 8|8@1+ (1,0) [0|0] "" X\n\n'
        "SG_MUL_VAL_ 5 MID TOP 1-1;\nSG_MUL_VAL_ 5 LOW MID 2-2;\n"
    )
    (tmp_path / "m.dbc").write_text(text)
    message = load_dbc(tmp_path / "m.dbc").messages["M"]
    theirs = cantools.database.load_string(text, "dbc").get_message_by_name("M")
    for first in range(256):
        payload = bytes([first, 77, 0, 0, 0, 0, 0, 0])
        data, length = np.frombuffer(payload, np.uint8).reshape(1, 8), np.array([8], np.uint8)
        _, present = decode(data, length, message, message.signals["LOW"])
        try:
            wanted = "LOW" in theirs.decode(payload)
        except cantools.database.DecodeError:
            wanted = False
        assert present.tolist() == [wanted], first
