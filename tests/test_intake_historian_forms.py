"""Historian tables in four forms (wide and long, CSV and Parquet): the same readings, the same qualities, bad input."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.intake import Options, csv_encoding, parquet_table, read_logs
from hagane.intake.detect import format_of
from hagane.intake.historian import read
from hagane.intake.historian_write import write_historian
from hagane.intake.quality import grades
from hagane.terms import Channel, Embodiment, Episode, HaganeError, LogError
from tests.intake_cases import LINE, noise

TAG = Embodiment(
    "tag",
    "plant",
    "member-steel",
    1.0,
    4,
    observe=(
        Channel("p", unit=("bar",), role="pv", source=("P",)),
        Channel("t", unit=("Cel",), role="pv", rate_hz=0.5, source=("T",)),
    ),
    act=(Channel("u", role="mv", source=("U",)),),
)
START = datetime(2026, 1, 5, tzinfo=UTC)
N = 40
FORMS = ("wide.csv", "long.csv", "wide.parquet", "long.parquet", "long.csv.gz")
Row = tuple[int, str, float | None, Any]


def readings(quality: Sequence[Any] = (192, 192, 0, 64)) -> list[Row]:
    """(second, tag, value, quality): P and U every second, T every other; P has a hole at 10 s."""
    good, *rest = quality
    odd = dict(zip((20, 21, 30), rest, strict=True))
    rows: list[Row] = []
    for k in range(N):
        rows.append((k, "P", None if k == 10 else 1.0 + k / 8, odd.get(k, good)))
        rows.append((k, "U", float(k % 3), good))
        if k % 2 == 0:
            rows.append((k, "T", 700.0 + k, good))
    return rows


def table_of(rows: Sequence[Row], form: str) -> pa.Table:
    times = pa.array([START + timedelta(seconds=k) for k, *_ in rows], pa.timestamp("us", "UTC"))
    if form.startswith("long"):
        tags, values, qualities = ([r[i] for r in rows] for i in (1, 2, 3))
        return pa.table({"Timestamp": times, "TagName": tags, "Value": values, "Quality": qualities})
    seconds = sorted({r[0] for r in rows})
    by = {(r[0], r[1]): r for r in rows}
    wide: dict[str, Any] = {"Timestamp": pa.array([START + timedelta(seconds=k) for k in seconds], times.type)}
    for tag in ("P", "T", "U"):
        cells = [by.get((k, tag), (k, tag, None, None)) for k in seconds]
        wide |= {tag: pa.array([c[2] for c in cells], pa.float64()), f"{tag}.Q": [c[3] for c in cells]}
    return pa.table(wide)


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=17)
    elif path.suffix == ".gz":
        with gzip.open(path, "wb") as f:
            pa_csv.write_csv(table, f)
    else:
        pa_csv.write_csv(table, path)
    return path


def one(path: Path, embodiment: Embodiment = TAG, **options: object) -> Episode:
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def said(episode: Episode, kind: str) -> list[str]:
    return [f.detail for f in episode.findings if f.kind == kind]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "quality", [(192, 192, 0, 64), ("Good", "good", "Bad", "Uncertain"), ("良", "良", "不良", "不確か")]
)
def test_four_forms_of_one_log_are_one_log(tmp_path: Path, form: str, quality: tuple[Any, ...]) -> None:
    path = write(table_of(readings(quality), form), tmp_path / f"line.{form.split('.', 1)[1]}")
    assert format_of(path) == "historian"
    episode = one(path)
    p, t, u = (episode.streams[n] for n in "ptu")
    assert episode.id == "line" and p.times_ns.tolist() == [k * 10**9 for k in range(N)]
    assert p.clock_offset_ns == -int(START.timestamp()) * 10**9
    assert p.values[p.valid, 0].tolist() == [1.0 + k / 8 for k in range(N) if k not in (10, 21, 30)]
    assert np.flatnonzero(~p.valid).tolist() == [10, 21, 30]
    assert (t.times_ns // 10**9).tolist() == list(range(0, N, 2)) and t.valid.all()
    assert u.values[:, 0].tolist() == [float(k % 3) for k in range(N)] and u.valid.all()
    assert said(episode, "bad-quality") == ["2 of 39 readings are not good: 1 uncertain, 1 bad; they are not valid"]
    assert said(episode, "note") == []


@pytest.mark.parametrize("form", FORMS)
def test_the_same_file_gives_the_same_digest(tmp_path: Path, form: str) -> None:
    path = write(table_of(readings(), form), tmp_path / f"line.{form.split('.', 1)[1]}")
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / path.name
    again.write_bytes(path.read_bytes())
    first, second = one(path), one(again)
    assert (first.id, first.digest) == (second.id, second.digest)
    for name, stream in first.streams.items():
        assert np.array_equal(stream.values, second.streams[name].values, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_order_of_rows_in_a_long_table_means_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = readings()
    shuffled = data.draw(st.permutations(rows))
    table = table_of(shuffled, "long")
    path = tmp_path_factory.getbasetemp() / f"shuffled.{data.draw(st.sampled_from(['csv', 'parquet']))}"
    episode = one(write(table, path))
    for name, tag in (("p", "P"), ("t", "T"), ("u", "U")):
        mine = [r for r in rows if r[1] == tag]
        stream = episode.streams[name]
        assert (stream.times_ns // 10**9).tolist() == [r[0] for r in mine]
        assert stream.valid.tolist() == [r[2] is not None and r[3] == 192 for r in mine]

    assert any("put in order of time" in s for s in said(episode, "note")) == any(
        [r[0] for r in shuffled if r[1] == tag] != sorted(r[0] for r in shuffled if r[1] == tag) for tag in "PTU"
    )


def test_japanese_long_form(tmp_path: Path) -> None:
    rows = ["時刻,タグ名称,値,単位,品質"]
    for k in range(8):
        rows.append(f"2026年1月5日 9時00分{k:02d}秒,加熱炉温度,{1200 + k}.5,℃,{'不良' if k == 3 else '良'}")
        rows.append(f"2026年1月5日 9時00分{k:02d}秒,燃料流量,{k},Nm3/h,良")
    furnace = replace(
        TAG,
        observe=(Channel("temperature", unit=("Cel",), role="pv", source=("加熱炉温度",)),),
        act=(Channel("fuel", unit=("m3/h",), role="mv", source=("燃料流量",)),),
    )
    for encoding in ("utf-8", "cp932", "utf-16", "utf-16-le"):
        path = tmp_path / "炉.csv"
        path.write_bytes(("\r\n".join(rows) + "\r\n").encode(encoding))
        episode = one(path, furnace, timezone="Asia/Tokyo")
        stream = episode.streams["temperature"]
        assert stream.values[:, 0].tolist() == [1200.5 + k for k in range(8)] and stream.unit == ("°C",)
        assert np.flatnonzero(~stream.valid).tolist() == [3]
        assert stream.clock_offset_ns == -int(START.timestamp()) * 10**9
        assert len(said(episode, "note")) == (encoding != "utf-8")


def test_a_vanished_tag_is_said_and_not_filled(tmp_path: Path) -> None:
    rows = [r for r in table_rows(900) if r[1] != "P" or r[0] < 100]
    for form in ("long.csv", "long.parquet"):
        episode = one(write(table_of(rows, form), tmp_path / f"line.{form.split('.')[1]}"))
        assert len(episode.streams["p"]) == 100 and len(episode.streams["u"]) == 900
        assert "no reading after 99.000 s, 800.000 s long" in said(episode, "missing")
    # gone for whole episodes: they say so
    rows += [(k + 2000, "U", 1.0, 192) for k in range(50)]
    first, second = read_logs(write(table_of(rows, "long"), tmp_path / "line.csv"), TAG)
    assert (first.id, second.id) == ("line-00000", "line-00001") and "p" not in second.streams
    assert [(f.kind, f.stream) for f in second.findings] == [("unmapped", "p"), ("unmapped", "t")]


def table_rows(n: int) -> list[Row]:
    return [(k, tag, float(k % 9), 192) for k in range(n) for tag in ("P", "U", *(("T",) if k % 2 == 0 else ()))]


def test_episodes_of_a_long_table_by_column(tmp_path: Path) -> None:
    head = "time,tag,value,COIL,outcome\n"
    body = [f"{t},{tag},1,{'A7' if t < 4 else '007'},success\n" for t in range(1, 9) for tag in "PTU"]
    (tmp_path / "log.csv").write_text(head + "".join(body))
    first, second = read_logs(tmp_path / "log.csv", TAG)
    assert (first.id, second.id, second.outcome) == ("log-A7", "log-007", "success")
    assert (len(first.streams["p"]), len(second.streams["p"])) == (3, 5)
    (tmp_path / "log.csv").write_text(head + "".join(body) + "9,P,1,,\n")
    first, second = read_logs(tmp_path / "log.csv", TAG)
    assert said(first, "unmapped") == ["1 readings belong to no episode"] and len(second.streams["p"]) == 5
    (tmp_path / "log.csv").write_text(head + "".join(body) + "2,P,1,007,\n")
    with pytest.raises(LogError, match="overlap in time"):
        list(read_logs(tmp_path / "log.csv", TAG))


def test_two_columns_of_a_channel_meet_within_half_a_period(tmp_path: Path) -> None:
    pair = replace(TAG, observe=(Channel("pair", shape=(2,), role="pv", source=("P", "T")),))
    rows = ["time,tag,value"]
    rows += [f"{k}.0,P,{k}\n{k}.3,T,{k + 100}\n{k},U,0" for k in range(10) if k != 6]
    rows += ["6.0,P,6", "6,U,0"]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    stream = one(tmp_path / "log.csv", pair).streams["pair"]
    assert stream.values[stream.valid].tolist() == [[k, k + 100] for k in range(10) if k != 6]
    assert np.flatnonzero(~stream.valid).tolist() == [6] and np.isnan(stream.values[6, 1])


def test_long_form_says_what_is_missing_and_which_units_differ(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("time,tag,value\n1,P,1\n1,T.PV,1\n")
    with pytest.raises(LogError, match=r"needs a tag 'T'(?s:.*)there are: P, T.PV"):
        one(log)
    log.write_text("time,tag,value,unit\n1,P,1,bar\n1,T,1,Cel\n2,T,1,Cel\n2,P,1,psi\n")
    with pytest.raises(LogError, match=r"log\.csv:5, column 'unit': two units of one tag: 'bar' and 'psi'"):
        one(log)
    log.write_text("time,tag,value\n1,P,1 bar\n1,T,1\n2,P,1 psi\n")
    with pytest.raises(LogError, match=r"log\.csv:4, column 'value': two units in one column: '1 psi'"):
        one(log)
    log.write_text("time,tag,value\n1,P,1\n1,Q,RUN\n1,T,off\n")
    with pytest.raises(LogError, match=r"log\.csv:4, column 'value': not a number: 'off'"):
        one(log)


@pytest.mark.parametrize(
    ("header", "cells", "grade"),
    [
        ("quality", [192, 216, 64, 0, 24, 128], [0, 0, 1, 2, 2, 2]),
        ("StatusCode", [0, 0x40920000, 0x80310000], [0, 1, 2]),
        ("StatusCode", ["0", "0x80310000", ""], [0, 2, 3]),
        ("Q", [0, 0x80000000], [0, 2]),
        ("quality", [0, -0x80000000], [0, 2]),
        ("status", ["OK", "Questionable", "Bad Input", "none of these"], [0, 1, 2, 3]),
        ("品質", ["正常", "異常", "良好", "不良", "欠測", "Ｇ"], [0, 2, 0, 2, 2, 0]),
        ("good", [True, False, None], [0, 2, 2]),
    ],
)
def test_qualities(header: str, cells: list[Any], grade: list[int]) -> None:
    found = grades(pa.array(cells), header, "here")
    assert found is not None and found.tolist() == grade


def test_qualities_that_mean_two_things_are_refused_and_states_are_not_qualities(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="codes from 0 to 1 may mean good or bad"):
        grades(pa.array([0, 1, 0]), "P_STATUS", "here")
    assert grades(pa.array(["RUN", "STOP"]), "P_STATUS", "here") is None
    log = tmp_path / "log.csv"
    log.write_text("time,P,P_STATUS,T,U\n1,1,RUN,700,0\n2,1,STOP,700,0\n")
    episode = one(log)
    assert episode.streams["p"].valid.all() and "'P_STATUS' beside 'P' holds no qualities" in said(episode, "note")[0]


def test_parquet_of_many_types(tmp_path: Path) -> None:
    n = 6
    naive = [datetime(2026, 1, 5, 9, 0, k) for k in range(n)]
    tokyo = [t.replace(tzinfo=timezone(timedelta(hours=9))) for t in naive]
    ticks = [int(START.timestamp()) + k for k in range(n)]
    for times, zone in (
        (pa.array(naive, pa.timestamp("s")), "Asia/Tokyo"),
        (pa.array(naive, pa.timestamp("ns")), "Asia/Tokyo"),
        (pa.array(tokyo, pa.timestamp("ms", "Asia/Tokyo")), ""),
        (pa.array([str(t) for t in tokyo]), ""),
        (pa.array(ticks), ""),
        (pa.array([f"{t:%Y/%m/%d %H:%M:%S}" for t in naive]).dictionary_encode(), "Asia/Tokyo"),
    ):
        table = pa.table(
            {
                "sampled at": times,
                "P": pa.array([Decimal(f"{k}.25") if k != 2 else None for k in range(n)], pa.decimal128(8, 2)),
                "T": pa.array([f"{k},5 Cel".replace(",", ".") for k in range(n)]).dictionary_encode(),
                "U": pa.array([k % 2 == 0 for k in range(n)]),
                "waves": pa.array([[1.0]] * n),
            },
            metadata={"made by": "a test"},
        )
        unit = pa.field("P", table["P"].type, metadata={"unit": "bar"})
        pq.write_table(table.set_column(1, unit, table["P"]), tmp_path / "log.parquet")
        episode = one(tmp_path / "log.parquet", timezone=zone, time_column="sampled at")
        p = episode.streams["p"]
        assert -p.clock_offset_ns == int(START.timestamp()) * 10**9 and p.unit == ("bar",)
        assert p.values[p.valid, 0].tolist() == [0.25, 1.25, 3.25, 4.25, 5.25] and not p.valid[2]
        assert episode.streams["t"].values[:, 0].tolist() == [k + 0.5 for k in range(0, n)]
        assert episode.streams["u"].values[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    waves = replace(TAG, observe=(Channel("w", source=("waves",)),))
    with pytest.raises(LogError, match=r"column 'waves': the column holds list<.*>, not single values"):
        one(tmp_path / "log.parquet", waves)


def test_parquet_reads_no_column_that_nobody_asked_for(tmp_path: Path) -> None:
    """A column of a claimed size that no memory has is not touched; one that is asked for is refused first."""
    n = 1 << 18
    path = tmp_path / "log.parquet"
    columns = {"time": np.arange(n), **{c: np.zeros(n) for c in ("P", "T", "U", "OTHER")}}
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < n * 8  # a few bytes a row stand for forty
    limit = parquet_table.MOST_BYTES
    try:
        parquet_table.MOST_BYTES = 4 * n * 8
        assert len(one(path, gap_s=10.0).streams["p"]) == n
        parquet_table.MOST_BYTES -= 1
        with pytest.raises(LogError, match=rf"need 8 MiB of memory \({n} rows\)"):
            one(path)
    finally:
        parquet_table.MOST_BYTES = limit


def test_wrong_extension_missing_footer_and_packed_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(table_of(readings(), "wide"), tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.csv").write_bytes(whole)
    assert len(one(tmp_path / "log.csv").streams["p"]) == N  # a Parquet file called .csv
    table = write(table_of(readings(), "wide"), tmp_path / "other.csv")
    table.rename(tmp_path / "other.parquet")
    assert len(one(tmp_path / "other.parquet").streams["p"]) == N  # and the other way round
    (tmp_path / "log.parquet").write_bytes(whole[:-8])
    with pytest.raises(LogError, match=r"log\.parquet: truncated file: the footer of the Parquet file is missing"):
        one(tmp_path / "log.parquet")
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"time,P,T,U\n" + b"1,1,1,1\n" * 200_000))
    assert len(list(read_logs(bomb, TAG))) == 1
    monkeypatch.setattr(csv_encoding, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(LogError, match=r"unpacks to more than 1 MiB from \d+ bytes"):
        one(bomb)
    monkeypatch.undo()
    bomb.write_bytes(bomb.read_bytes()[:-50])
    with pytest.raises(LogError, match="damaged or truncated gzip"):
        one(bomb)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(FORMS), at=st.floats(0, 1), keep=st.booleans())
def test_a_file_cut_anywhere_is_refused_or_gives_true_rows(
    tmp_path_factory: pytest.TempPathFactory, form: str, at: float, keep: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write(table_of(readings(), form), folder / f"cut.{form.split('.', 1)[1]}")
    whole = dict(one(path).streams)
    data = path.read_bytes()
    path.write_bytes(data[: int(at * (len(data) - 1))])
    try:
        for episode in read_logs(path, TAG, keep_whole=keep):
            for name, stream in episode.streams.items():
                full = whole[name]
                good = stream.valid
                assert np.isin(stream.times_ns[good], full.times_ns).all()
                index = np.searchsorted(full.times_ns, stream.times_ns[good])
                assert np.array_equal(stream.values[good], full.values[index])
    except HaganeError as e:
        assert str(path) in e.where and "\n" not in e.what


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_parquet_file_is_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, at: float, bit: int
) -> None:
    path = write(table_of(readings(), "long"), tmp_path_factory.getbasetemp() / "flip.parquet")
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(bytes(data))
    try:
        list(read(path, TAG, Options()))
    except HaganeError as e:
        assert str(path) in e.where


def test_newest_first_and_repeated_stamps(tmp_path: Path) -> None:
    wide = table_of(readings(), "wide")
    path = write(wide.take(np.arange(len(wide))[::-1]), tmp_path / "log.csv")
    episode = one(path)
    assert episode.streams["p"].times_ns.tolist() == [k * 10**9 for k in range(N)]
    assert np.flatnonzero(~episode.streams["p"].valid).tolist() == [10, 21, 30]
    assert said(episode, "note") == ["its rows come newest first: read from its end"]
    for form in ("wide", "long"):
        table = table_of([r for r in readings((192, 192, 192, 192)) if r[2] is not None], form)
        twice = pa.concat_tables([table.slice(0, 15), table.slice(10, 20), table.slice(30)])
        episode = one(write(twice, tmp_path / "log.parquet"))
        kinds = {f.kind for f in episode.findings}
        assert "duplicate" in kinds or "clock-jump" in kinds
        p = episode.streams["p"]
        once = len(np.unique(p.times_ns[p.valid])) == p.valid.sum()  # no stamp is valid twice
        assert once or form == "wide"


def test_what_our_writer_writes_comes_back_through_parquet(tmp_path: Path) -> None:
    episodes = [noise(LINE, k, 60) for k in range(2)]
    words = pa_csv.ConvertOptions(column_types={"EPISODE": pa.string()})
    table = pa_csv.read_csv(write_historian(episodes, LINE, tmp_path / "line.csv"), convert_options=words)
    pq.write_table(table, tmp_path / "line.parquet")
    (tmp_path / "line.csv").unlink()
    back = list(read_logs(tmp_path / "line.parquet", LINE))
    assert [(e.id, e.task, e.outcome) for e in back] == [
        ("line-000000", "task 0", "success"),
        ("line-000001", "task 1", "failure"),
    ]
    for before, after in zip(episodes, back, strict=True):
        assert set(after.streams) == set(before.streams)
        assert np.allclose(after.streams["coating"].values, before.streams["coating"].values)


def test_episodes_without_a_reading_of_any_channel_are_said(tmp_path: Path) -> None:
    odd = replace(TAG, act=(Channel("both", shape=(2,), role="mv", source=("U", "V")),))
    own = "".join(f"{t},{tag},1,A7\n" for t in range(10, 14) for tag in "PTU")
    (tmp_path / "log.csv").write_text("time,tag,value,COIL\n1,U,1,A6\n" + own + "20,U,1,A8")
    (only,) = read_logs(tmp_path / "log.csv", odd)
    assert only.id == "log-A7" and len(said(only, "truncated")) == 1
    assert "2 episodes without a reading of any channel are left out" in said(only, "note")
    (tmp_path / "log.csv").write_text("time,tag,value,COIL\n1,P,1,\n1,T,1,\n2,U,1,A6\n")
    with pytest.raises(LogError, match="no channel has readings of its tags"):
        read_logs(tmp_path / "log.csv", odd)


def test_words_that_fill_the_memory_are_refused_while_they_are_read(tmp_path: Path) -> None:
    """A dictionary holds a long word once, whatever the number of rows that say it."""
    n = 1 << 18
    long = pa.array(["x" * 10_000, "P"]).take(pa.array(np.arange(n) % 2))
    cells = {"time": np.arange(n), "tag": pa.array(["P"] * n), "value": np.zeros(n), "outcome": long}
    pq.write_table(pa.table(cells), tmp_path / "log.parquet", compression="zstd")
    assert (tmp_path / "log.parquet").stat().st_size < 3 << 20
    limit = parquet_table.MOST_BYTES
    try:
        parquet_table.MOST_BYTES = 1 << 29
        with pytest.raises(LogError, match="MiB of memory"):
            read(tmp_path / "log.parquet", TAG, Options())
    finally:
        parquet_table.MOST_BYTES = limit


def test_any_byte_of_a_parquet_footer_is_one_message(tmp_path: Path) -> None:
    """In a process of its own: what pyarrow does not catch ends the process."""
    path = write(table_of(readings(), "wide"), tmp_path / "log.parquet")
    code = (
        "import sys, random\nfrom pathlib import Path\nfrom hagane.intake import Options\n"
        "from hagane.intake.historian import read\nfrom hagane.terms import HaganeError\n"
        "from tests.test_intake_historian_forms import TAG\n"
        "path = Path(sys.argv[1]); whole = path.read_bytes(); size = int.from_bytes(whole[-8:-4], 'little')\n"
        "rng = random.Random(0)\n"
        "for _ in range(400):\n"
        "    at = len(whole) - 8 - rng.randrange(size)\n"
        "    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])\n"
        "    try:\n        list(read(path, TAG, Options()))\n    except HaganeError:\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
