"""Native-rate Parquet, read back with plain pyarrow: every value, stamp, flag and unit, wide and long."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.catalog.export import export_set
from hagane.catalog.export_parquet import Layout, long_table, stream_channels, value_columns, wide_table
from hagane.intake.picture import encode_png
from hagane.terms import Channel, Embodiment, Episode, Stream
from tests.catalog_fixture import ARM, MILL, ROAD, episodes, make_home

MACHINE = Embodiment(
    "m",
    "robot",
    "member-robots",
    10.0,
    4,
    (
        Channel("q", shape=(2,), unit=("rad", "m")),
        Channel("count", unit=("1",)),
        Channel("agents", kind="set", shape=(3, 2)),
        Channel("cam", kind="image", shape=(2, 3, 3), role="camera"),
        Channel("word", kind="text", role="instruction"),
    ),
    (Channel("u"),),
)


@st.composite
def streams(draw: st.DrawFn, channel: Channel) -> Stream:
    """Any times: unsorted, repeated, negative; any flags."""
    times = draw(st.lists(st.integers(-5, 5), min_size=0, max_size=6))
    n = len(times)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    flags = (n, channel.places) if channel.kind == "set" else (n,)
    valid = rng.random(flags) > 0.3
    if channel.kind == "text":
        values = np.array([f"say {k}" for k in range(n)], object)
    elif channel.kind == "image":
        values = rng.integers(0, 255, (n, *channel.shape)).astype(np.uint8)
        if draw(st.booleans()):
            values = np.array([*[encode_png(v) for v in values], None], object)[:n]
    elif channel.name == "count":
        values = rng.integers(-(2**62), 2**62, (n, 1))
    else:
        values = rng.normal(size=(n, *channel.shape)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return Stream(np.array(times, np.int64) * 10**9 + 3, values, valid, channel.unit, 7)


@st.composite
def any_episode(draw: st.DrawFn) -> Episode:
    named = [(n, c) for n, c in stream_channels(MACHINE) if draw(st.booleans())]
    return Episode("e", "m", {n: draw(streams(c)) for n, c in named})


def flat(s: Stream) -> list[list[object]]:
    """Values by column."""
    if s.values.dtype == object:
        return [list(s.values)]
    if s.values.ndim == 4:
        return [[encode_png(v) for v in s.values]]
    width = int(np.prod(s.values.shape[1:]))
    return [list(column) for column in s.values.reshape(len(s), width).T.tolist()]


def by_time(s: Stream) -> list[int]:
    return np.argsort(s.times_ns, kind="stable").tolist()


@settings(max_examples=60, deadline=None)
@given(any_episode())
def test_wide_holds_every_sample_and_makes_up_none(e: Episode) -> None:
    table = wide_table(e, MACHINE)
    times = table["time_ns"].to_pylist()
    assert times == sorted(times)
    for name, channel in stream_channels(MACHINE):
        labels = value_columns(name, channel)
        if name not in e.streams:
            assert not set(labels) & set(table.column_names)
            continue
        s = e.streams[name]
        flags = [f"{name}.valid"] if s.valid.ndim == 1 else [f"{name}.{k}.valid" for k in range(channel.places)]
        there = [k for k, v in enumerate(table[flags[0]].to_pylist()) if v is not None]
        assert [times[k] for k in there] == s.times_ns[by_time(s)].tolist()
        for label, column in zip(labels, flat(s), strict=False):
            got = table[label].to_pylist()
            assert [got[k] for k in there] == [column[k] for k in by_time(s)]
            assert all(v is None for k, v in enumerate(got) if k not in there), "a value was carried on"
        for k, label in enumerate(flags):
            want = s.valid.reshape(len(s), len(flags))[by_time(s), k].tolist()
            assert [v for v in table[label].to_pylist() if v is not None] == want


@settings(max_examples=60, deadline=None)
@given(any_episode())
def test_long_holds_every_value_in_order_of_arrival(e: Episode) -> None:
    rows = long_table(e, MACHINE).to_pylist()
    for name, channel in stream_channels(MACHINE):
        mine = [r for r in rows if r["stream"] == name]
        if name not in e.streams:
            assert not mine
            continue
        s = e.streams[name]
        columns = flat(s)
        assert len(mine) == len(s) * len(columns)
        for r in mine:
            k, c = r["sample"], r["column"]
            values = [r[slot] for slot in ("value", "integer", "text", "picture") if r[slot] is not None]
            assert values == [columns[c][k]] and r["time_ns"] == s.times_ns[k]
            places = channel.places if s.valid.ndim == 2 else 1
            assert r["valid"] == s.valid.reshape(len(s), places)[k, c // (len(columns) // places)]
            assert r["unit"] == (channel.unit or ("1",))[c % len(channel.unit or ("1",))]


@pytest.mark.parametrize("layout", ["wide", "long"])
@pytest.mark.parametrize("machine", [ARM, ROAD, MILL], ids=lambda m: m.name)
def test_exported_files_say_what_they_are(tmp_path: Path, machine: Embodiment, layout: Layout) -> None:
    home = make_home(tmp_path / "site")
    catalog, made = home.catalog(), list(episodes(machine, 3))
    made[1] = replace(made[1], id="../../it's a path/日本", task="押す")
    catalog.add("d", machine, home.contract(machine, "d", purposes=("export",)), made)
    folder = export_set(catalog, "d", "parquet", tmp_path / "out", layout=layout).folder
    listed = pq.read_table(folder / "episodes.parquet").to_pylist()
    assert [(r["id"], r["task"], r["outcome"]) for r in listed] == [(e.id, e.task, e.outcome) for e in made]
    assert [r["findings"] for r in listed] == [[f.kind for f in e.findings] for e in made]
    assert sorted(p.name for p in (folder / "episodes").iterdir()) == [f"{k:06d}.parquet" for k in range(3)]
    for row, episode in zip(listed, made, strict=True):
        table = pq.read_table(folder / row["file"])
        told = json.loads(table.schema.metadata[b"hagane"])
        assert told["episode"] == episode.id and set(told["clock_offset_ns"]) == set(episode.streams)
        assert table.schema.field("time_ns").type == pa.int64()
    if layout == "wide":
        units = {f.name: f.metadata[b"unit"].decode() for f in table.schema if f.metadata and b"unit" in f.metadata}
        assert units["time_ns"] == "ns" and units.get("joints.0", "rad") == "rad"


def test_plain_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    home = make_home(tmp_path / "site")
    catalog = home.catalog()
    catalog.add("d", ARM, home.contract(ARM, "d", purposes=("export",)), episodes(ARM, 2))
    folder = export_set(catalog, "d", "parquet", tmp_path / "out").folder
    frame = pandas.read_parquet(folder / "episodes" / "000001.parquet")
    want = next(episodes(ARM, 1, first=1)).streams["joints"].values
    np.testing.assert_array_equal(frame[["joints.0", "joints.1", "joints.2"]].to_numpy(), want)
