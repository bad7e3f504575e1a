"""CSV as text: zones and summer time, encodings found or told, decimal commas, ragged and odd files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import read_logs
from hagane.intake.csv_encoding import head_of_text, to_utf8
from hagane.intake.detect import format_of
from hagane.intake.zones import changes_of, utc_from_local
from hagane.terms import Channel, Embodiment, Episode, LogError, dump_toml

TAG = Embodiment(
    "tag",
    "plant",
    "member-steel",
    1.0,
    4,
    observe=(Channel("p", unit=("bar",), role="pv", source=("P",)),),
    act=(Channel("u", role="mv", source=("U",)),),
)
FURNACE = Embodiment(
    "furnace",
    "plant",
    "member-steel",
    1.0,
    4,
    observe=(Channel("temperature", unit=("Cel",), role="pv", source=("炉温",)),),
    act=(Channel("fuel", role="mv", source=("燃料流量指令",)),),
)
JAPANESE = "日時,炉温（℃）,燃料流量指令,備考\r\n" + "".join(
    f"2026/01/05 09:00:{k:02d},{1200 + k},{k},{'通常操業' if k else '開始'}\r\n" for k in range(9)
)


def one(tmp_path: Path, text: str | bytes, embodiment: Embodiment = TAG, **options: object) -> Episode:
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def notes(episode: Episode) -> list[str]:
    return [f.detail for f in episode.findings if f.kind == "note"]


def start_of(episode: Episode) -> datetime:
    return datetime.fromtimestamp(-episode.streams["p"].clock_offset_ns / 1e9, UTC)


def test_stamps_without_a_zone_are_in_the_zone_that_is_told(tmp_path: Path) -> None:
    text = "time,P,U\n2026-01-05 09:00:00,1,0\n2026-01-05 09:00:01,1,0\n"
    assert start_of(one(tmp_path, text)) == datetime(2026, 1, 5, 9, tzinfo=UTC)
    assert start_of(one(tmp_path, text, timezone="Asia/Tokyo")) == datetime(2026, 1, 5, tzinfo=UTC)
    for zone in ("Z", "+09:00", "-0330", "+05", " JST", " UTC"):
        zoned = text.replace("00,1", f"00{zone},1").replace("01,1", f"01{zone},1")
        plain, told = one(tmp_path, zoned), one(tmp_path, zoned, timezone="America/New_York")
        assert start_of(plain) == start_of(told)  # a zone in the stamp is not overruled
    assert start_of(one(tmp_path, zoned.replace(" UTC", " JST"))) == datetime(2026, 1, 5, tzinfo=UTC)


def test_mixed_zones(tmp_path: Path) -> None:
    text = "time,P,U\n2026-01-05T00:00:00Z,1,0\n2026-01-05 09:00:01,1,0\n2026-01-05T01:00:02+01:00,1,0\n"
    with pytest.raises(LogError, match=r"log\.csv:3, column 'time': some times have a zone(?s:.*)--read timezone"):
        one(tmp_path, text)
    episode = one(tmp_path, text, timezone="Asia/Tokyo")
    assert episode.streams["p"].times_ns.tolist() == [0, 10**9, 2 * 10**9]


def berlin(first: str, minutes: int, count: int) -> list[str]:
    """Local stamps of Berlin from a time in UTC on."""
    at = datetime.fromisoformat(first).replace(tzinfo=UTC)
    zone = ZoneInfo("Europe/Berlin")
    return [f"{(at + timedelta(minutes=minutes * k)).astimezone(zone):%Y-%m-%d %H:%M:%S}" for k in range(count)]


@pytest.mark.parametrize("minutes", [1, 20, 60])
@pytest.mark.parametrize("newest_first", [False, True])
def test_an_hour_that_was_twice_is_told_apart_and_said(tmp_path: Path, minutes: int, newest_first: bool) -> None:
    stamps = berlin("2026-10-24T22:00:00", minutes, 300 // minutes)
    assert len(set(stamps)) == len(stamps) - 60 // minutes
    rows = [f"{t},1,0\n" for t in stamps]
    text = "time,P,U\n" + "".join(reversed(rows) if newest_first else rows)
    episode = one(tmp_path, text, timezone="Europe/Berlin", gap_s=1e9)
    step_ns = minutes * 60 * 10**9
    p = episode.streams["p"]
    assert p.times_ns.tolist() == [k * step_ns for k in range(len(stamps))] and p.valid.all()
    assert f"{120 // minutes} stamps lie in an hour that Europe/Berlin has twice" in notes(episode)[0]


def test_an_hour_that_was_twice_but_stands_once_is_refused(tmp_path: Path) -> None:
    stamps = list(dict.fromkeys(berlin("2026-10-24T22:00:00", 20, 15)))
    text = "time,P,U\n" + "".join(f"{t},1,0\n" for t in stamps)
    with pytest.raises(LogError, match=r"log\.csv:8, column 'time': 2026-10-25 02:00:00 was twice in Europe/Berlin"):
        one(tmp_path, text, timezone="Europe/Berlin")
    assert one(tmp_path, text, gap_s=1e9)  # without a zone stamps are taken as they stand


def test_an_hour_that_never_was_is_refused(tmp_path: Path) -> None:
    text = "time,P,U\n2026-03-29 01:59:00,1,0\n2026-03-29 02:30:00,1,0\n"
    with pytest.raises(LogError, match=r"log\.csv:3, column 'time': 2026-03-29 02:30:00 never was in Europe/Berlin"):
        one(tmp_path, text, timezone="Europe/Berlin")
    assert len(one(tmp_path, text, timezone="Asia/Tokyo", gap_s=1e9).streams["p"]) == 2


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(
        ["Asia/Tokyo", "Europe/Berlin", "America/Sao_Paulo", "Africa/Casablanca", "Australia/Lord_Howe"]
    ),
    first=st.integers(-(10**9), 4 * 10**9),
    step_s=st.integers(1, 3000),
)
def test_local_stamps_of_any_zone_come_back_to_utc(zone: str, first: int, step_s: int) -> None:
    """The zone database by way of datetime is the judge; a log long enough to show every step back."""
    utc_s = first + step_s * np.arange(3000 if step_s < 100 else 300)
    info = ZoneInfo(zone)
    local_ns = []
    for s in utc_s.tolist():
        at = datetime.fromtimestamp(s, UTC)
        offset = at.astimezone(info).utcoffset()
        assert offset is not None
        local_ns.append((s + round(offset.total_seconds())) * 10**9)
    try:
        back_ns, _ = utc_from_local(np.array(local_ns, np.int64), zone, str)
    except LogError as e:
        assert "was twice" in e.what  # the log begins or ends within the hour, or has one stamp in it
        return
    assert (back_ns // 10**9).tolist() == utc_s.tolist()


def test_changes_of_a_zone_are_those_of_its_law() -> None:
    at, offsets = changes_of("Europe/Berlin", 1767225600, 1798761600)  # 2026
    assert [datetime.fromtimestamp(s, UTC).isoformat() for s in at.tolist()] == [
        "2026-03-29T01:00:00+00:00",
        "2026-10-25T01:00:00+00:00",
    ]
    assert offsets.tolist() == [3600, 7200, 3600]
    with pytest.raises(LogError, match="unknown time zone 'Mars/Olympus'"):
        changes_of("Mars/Olympus", 0, 1)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("cp932", ["read as cp932 (Shift-JIS)"]),
        ("utf-16", ["read as utf-16: its byte order mark says so"]),
        ("utf-16-le", ["read as utf-16-le: every second byte"]),
        ("utf-16-be", ["read as utf-16-be: every second byte"]),
    ],
)
def test_encodings_are_found_and_said(tmp_path: Path, encoding: str, words: list[str]) -> None:
    text = JAPANESE if not encoding.startswith("utf-16-") else JAPANESE.replace("通常操業", "normal " * 3)
    episode = one(tmp_path, text.encode(encoding), FURNACE)
    stream = episode.streams["temperature"]
    assert stream.values[:, 0].tolist() == [1200.0 + k for k in range(9)] and stream.unit == ("°C",)
    assert [n[: len(w)] for n, w in zip(notes(episode), words, strict=True)] == words
    assert format_of(tmp_path / "log.csv") == "historian"
    assert one(tmp_path, text.encode(encoding), FURNACE, encoding=encoding).streams["temperature"].valid.all()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("time,Größe,Behälter,P,U\n1,0,0,2,3\n2,0,0,3,4\n", "cp1252"),
        ("time,Qualität,P,U\n1,0,2,3\n2,0,3,4\n", "cp1252"),
        ("time,Pressão,Vazão,P,U\n1,0,0,2,3\n", "latin-1"),
        ("time,temp °C,P,U\n1,0,2,3\n", "cp1252"),
        ("時刻,P,U,温度\n1,2,3,4\n", "euc_jp"),
        ("время,P,U,давление\n1,2,3,4\n", "cp1251"),
    ],
)
def test_other_encodings_must_be_told(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(LogError, match=r"log\.csv:1: byte 0x.. is not utf-8(?s:.*)--read encoding=cp932"):
        one(tmp_path, text.encode(encoding))
    assert len(one(tmp_path, text.encode(encoding), encoding=encoding, time_column=text.split(",")[0]).streams["p"])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(raw: bytes) -> None:
    assert isinstance(head_of_text(raw), bytes)
    try:
        text, note = to_utf8(raw, "utf-8", "here")
    except LogError as e:
        assert e.where.startswith("here")
        return
    assert note or text == raw.removeprefix(b"\xef\xbb\xbf")
    text.decode("utf-8")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="温度炉圧力流量計測品質ァイウエオあいうえお一二三", min_size=3, max_size=30))
def test_japanese_in_cp932_is_never_read_as_other_words(words: str) -> None:
    raw = f"時刻,{words},P\r\n1,2,3\r\n".encode("cp932")
    try:
        assert to_utf8(raw, "utf-8", "here")[0].decode() == raw.decode("cp932")
    except LogError as e:
        assert "is not utf-8" in e.what


@pytest.mark.parametrize(
    "text",
    [
        "Datum;P [bar];U\n31.01.2026 23:59:59;12,5;1\n01.02.2026 00:00:00;-0,25;2\n",
        "Datum\tP [bar]\tU\n31.01.2026 23:59:59\t12,5\t1\n01.02.2026 00:00:00\t-,25\t2\n",
        "Datum;P;U\n31.01.2026 23:59:59;12,5 bar;1\n01.02.2026 00:00:00;-0,25 bar;2\n",
        'Datum,P [bar],U\n31.01.2026 23:59:59,"12,5",1\n01.02.2026 00:00:00,"-0,25",2\n',
    ],
)
def test_decimal_commas(tmp_path: Path, text: str) -> None:
    stream = one(tmp_path, text).streams["p"]
    assert stream.values[:, 0].tolist() == [12.5, -0.25] and stream.unit == ("bar",)


def test_a_comma_for_thousands_is_not_read_as_a_unit(tmp_path: Path) -> None:
    for cell in ("1.234,5", "1,234.5", "12,5,1"):
        with pytest.raises(LogError, match="not a number"):
            one(tmp_path, f"time;P;U\n1;7.5;1\n2;{cell};1\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"time,P,U", "there is a header but no row"),
        (b"time,P,U\n1,2", "its only row|last row has 2 of 3|no row"),
        (b"time,P,U\n1,2,3\n2,3,4,5\n", r"log\.csv:3: a row has 4 cells"),
        (b"time,P,U\n1,2,3\n2,3 bar,4\n3,9 psi,4\n", r"two units in one column"),
        (b"time,P,U\n1,2,3\n2,\x82\xa0\x82,3\n", r"log\.csv:3: byte 0x82 is not utf-8"),
    ],
)
def test_bad_files_end_the_verb_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str
) -> None:
    log, machine = tmp_path / "log.csv", tmp_path / "machine.toml"
    log.write_bytes(data)
    machine.write_text(dump_toml(TAG))
    assert main(["intake", str(log), "--embodiment", str(machine), "--dry-run"]) == 1
    err = capsys.readouterr().err
    assert re.search(words, err) and "Traceback" not in err and err.count("next: ") == 1


@pytest.mark.parametrize(("clock", "good"), [("00:75:00", False), ("00:00:61", False), ("24:00:01", False),
                                             ("23:59:60", True), ("24:00:00", True), ("12:59:59", True)])  # fmt: skip
def test_times_of_day_that_there_are(tmp_path: Path, clock: str, good: bool) -> None:
    text = f"date,P,U\n31.01.2026 {clock},1,1\n31.01.2026 {clock},2,2\n"
    if good:
        assert len(one(tmp_path, text).streams["p"]) == 2
    else:
        with pytest.raises(LogError, match=r"log\.csv:2, column 'date': no such time of day"):
            one(tmp_path, text)
