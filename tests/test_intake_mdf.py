"""MDF 4 and 3 made by asammdf itself: clocks, conversions, invalidation, groups, raw CAN, cuts, compressed bombs."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hagane.intake import read_logs
from hagane.intake.comma import read_comma
from hagane.intake.detect import format_of
from hagane.intake.mdf_guard import cut_of
from hagane.terms import Channel, Embodiment, Episode, LogError, load_toml
from tests.conftest import shared_data
from tests.intake_cases import CAR
from tests.test_intake_can_logs import ONE

asammdf = pytest.importorskip("asammdf")
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
EXAMPLES = Path(__file__).parents[1] / "examples"
START = datetime(2026, 1, 5, 12, 0, 0, 123456, tzinfo=UTC)
START_NS = 1_767_614_400_123_456_000
KINDS = ["4.10", "4.11", "3.30"]
ENGINE_S, BRAKE_S = np.arange(100) / 100, np.arange(50) / 50 + 0.001
BENCH = replace(
    CAR,
    observe=(
        Channel("speed", unit=("km/h",), rate_hz=100.0, source=("Engine.Speed",)),
        Channel("gear", rate_hz=100.0, source=("Gear",)),
        Channel("mixed", shape=(2,), unit=("km/h", "1"), rate_hz=50.0, source=("#1.Speed", "Gear")),
    ),
    act=(Channel("pedal", unit=("%",), rate_hz=50.0, source=("Pedal",)),),
)


def measure(path: Path, version: str = "4.10", start: datetime = START, compression: int = 2) -> Path:
    """Two groups of their own rates that both hold "Speed"; a linear conversion, a value table, invalidation bits."""
    file = asammdf.MDF(version=version)
    file.start_time = start
    four = version >= "4"
    bits = {"invalidation_bits": np.arange(100) % 10 == 3} if four else {}
    table: dict[str, Any] = {f"val_{k}": k for k in range(4)}
    table |= {f"text_{k}": word.encode() for k, word in enumerate("PRND")}
    raw = np.arange(100, dtype="u2")
    linear = asammdf.blocks.conversion_utils.from_dict({"a": 0.5, "b": -1.0})
    gear = np.tile(np.arange(4, dtype="u1"), 25)
    engine = [
        asammdf.Signal(raw, ENGINE_S, name="Speed", unit="km/h", conversion=linear if four else None, **bits),
        asammdf.Signal(gear, ENGINE_S, name="Gear", conversion={**table, "default": b""} if four else None),
    ]
    file.append(engine, acq_name="Engine", comment="Engine")
    brake = [
        asammdf.Signal(np.arange(50) * 1.0, BRAKE_S, name="Speed", unit="km/h"),
        asammdf.Signal(np.arange(50) * 2.0, BRAKE_S, name="Pedal", unit="%"),
    ]
    file.append(brake, acq_name="Brake", comment="Brake")
    saved = file.save(path, overwrite=True, compression=compression if four else 0)
    file.close()
    return Path(saved)


def one(path: Path, embodiment: Embodiment = BENCH, **options: Any) -> Episode:
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def name_of(version: str) -> str:
    return "bench.mf4" if version >= "4" else "bench.mdf"


@pytest.mark.parametrize("version", KINDS)
def test_groups_keep_their_clocks_and_values_are_physical(tmp_path: Path, version: str) -> None:
    path = measure(tmp_path / name_of(version), version)
    assert format_of(path) == "mdf" and cut_of(path) == ""
    episode = one(path)
    assert (episode.id, episode.span_ns[0]) == ("bench", 0)
    # the invalid readings, and nothing else
    assert [(f.kind, f.stream) for f in episode.findings] == [("missing", "speed")] * (10 if version >= "4" else 0)
    speed, gear, mixed, pedal = (episode.streams[n] for n in ("speed", "gear", "mixed", "pedal"))
    assert np.array_equal(speed.times_ns - speed.clock_offset_ns, START_NS + np.arange(100) * 10_000_000)
    assert np.array_equal(pedal.times_ns - pedal.clock_offset_ns, START_NS + 1_000_000 + np.arange(50) * 20_000_000)
    if version >= "4":
        bad = np.arange(100) % 10 == 3
        assert np.array_equal(speed.valid, ~bad)
        assert np.array_equal(speed.values[~bad, 0], np.arange(100)[~bad] * 0.5 - 1.0)
    else:
        assert speed.valid.all() and np.array_equal(speed.values[:, 0], np.arange(100))
    # a value table of words gives its numbers; the other group's value is the nearest in time
    assert gear.values[:8, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert mixed.values[:4].tolist() == [[0, 0], [1, 2], [2, 0], [3, 2]] and mixed.valid.all()
    assert speed.unit == ("km/h",) and pedal.unit == ("%",) and mixed.unit == ("km/h", "1")
    assert one(path).digest == episode.digest


def test_a_start_time_without_zone_is_local_when_a_zone_is_named(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4", start=START.replace(tzinfo=None))
    plain, tokyo = one(path), one(path, timezone="Asia/Tokyo")
    assert plain.streams["gear"].clock_offset_ns == -START_NS
    assert tokyo.streams["gear"].clock_offset_ns == -START_NS + 9 * 3600 * 10**9


def test_a_name_in_several_groups_must_be_told_apart(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4")

    def asking(source: str) -> Embodiment:
        return replace(BENCH, observe=(Channel("v", unit=("km/h",), source=(source,)),))

    with pytest.raises(LogError, match=r"'Speed' is in 2 groups: #0 'Engine', #1 'Brake'(?s:.*)\"Engine\.Speed\""):
        read_logs(path, asking("Speed"))
    with pytest.raises(LogError, match=r"no channel 'Sped'(?s:.*)Speed"):
        read_logs(path, asking("Sped"))
    with pytest.raises(LogError, match=r"no channel 'Motor\.Speed'"):
        read_logs(path, asking("Motor.Speed"))
    assert len(one(path, asking("Brake.Speed")).streams["v"]) == len(one(path, asking("#1.Speed")).streams["v"]) == 50


def test_units_are_compared_and_channels_without_source_may_be_absent(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4")
    plain = replace(BENCH, observe=BENCH.observe[1:])
    wrong = replace(plain, act=(Channel("pedal", unit=("km/h",), rate_hz=50.0, source=("Pedal",)),))
    assert [f.kind for f in one(path, wrong).findings] == ["unit-mismatch"]
    more = replace(plain, observe=(*plain.observe, Channel("lidar")))
    assert [(f.kind, f.stream) for f in one(path, more).findings] == [("unmapped", "lidar")]
    nothing = replace(BENCH, observe=(Channel("x"),), act=(Channel("y"),))
    with pytest.raises(LogError, match="none of the channels asked for is in the file: x, y"):
        read_logs(path, nothing)


def test_sets_come_from_numbered_channels(tmp_path: Path) -> None:
    file = asammdf.MDF(version="4.10")
    file.start_time = START
    bad = np.arange(100) % 2 == 1
    signals = [
        asammdf.Signal(
            np.arange(100) + 100.0 * i, ENGINE_S, name=f"Obj{i}.{c}", invalidation_bits=bad if i == 2 else None
        )
        for i in (1, 2)
        for c in "XY"
    ]
    file.append([*signals, asammdf.Signal(np.zeros(100), ENGINE_S, name="Pedal")], acq_name="Radar")
    path = Path(file.save(tmp_path / "bench.mf4"))
    objects = Channel("objects", kind="set", shape=(2, 2), role="agents", source=("Obj{i}.X", "Obj{i}.Y"))
    stream = one(path, replace(BENCH, observe=(objects,))).streams["objects"]
    assert stream.values.shape == (100, 2, 2) and stream.valid[:, 0].all() and np.array_equal(stream.valid[:, 1], ~bad)
    assert stream.values[4].tolist() == [[104, 104], [204, 204]]


def mf4_of_frames(path: Path, rows: list[tuple[float, int, bytes]]) -> None:
    can = pytest.importorskip("can")
    with can.MF4Writer(path) as writer:
        base = writer._start_time
        for at, ident, data in rows:
            message = can.Message(base + at, ident, is_extended_id=False, data=data, channel=0, is_fd=len(data) > 8)
            writer.on_message_received(message)
        writer.on_message_received(can.Message(base + rows[-1][0], is_error_frame=True, channel=0))


def test_raw_can_in_an_mdf_is_decoded_with_a_dbc(tmp_path: Path) -> None:
    pytest.importorskip("cantools")
    path = tmp_path / "bus.mf4"
    mf4_of_frames(path, [(k / 100, 0x100, bytes([k, 9])) for k in range(60)])
    text = 'VERSION ""\nNS_ :\nBS_:\nBU_: X\nBO_ 256 EGO: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] "" X\n'
    (tmp_path / "car.dbc").write_text(text)
    episode = one(path, ONE)
    stream = episode.streams["ego"]
    assert (
        np.array_equal(stream.values[:, 0], np.arange(60)) and np.abs(np.diff(stream.times_ns) - 10_000_000).max() < 500
    )
    assert [f.detail for f in episode.findings] == ["1 error frame left out: they carry no data"]
    (tmp_path / "car.dbc").unlink()
    with pytest.raises(LogError, match=r"no DBC file beside the log(?s:.*)--dbc"):
        read_logs(path, ONE)


def test_the_real_drive_through_an_mdf_gives_its_own_steering(tmp_path: Path) -> None:
    pytest.importorskip("cantools")
    drive = shared_data("can", "comma2k19_segment")
    frames = read_comma(drive).frames
    names = ("BusChannel", "ID", "IDE", "DLC", "DataLength")
    dtype = np.dtype([*((f"CAN_DataFrame.{n}", "<u4") for n in names), ("CAN_DataFrame.DataBytes", "(8,)u1")])
    table = np.zeros(len(frames), dtype)
    columns = (frames.buses, frames.ids & 0x7FF, 0, 8, 8)
    for name, column in zip(names, columns, strict=True):
        table[f"CAN_DataFrame.{name}"] = column
    table["CAN_DataFrame.DataBytes"] = frames.data
    file = asammdf.MDF(version="4.10")
    file.start_time = START
    seconds = (frames.times_ns - frames.times_ns[0]) / 1e9
    file.append(asammdf.Signal(table, seconds, name="CAN_DataFrame"))
    path = Path(file.save(tmp_path / "drive.mf4", compression=2))
    embodiment = load_toml(EXAMPLES / "toyota-drive.toml", Embodiment)
    episode = one(path, embodiment, dbc=shared_data("can", "dbc", "toyota_nodsu_pt.dbc"))
    own = np.load(drive / "steering_angle" / "value.npy", allow_pickle=False)
    assert np.array_equal(episode.streams["steering"].values[:, 0], own) and len(own) == 4974
    assert episode.findings == ()


@pytest.mark.parametrize("version", ["4.10", "3.30"])
def test_a_file_cut_at_any_byte_is_one_message(tmp_path: Path, version: str) -> None:
    path = measure(tmp_path / name_of(version), version)
    data = path.read_bytes()
    for at in [*range(0, 64, 5), *range(64, len(data), 131), len(data) - 1]:
        path.write_bytes(data[:at])
        for keep in (False, True):
            try:
                episode = one(path, keep_whole=keep)
            except LogError as e:
                assert "bench" in e.where or at == 0
            else:
                assert keep and "truncated" in {f.kind for f in episode.findings}, at


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=3), st.sampled_from(KINDS[1:])
)
def test_damaged_bytes_are_one_kind_of_error(tmp_path: Path, faults: list[tuple[int, int]], version: str) -> None:
    whole = tmp_path / name_of(version)
    if not whole.exists():
        measure(whole, version)
    data = bytearray(whole.read_bytes())
    for at, byte in faults:
        data[at % len(data)] = byte
    damaged = tmp_path / "damaged.mf4"
    damaged.write_bytes(bytes(data))
    try:
        list(read_logs(damaged, BENCH))
    except LogError as e:
        assert "damaged" in e.where


def zipped_block(data: bytes) -> int:
    """Where the first compressed block of a file begins."""
    return data.index(b"##DZ")


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (lambda block: (1 << 40, block), "claims 1,099,511,627,776 bytes"),
        (lambda block: (60 << 20, block), "claims 62,914,560 bytes"),
        (lambda block: (100, block), "holds other than the 100 bytes"),
        (lambda block: (1200, b"\xff" * len(block)), "cannot be inflated"),
    ],
)
def test_a_compressed_block_that_lies_is_refused_before_it_fills_memory(tmp_path: Path, claim: Any, words: str) -> None:
    path = measure(tmp_path / "bench.mf4")
    data = bytearray(path.read_bytes())
    at = zipped_block(data)
    original, packed = struct.unpack_from("<QQ", data, at + 32)
    assert len(zlib.decompress(data[at + 48 : at + 48 + packed])) == original
    claimed, block = claim(bytes(data[at + 48 : at + 48 + packed]))
    data[at + 32 : at + 40] = struct.pack("<Q", claimed)
    data[at + 48 : at + 48 + packed] = block
    path.write_bytes(bytes(data))
    tracemalloc.start()
    with pytest.raises(LogError, match=words):
        read_logs(path, BENCH)
    # nor does a file that says of itself that it is unfinished get past
    path.write_bytes(b"UnFinMF " + bytes(data[8:60]) + b"\1" + bytes(data[61:]))
    with pytest.raises(LogError, match=words):
        read_logs(path, BENCH, keep_whole=True)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_blocks_linked_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4")
    data = bytearray(path.read_bytes())
    group = struct.unpack_from("<Q", data, 64 + 24)[0]
    data[group + 24 : group + 32] = struct.pack("<Q", group)
    path.write_bytes(bytes(data))
    with pytest.raises(LogError, match="linked in a circle"):
        read_logs(path, BENCH)


def test_records_that_the_data_do_not_hold_are_refused(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4")
    data = bytearray(path.read_bytes())
    group = data.index(b"##CG")
    links = struct.unpack_from("<Q", data, group + 16)[0]
    data[group + 24 + 8 * links + 8 : group + 24 + 8 * links + 16] = struct.pack("<Q", 10**9)
    path.write_bytes(bytes(data))
    with pytest.raises(LogError, match=r"the group counts 1,000,000,000 records"):
        read_logs(path, BENCH)


def test_a_file_that_was_never_finished(tmp_path: Path) -> None:
    path = measure(tmp_path / "bench.mf4", compression=0)
    data = bytearray(path.read_bytes())
    data[:8] = b"UnFinMF "
    data[60] = 1  # cycle counters still to be written
    path.write_bytes(bytes(data))
    with pytest.raises(LogError, match=r"truncated file: its writer never finished it(?s:.*)--keep-whole"):
        read_logs(path, BENCH)
    episode = one(path, keep_whole=True)
    assert len(episode.streams["gear"]) == 100
    assert [f.detail for f in episode.findings if f.kind == "truncated"] == ["its writer never finished it"]


def test_blocks_that_are_too_short_or_lead_nowhere_are_one_message(tmp_path: Path) -> None:
    whole = measure(tmp_path / "bench.mf4").read_bytes()
    group = struct.unpack_from("<Q", whole, 64 + 24)[0]
    data, end = bytearray(whole), len(whole)

    def refused(words: str) -> None:
        (tmp_path / "odd.mf4").write_bytes(bytes(data))
        with pytest.raises(LogError, match=words):
            read_logs(tmp_path / "odd.mf4", BENCH)

    # a compressed block of 24 bytes, at the very end
    data[group + 40 : group + 48] = struct.pack("<Q", end)
    data += struct.pack("<4s4xQQ", b"##DZ", 24, 0)
    refused("a compressed block shorter than its head")
    # a first group that is none, and leads to itself
    data = bytearray(whole)
    data[64 + 24 : 64 + 32] = struct.pack("<Q", end)
    data += struct.pack("<4s4xQQQ", b"##ZZ", 32, 1, end)
    refused("no data group begins here")
    # unsorted data whose list holds itself
    data = bytearray(whole)
    data[group + 40 : group + 48] = struct.pack("<Q", end)
    data[group + 24 + 32] = 1
    data += struct.pack("<4s4xQQQQ", b"##DL", 40, 2, 0, end) + bytes(24)
    refused("the group counts 100 records")
