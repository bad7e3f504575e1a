"""Plant historian CSV: our writer against our reader, the real ladle heat, the forms of exports, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.intake import Options, read_logs
from hagane.intake.historian import read
from hagane.intake.historian_write import write_historian
from hagane.terms import Channel, Embodiment, Episode, HaganeError, LogError, load_toml
from tests.conftest import shared_data
from tests.intake_cases import LINE, noise

EXAMPLES = Path(__file__).parents[1] / "examples"
TAG = Embodiment(
    "tag",
    "plant",
    "member-steel",
    1.0,
    4,
    observe=(Channel("p", unit=("bar",), role="pv", source=("P",)),),
    act=(Channel("u", role="mv", source=("U",)),),
)


def one(tmp_path: Path, text: str | bytes, embodiment: Embodiment = TAG, **options: object) -> Episode:
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def test_what_we_write_comes_back_exactly(tmp_path: Path) -> None:
    episodes = [noise(LINE, k, 300) for k in range(3)]
    episodes[1].streams["coating"].valid[40:43] = False
    path = write_historian(episodes, LINE, tmp_path / "line.csv")
    assert "COATING_TOP [g/m2]" in path.read_text().splitlines()[0]
    back = list(read_logs(path, LINE))
    assert [e.id for e in back] == ["line-000000", "line-000001", "line-000002"]
    for before, after in zip(episodes, back, strict=True):
        assert (after.task, after.outcome) == (before.task, before.outcome)
        assert set(after.streams) == set(before.streams)
        for name, stream in before.streams.items():
            other = after.streams[name]
            assert np.array_equal(other.times_ns, stream.times_ns) and np.array_equal(other.valid, stream.valid)
            assert np.array_equal(other.values[other.valid], stream.values[stream.valid]), name
    assert [(f.kind, f.stream, f.time_ns, f.count) for e in back for f in e.findings] == [
        ("missing", "coating", 40 * 10**9, 3)
    ]


def test_sets_travel_as_numbered_columns(tmp_path: Path) -> None:
    zones = Channel("zones", kind="set", shape=(3, 2), role="pv", source=("Z{i}_TEMP", "Z{i}_FLOW"))
    machine = replace(LINE, observe=(*LINE.observe, zones))
    episode = noise(machine, 0, 50)
    path = write_historian([episode], machine, tmp_path / "z.csv")
    (back,) = read_logs(path, machine)
    before, after = episode.streams["zones"], back.streams["zones"]
    assert np.array_equal(before.valid, after.valid)
    assert np.array_equal(before.values[before.valid], after.values[after.valid])


def test_the_real_ladle_heat_has_six_temperatures() -> None:
    embodiment = load_toml(EXAMPLES / "ladle-heat.toml", Embodiment)
    (episode,) = read_logs(shared_data("plant", "ladle_heat", "7654321.csv"), embodiment, task="degas")
    temperature = episode.streams["temperature"]
    assert temperature.values[:, 0].tolist() == [1560, 1563, 1581, 1614, 1564, 1556]
    assert (temperature.times_ns // 10**9).tolist() == [0, 872, 1666, 2105, 3608, 4562]
    assert len(episode.streams["vacuum"]) == 4927 and episode.span_ns == (0, 4926 * 10**9)
    assert (episode.findings, episode.task) == ((), "degas")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-01-02 03:04:05", "2026-01-02 03:04:06"),
        ("2026-01-02T03:04:05.250Z", "2026-01-02T03:04:06.250Z"),
        ("2026-01-02T03:04:05+09:00", "2026-01-01T18:04:06Z"),
        ("2026/01/02 03:04:05", "2026/01/02 03:04:06"),
        ("31/01/2026 23:59:59", "01/02/2026 00:00:00"),
        ("1/31/2026 11:59:59 PM", "2/1/2026 12:00:00 AM"),
        ("31.01.2026 23:59:59,5", "01.02.2026 00:00:00,5"),
        ("1767571200", "1767571201"),
        ("1767571200000", "1767571201000"),
        ("1767571200000000000", "1767571201000000000"),
        ("12.5", "13.5"),
    ],
)
def test_times_of_many_kinds(tmp_path: Path, first: str, second: str) -> None:
    delimiter = ";" if "," in first else ","
    rows = [["time", "P [bar]", "U"], [first, "1", "2"], [second, "3", "4"]]
    episode = one(tmp_path, "\n".join(delimiter.join(r) for r in rows) + "\n")
    assert episode.streams["p"].times_ns.tolist() == [0, 10**9]
    assert episode.streams["p"].values[:, 0].tolist() == [1.0, 3.0]


def test_spreadsheet_days_date_and_clock_apart_and_offsets(tmp_path: Path) -> None:
    episode = one(tmp_path, f"Date,P,U\n46000.5,1,2\n{46000.5 + 1 / 86400},3,4\n")
    assert episode.streams["p"].times_ns.tolist() == [0, 10**9]
    assert -episode.streams["p"].clock_offset_ns == 1765281600 * 10**9  # 2025-12-09 12:00 UTC
    episode = one(tmp_path, "Date,Time,P,U\n2026-01-02,03:04:05,1,2\n2026-01-02,03:04:06,3,4\n")
    assert -episode.streams["p"].clock_offset_ns == 1767323045 * 10**9


def test_day_or_month_is_not_guessed(tmp_path: Path) -> None:
    text = "time,P,U\n01/02/2026 00:00:00,1,2\n01/02/2026 00:00:01,1,2\n"
    with pytest.raises(LogError, match=r"1/2 may be day/month(?s:.*)--read day-first"):
        one(tmp_path, text)
    assert one(tmp_path, text, day_first=True).streams["p"].clock_offset_ns == -1769904000 * 10**9
    assert one(tmp_path, text, day_first=False).streams["p"].clock_offset_ns == -1767312000 * 10**9


def test_units_in_header_unit_row_and_cells(tmp_path: Path) -> None:
    for text in (
        "time,P [bar],U\n1,12.3,0\n2,12.4,0\n",
        "time,P (bar),U\n1,12.3,0\n2,12.4,0\n",
        "time,P,U\ns,bar,\n1,12.3,0\n2,12.4,0\n",
        "time,P,U\n1,12.3 bar,0\n2,12.4 bar,0\n",
    ):
        stream = one(tmp_path, text).streams["p"]
        assert stream.unit == ("bar",) and stream.values[:, 0].tolist() == [12.3, 12.4]
    episode = one(tmp_path, "time,P [psi],U\n1,12.3,0\n2,12.4,0\n")
    assert [f.kind for f in episode.findings] == ["unit-mismatch"] and not episode.streams["p"].valid.any()


def test_two_units_in_a_column_name_file_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"log\.csv:4, column 'P': two units in one column: '180 psi'"):
        one(tmp_path, "time,P,U\n1,12.3 bar,0\n2,12.4 bar,0\n3,180 psi,0\n")
    with pytest.raises(LogError, match=r"log\.csv:3, column 'P': two units in one column"):
        one(tmp_path, "time,P,U\n1,12.3 bar,0\n2,180,0\n")
    with pytest.raises(LogError, match=r"log\.csv:2, column 'P': two units in one column"):
        one(tmp_path, "time,P [bar],U\n1,180 psi,0\n2,190 psi,0\n")
    with pytest.raises(LogError, match=r"log\.csv:4, column 'P': not a number: 'psi'"):
        one(tmp_path, "time,P,U\n1,12.3,0\n2,12.4,0\n3,psi,0\n4,180,0\n")


def test_empty_and_bad_cells_are_invalid_and_found(tmp_path: Path) -> None:
    rows = [f"{t},{'' if t in (5, 6) else 'Bad' if t == 9 else t},0" for t in range(1, 20)]
    episode = one(tmp_path, "time,P,U\n" + "\n".join(rows) + "\n")
    assert np.flatnonzero(~episode.streams["p"].valid).tolist() == [4, 5, 8]
    assert [(f.kind, f.time_ns, f.count) for f in episode.findings] == [("missing", 4 * 10**9, 3)]
    rows[3] = "4,NaN,0"
    episode = one(tmp_path, "time,P,U\n" + "\n".join(rows) + "\n")
    assert ("nan", 3 * 10**9) in [(f.kind, f.time_ns) for f in episode.findings]


def test_episodes_by_column_and_by_silence(tmp_path: Path) -> None:
    head = "time,COIL,P,U\n"
    rows = [f"{t},{'A7' if t < 4 else '' if t < 6 else '007'},1,2\n" for t in range(1, 9)]
    (tmp_path / "log.csv").write_text(head + "".join(rows))
    first, second = read_logs(tmp_path / "log.csv", TAG)
    assert (first.id, second.id) == ("log-A7", "log-007") and len(second.streams["p"]) == 3
    assert "2 rows belong to no episode" in first.findings[0].detail
    (tmp_path / "log.csv").write_text("time,P,U\n1,1,1\n2,1,1\n1000,1,1\n1001,1,1\n")
    assert [e.id for e in read_logs(tmp_path / "log.csv", TAG)] == ["log-00000", "log-00001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("time,P,U\n", "no row"),
        ("time,P,P\n1,2,3\n", "two columns are called 'P'"),
        ("time,Q,U\n1,2,3\n", r"needs a column 'P'"),
        ("time,P,U\n1,2,3\n2,3\n3,4,5\n", r"log.csv:3: a row has 2 cells"),
        ("time,P,U\n1,2,3\n,3,4\n", r"log.csv:3, column 'time': a row has no time"),
        ("time,P,U\n2026-01-01 00:00,2,3\n2026-02-30 00:00,3,4\n", r"log.csv:3, column 'time': no such day"),
        ("time,P,U\n2026-01-01 00:00,2,3\nlater,3,4\n", r"log.csv:3, column 'time': not a time: 'later'"),
        ("time,P,U\n2026-01-01 00:00Z,2,3\n2026-01-01 00:01,3,4\n", "some times have a zone"),
        ("X,P,U\na,2,3\nb,3,4\n", "no time column"),
        ("time,P,U\n1,2,3\n2,#VALUE!,4\n", r"log.csv:3, column 'P': not a number"),
        (b"time,P,U\n1,2,3\n2,\xb0,3\n", r"log.csv:3: byte 0xb0 is not utf-8"),
        (b"time,P,U\n1,2,3\n\x00\x00\x00", "no known log format|zero bytes"),
    ],
)
def test_bad_files_get_one_message(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(LogError, match=words):
        one(tmp_path, text)


def test_a_cut_file_is_refused_or_gives_its_whole_rows(tmp_path: Path) -> None:
    text = "time,P,U\n1,2,3\n2,3,4\n3,4"
    with pytest.raises(LogError, match=r"truncated file: the last row has 2 of 3 cells"):
        one(tmp_path, text)
    episode = one(tmp_path, text, keep_whole=True)
    assert len(episode.streams["p"]) == 2 and [f.kind for f in episode.findings] == ["truncated"]
    # cut within the last number: nobody can tell, so the last row does not count
    episode = one(tmp_path, "time,P,U\n1,2,3\n2,3,4\n3,4,155")
    assert episode.streams["u"].valid.tolist() == [True, True, False]
    assert "truncated" in [f.kind for f in episode.findings]


def test_other_encodings_are_told(tmp_path: Path) -> None:
    text = "time,Größe °C,P,U\n1,0,2,3\n2,0,3,4\n"
    assert len(one(tmp_path, text.encode("cp1252"), encoding="cp1252").streams["p"]) == 2
    assert len(one(tmp_path, b"\xef\xbb\xbf" + text.encode()).streams["p"]) == 2
    with pytest.raises(LogError, match="unknown encoding"):
        one(tmp_path, text, encoding="klingon")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789,;\n\t .:-TZe\"'Pbarµ年NaN", max_size=120))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("time,P,U\n" + text, encoding="utf-8")
    try:
        for episode in read(path, TAG, Options()):
            assert len(episode.streams["p"].values)
    except HaganeError as e:
        assert str(path) in e.where
