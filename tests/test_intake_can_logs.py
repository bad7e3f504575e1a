"""BLF and ASC against python-can's own readers and writers, CAN FD, the real drive, cuts at any byte, claims."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hagane.intake import read_logs
from hagane.intake.asc import parse_asc
from hagane.intake.blf import read_blf
from hagane.intake.can_dbc import load_dbc
from hagane.intake.can_files import load_recording
from hagane.intake.can_write import encode_can
from hagane.intake.candump import parse_candump
from hagane.intake.comma import read_comma
from hagane.intake.detect import format_of
from hagane.intake.frames import EXTENDED, Frames, Recording
from hagane.intake.options import Options
from hagane.intake.signals import Message, Signal, decode
from hagane.terms import Channel, Embodiment, LogError, load_toml
from tests.conftest import shared_data
from tests.intake_cases import CAR, noise

can = pytest.importorskip("can")
cantools = pytest.importorskip("cantools")
EXAMPLES = Path(__file__).parents[1] / "examples"
START_S = 1_527_000_000.0
WRITERS = {"blf": can.BLFWriter, "asc": can.ASCWriter, "log": can.CanutilsLogWriter}
READERS = {"blf": can.BLFReader, "asc": can.ASCReader, "log": can.CanutilsLogReader}
FD_SIZES = (0, 1, 8, 12, 16, 20, 24, 32, 48, 64)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """A data, FD, remote or error frame at some later microsecond."""
    kind = draw(st.sampled_from(["data", "data", "data", "fd", "remote", "error"]))
    extended = draw(st.booleans())
    size = draw(st.sampled_from(FD_SIZES[1:] if kind == "fd" else range(9)))
    return {
        "timestamp": draw(st.integers(0, 3_000_000)),
        "arbitration_id": draw(st.integers(0, (1 << 29) - 1 if extended else 0x7FF)),
        "is_extended_id": extended,
        "is_fd": kind == "fd",
        "is_remote_frame": kind == "remote",
        "is_error_frame": kind == "error",
        "dlc": size,
        "data": b"" if kind == "remote" else draw(st.binary(min_size=size, max_size=size)),
        "channel": draw(st.integers(0, 3)),
        "is_rx": draw(st.booleans()),
    }


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> list[Any]:
    at = START_S
    sent = []
    with WRITERS[path.suffix[1:]](path, **options) as writer:
        for row in rows:
            at += row["timestamp"] / 1e6
            name = {"channel": f"can{row.get('channel', 0)}"} if path.suffix == ".log" else {}
            sent.append(can.Message(**{**row, "timestamp": at, **name}))
            writer.on_message_received(sent[-1])
    return sent


def recording(path: Path) -> Recording:
    return load_recording(path, Options())


@pytest.mark.parametrize("ext", ["blf", "asc", "log"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(messages(), min_size=1, max_size=30), packed=st.sampled_from([0, 6]), box=st.sampled_from([90, 4096])
)
def test_any_log_of_python_can_reads_as_by_python_can(
    tmp_path: Path, ext: str, rows: list[dict[str, Any]], packed: int, box: int
) -> None:
    path = tmp_path / f"log.{ext}"
    options = {"compression_level": packed, "max_container_size": box} if ext == "blf" else {}
    write(path, rows, **options)
    ours = recording(path)
    theirs = list(READERS[ext](path))
    wanted = [m for m in theirs if not (m.is_error_frame or m.is_remote_frame)]
    frames = ours.frames
    assert ours.cut == "" and len(frames) == len(wanted)
    assert ours.skipped.get("error", 0) == sum(m.is_error_frame for m in theirs)
    assert ours.skipped.get("remote", 0) == sum(m.is_remote_frame for m in theirs)
    for k, m in enumerate(wanted):
        assert frames.ids[k] == m.arbitration_id | (EXTENDED if m.is_extended_id else 0)
        assert bytes(frames.data[k, : frames.lengths[k]]) == bytes(m.data) and not frames.data[k, len(m.data) :].any()
        assert frames.buses[k] == int(str(m.channel).removeprefix("can"))
    since_ns = frames.times_ns - (frames.times_ns[0] if len(frames) else 0)
    their_s = np.array([m.timestamp for m in wanted])
    # their stamps are floats of about 1.5e9 s: steps of 0.24 microseconds
    assert np.abs(since_ns / 1e9 - (their_s - their_s[:1])).max(initial=0) < 2e-6


@pytest.mark.parametrize("ext", ["blf", "asc"])
def test_the_real_drive_through_a_vector_log_gives_its_own_steering(tmp_path: Path, ext: str) -> None:
    drive = shared_data("can", "comma2k19_segment")
    dbc = shared_data("can", "dbc", "toyota_nodsu_pt.dbc")
    frames = read_comma(drive).frames
    path = tmp_path / f"drive.{ext}"
    shift_ns = 1_500_000_000_000_000_000
    with WRITERS[ext](path) as writer:
        for at, ident, data, bus in zip(
            (frames.times_ns + shift_ns).tolist(), frames.ids.tolist(), frames.data, frames.buses.tolist(), strict=True
        ):
            writer.on_message_received(
                can.Message(at / 1e9, ident & 0x7FF, is_extended_id=False, data=bytes(data), channel=bus)
            )
    embodiment = load_toml(EXAMPLES / "toyota-drive.toml", Embodiment)
    (direct,) = read_logs(drive, embodiment, dbc=dbc)
    (through,) = read_logs(path, embodiment, dbc=dbc)
    assert through.findings == () and set(through.streams) == set(direct.streams)
    for name, stream in direct.streams.items():
        other = through.streams[name]
        assert np.array_equal(stream.values, other.values) and np.array_equal(stream.valid, other.valid), name
        # ASC keeps microseconds
        assert np.abs(stream.times_ns - other.times_ns).max() <= 1_000, name
    own = np.load(drive / "steering_angle" / "value.npy", allow_pickle=False)
    assert np.array_equal(through.streams["steering"].values[:, 0], own) and len(own) == 4974


def small(ext: str, folder: Path, count: int = 40) -> Path:
    """A log of `count` frames and a DBC, with an error frame in it."""
    rows = [
        {"timestamp": 10_000, "arbitration_id": 0x100, "is_extended_id": False, "data": bytes([k, 1, 2, 3, 4, 5, 6, 7])}
        for k in range(count)
    ]
    rows.insert(5, {"timestamp": 0, "is_error_frame": True, "data": b"", "is_extended_id": False})
    path = folder / f"log.{ext}"
    if ext == "log":
        lines = [
            f"({START_S + k / 100:.6f}) can0 100#{bytes(r['data']).hex()}\n" for k, r in enumerate(rows) if r["data"]
        ]
        path.write_text("".join(lines))
    else:
        write(path, rows, **({"max_container_size": 500} if ext == "blf" else {}))
    (folder / "car.dbc").write_text(
        'VERSION ""\nNS_ :\nBS_:\nBU_: X\nBO_ 256 EGO: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] "" X\n'
    )
    return path


ONE = replace(CAR, observe=(Channel("ego", source=("EGO.S",)),), act=(Channel("a", source=("EGO.S",)),))


@pytest.mark.parametrize("ext", ["blf", "asc", "log"])
def test_a_log_cut_at_any_byte_is_refused_or_gives_whole_frames(tmp_path: Path, ext: str) -> None:
    path = small(ext, tmp_path)
    data = path.read_bytes()
    whole = recording(path).frames
    given_back = 0
    for at in range(0, len(data), 2 if ext == "blf" else 11):
        path.write_bytes(data[:at])
        for keep in (False, True):
            try:
                (episode,) = read_logs(path, ONE, keep_whole=keep)
            except LogError as e:
                assert str(path) in e.where or "log" in e.where
                continue
            stream = episode.streams["ego"]
            n = len(stream)
            assert np.array_equal(stream.values[:, 0], whole.data[:n, 0])
            # a cut between two candump lines cannot be seen
            # without its last line break a log is whole all the same; where that lies moves with the date in its head
            whole_but_for_its_end = at > len(data) - 4
            assert keep or (ext == "log" and data[at - 1 : at] == b"\n") or whole_but_for_its_end
            given_back += 1
            if keep and ext != "log" and not whole_but_for_its_end:
                assert [f.kind for f in episode.findings if f.kind == "truncated"] == ["truncated"]
    assert given_back > 20


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["blf", "asc"]), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3)), max_size=4))
def test_damaged_bytes_are_one_kind_of_error(tmp_path: Path, ext: str, faults: list[tuple[int, bytes]]) -> None:
    path = tmp_path / f"log.{ext}"
    if not path.exists():
        small(ext, tmp_path)
    data = bytearray(path.read_bytes())
    for at, junk in faults:
        at %= len(data)
        data[at : at + len(junk)] = junk
    damaged = tmp_path / f"damaged.{ext}"
    damaged.write_bytes(bytes(data))
    try:
        log = read_blf(damaged) if ext == "blf" else parse_asc(bytes(data), "damaged.asc")
    except LogError as e:
        assert "damaged" in e.where
    else:
        assert len(log.frames.data) == len(log.frames.times_ns) == len(log.frames.ids)


def test_error_and_remote_frames_are_a_finding(tmp_path: Path) -> None:
    for ext in ("blf", "asc"):
        (episode,) = read_logs(small(ext, tmp_path), ONE)
        assert [(f.kind, f.count) for f in episode.findings] == [("note", 1)]
        assert "1 error frame left out" in episode.findings[0].detail
    text = b"(1.000000) can0 100#00\n(1.100000) can0 20000004#0000000000000000\n(1.200000) can0 100#R\n"
    log = parse_candump(text)
    assert len(log.frames) == 1 and log.skipped == {"error": 1, "remote": 1}


def test_the_content_decides_what_a_log_is(tmp_path: Path) -> None:
    small("blf", tmp_path).rename(tmp_path / "a.asc")
    small("asc", tmp_path).rename(tmp_path / "b.blf")
    assert format_of(tmp_path / "a.asc") == format_of(tmp_path / "b.blf") == "can"
    for name in ("a.asc", "b.blf"):
        (episode,) = read_logs(tmp_path / name, ONE)
        assert len(episode.streams["ego"]) == 40


def container(claimed: int, content: bytes, method: int = 2) -> bytes:
    body = struct.pack("<H6xL4x", method, claimed) + content
    return struct.pack("<4sHHLL", b"LOBJ", 16, 1, 16 + len(body), 10) + body


@pytest.mark.parametrize(
    ("claimed", "held", "words"),
    [
        (4_000_000_000, 1000, "claims 4,000,000,000 bytes"),
        ((64 << 20) - 1, 1000, "claims"),
        (100, 40_000_000, "holds other than the 100 bytes"),
        (2000, 1000, "holds other than"),
    ],
)
def test_a_container_that_lies_is_refused_before_it_fills_memory(
    tmp_path: Path, claimed: int, held: int, words: str
) -> None:
    path = small("blf", tmp_path)
    path.write_bytes(path.read_bytes()[:144] + container(claimed, zlib.compress(bytes(held))))
    with pytest.raises(LogError, match=words):
        read_blf(path)


def test_an_array_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "raw_can"
    folder.mkdir()
    for name, array in (
        ("t", np.arange(5.0)),
        ("address", np.arange(5)),
        ("data", np.zeros(5, "S8")),
        ("src", np.zeros(5)),
    ):
        np.save(folder / f"{name}.npy", array)
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (900000000000,), }"
    with (folder / "t.npy").open("wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n" + bytes(40))
    with pytest.raises(LogError, match=r"t\.npy.*claims 7,200,000,000,000 bytes of values, the file holds 40"):
        read_comma(tmp_path)
    away = tmp_path.parent / "away.npy"
    (folder / "t.npy").rename(away)
    (folder / "t.npy").symlink_to(away)
    with pytest.raises(LogError, match=r"t\.npy: leads out of the folder"):
        read_comma(tmp_path)


def test_a_log_that_was_never_closed_is_said_to_be(tmp_path: Path) -> None:
    path = small("blf", tmp_path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack("<Q", 144)
    path.write_bytes(bytes(data))
    with pytest.raises(LogError, match="its writer never closed it"):
        read_logs(path, ONE)
    (episode,) = read_logs(path, ONE, keep_whole=True)
    assert len(episode.streams["ego"]) == 40


def test_unsorted_and_repeated_stamps_are_findings(tmp_path: Path) -> None:
    path = small("asc", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    frames = [k for k, line in enumerate(lines) if " d " in line]
    a, b, c = frames[10], frames[20], frames[30]
    lines[a], lines[b] = lines[b], lines[a]
    lines[c] = lines[c - 1]
    path.write_text("".join(lines))
    (episode,) = read_logs(path, ONE)
    stream = episode.streams["ego"]
    assert (np.diff(stream.times_ns) >= 0).all() and not stream.valid.all()
    assert {"clock-jump", "duplicate"} <= {f.kind for f in episode.findings}


VECTOR = """date Wed Nov 24 09:15:02.440 pm 2021
base hex  timestamps absolute
internal events logged
// version 13.0.0
Begin Triggerblock Wed Nov 24 09:15:02.440 pm 2021
   0.000000 Start of measurement
   0.001000 CAN 1 Status:chip status error active
   0.015991 1  2C1             Rx   d 8 00 14 DF 14 BB CA 3A 91  Length = 230000 BitCount = 119 ID = 705
   0.016104 2  18DAF110x       Tx   d 2 ab CD
   0.017000 CANFD   1 Rx        1A3  EngineData                        1 0 9 12 00 01 02 03 04 05 06 07 08 09 0A 0B   0
   0.018000 1  Statistic: D 12 R 0 XD 0 XR 0 E 0 O 0 B 3.4%
   0.019000 1  ErrorFrame Flags = 0x0
   0.020000 1  2C2             Rx   r 8
End TriggerBlock
"""


def test_an_asc_as_vectors_tools_write_it() -> None:
    for text in (VECTOR, VECTOR.replace("\n", "\r\n"), "\ufeff" + VECTOR, VECTOR.replace("Wed Nov", "Mit Nov")):
        log = parse_asc(text.encode())
        assert log.frames.ids.tolist() == [0x2C1, 0x18DAF110 | EXTENDED, 0x1A3]
        assert log.frames.lengths.tolist() == [8, 2, 12] and log.frames.data.shape == (3, 64)
        assert log.frames.data[2, :13].tolist() == [*range(12), 0] and log.frames.data[1, :2].tolist() == [0xAB, 0xCD]
        assert log.frames.times_ns.tolist() == [
            1_637_788_502_440_000_000 + n for n in (15_991_000, 16_104_000, 17_000_000)
        ]
        assert log.skipped == {"error": 1, "remote": 1} and log.cut == "" and log.notes == ()
    tokyo = parse_asc(VECTOR.encode(), timezone="Asia/Tokyo").frames.times_ns
    assert (log.frames.times_ns - tokyo == 9 * 3600 * 10**9).all()
    relative = parse_asc(VECTOR.replace("absolute", "relative").encode()).frames.times_ns
    assert (relative - relative[0]).tolist() == [0, 16_104_000, 33_104_000]
    decimal = parse_asc(b"base dec  timestamps absolute\n 0.5 1  705  Rx   d 2 255 16\n")
    assert decimal.frames.ids.tolist() == [705] and decimal.frames.data[0, :2].tolist() == [255, 16]
    assert "no date" in decimal.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "   0.0x0000 1  2C1   Rx   d 1 00",
        "   0.010000 1  2CG   Rx   d 1 00",
        "   0.010000 1  2C1   Rx   d 2 00",
        "   0.010000 1  2C1   Rx   d 1 100",
        "   0.010000 1  FFFF  Rx   d 1 00",
        "   0.010000 CANFD 1 Rx  1A3  1 0 9 12 00 01",
        "   0.010000 1  2C1   Rx   q 1 00",
    ],
)
def test_an_asc_line_that_is_no_frame_is_named(line: str) -> None:
    lines = VECTOR.splitlines()
    text = "\n".join([*lines[:8], line, *lines[8:]]) + "\n"
    with pytest.raises(LogError, match=r"drive\.asc:9: no ASC line"):
        parse_asc(text.encode(), "drive.asc")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 511), st.integers(1, 64), st.booleans(), st.booleans(), st.binary(min_size=64, max_size=64))
def test_signals_of_fd_frames_equal_cantools(start: int, length: int, big: bool, signed: bool, payload: bytes) -> None:
    if big:
        first = min(start, 512 - length)
        start = first // 8 * 8 + 7 - first % 8
    else:
        start = min(start, 512 - length)
    signal = Signal("S", start, length, big, signed)
    sign, order = "-" if signed else "+", int(not big)
    text = f'VERSION ""\nBS_:\nBU_: X\nBO_ 291 M: 64 X\n SG_ S : {start}|{length}@{order}{sign} (1,0) [0|0] "" X\n'
    theirs = cantools.database.load_string(text, "dbc").get_message_by_name("M")
    data = np.frombuffer(payload, np.uint8).reshape(1, -1)
    ours, present = decode(data, np.array([64], np.uint8), Message("M", 291, {"S": signal}), signal)
    assert present.all() and ours.tolist() == [float(theirs.decode(payload)["S"])]
    _, present = decode(data[:, :8], np.array([8], np.uint8), Message("M", 291, {"S": signal}), signal)
    assert present.tolist() == [signal.last_byte < 8]


def test_candump_writes_fd_frames_too() -> None:
    lines = [
        f"({k}.000000) can0 1A3##1{bytes(range(k, k + 12)).hex()}\n(0{k}.500000) can0 100#0{k}\n" for k in range(1, 9)
    ]
    frames = parse_candump("".join(lines).encode()).frames
    assert frames.lengths.tolist() == [12, 1] * 8 and frames.data.shape == (16, 64)
    assert frames.data[::2, :12].tolist() == [list(range(k, k + 12)) for k in range(1, 9)]
    only = parse_candump("".join(line.splitlines(True)[0] for line in lines).encode()).frames
    assert np.array_equal(only.data, frames.data[::2])


def test_drives_of_our_own_writer_come_back_from_blf(tmp_path: Path) -> None:
    log, dbc = encode_can([noise(CAR, k, 30) for k in range(3)], CAR, tmp_path)
    frames: Frames = parse_candump(log.read_bytes()).frames
    with can.BLFWriter(tmp_path / "drives.blf") as writer:
        for at, ident, data in zip(frames.times_ns.tolist(), frames.ids.tolist(), frames.data, strict=True):
            writer.on_message_received(can.Message(at / 1e9, ident, is_extended_id=False, data=bytes(data), channel=0))
    assert load_dbc(dbc).bad == ()
    (data := (tmp_path / "drives.blf")).write_bytes(data.read_bytes()[:-300])
    with pytest.raises(LogError, match=r"truncated log.*2 whole drives come before it"):
        read_logs(data, CAR)
    kept = list(read_logs(data, CAR, keep_whole=True))
    plain = list(read_logs(log, CAR))
    assert [e.id for e in kept] == ["drives-00000", "drives-00001"]
    for ours, theirs in zip(kept, plain, strict=False):
        assert all(np.array_equal(ours.streams[n].values, s.values) for n, s in theirs.streams.items())


def test_fd_frames_with_and_without_a_name_keep_the_order_of_the_log() -> None:
    lines = [
        f"   {k}.000000 CANFD   1 Rx        {0x100 + k:X} {'EngineData ' if k % 2 else ''}1 0 2 2 0{k} 00\n"
        for k in range(6)
    ]
    frames = parse_asc(("base hex  timestamps absolute\n" + "".join(lines)).encode()).frames
    assert frames.ids.tolist() == [0x100 + k for k in range(6)]
    assert frames.times_ns.tolist() == [k * 10**9 for k in range(6)] and frames.data[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize(
    "date", ["Wed Nov 24 99999999999:15:02 2021", "Wed Nov 24 09:15:02 0021", "Sun Nov 24 1:1:1 9021"]
)
def test_a_date_of_no_time_leaves_the_clock_at_0(date: str) -> None:
    log = parse_asc(f"date {date}\nbase hex  timestamps absolute\n 0.5 1  705  Rx   d 1 FF\n".encode())
    assert log.frames.times_ns.tolist() == [500_000_000] and "cannot be read" in log.notes[0]


def test_relative_stamps_that_add_up_to_centuries_are_refused() -> None:
    line = b" 999999999.0 1  705  Rx   d 1 FF\n"
    with pytest.raises(LogError, match="add up to centuries"):
        parse_asc(b"base hex  timestamps relative\n" + line * 12)


def test_a_blf_from_another_millennium_is_one_message(tmp_path: Path) -> None:
    path = small("blf", tmp_path)
    data = bytearray(path.read_bytes())
    data[40:42] = struct.pack("<H", 3021)
    path.write_bytes(bytes(data))
    with pytest.raises(LogError, match="damaged BLF at byte 40: a start time of 3021"):
        read_blf(path)


def test_interfaces_are_different_buses() -> None:
    names = ("can1", "slcan", "vcan1", "can300", "can1")
    log = parse_candump("".join(f"({k}.000000) {name} 100#0{k}\n" for k, name in enumerate(names)).encode())
    buses = log.frames.buses.tolist()
    assert buses[0] == buses[4] == 1 and sorted(set(buses)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("t", np.array(["now"] * 5, "S8")),
        ("t", np.full(5, 1e30)),
        ("t", np.array([0.0, np.nan, 1, 2, 3])),
        ("t", np.zeros((5, 2))),
        ("address", np.array(["id"] * 5, "S8")),
        ("address", np.full(5, -1)),
        ("src", np.full(5, 256)),
    ],
)
def test_arrays_that_hold_something_else_are_named(tmp_path: Path, name: str, array: Any) -> None:
    arrays = {"t": np.arange(5.0), "address": np.arange(5), "data": np.zeros(5, "S8"), "src": np.zeros(5)}
    for key, value in {**arrays, name: array}.items():
        np.save(tmp_path / f"{key}.npy", value)
    with pytest.raises(LogError, match=rf"{name}\.npy: does not hold"):
        read_comma(tmp_path)


def test_any_damaged_byte_of_an_arrays_header_is_one_kind_of_error(tmp_path: Path) -> None:
    arrays = {"t": np.arange(5.0), "address": np.arange(5), "data": np.zeros(5, "S8"), "src": np.zeros(5)}
    for key, value in arrays.items():
        np.save(tmp_path / f"{key}.npy", value)
    whole = (tmp_path / "t.npy").read_bytes()
    for at in range(90):
        for byte in (b"(", b"\x00", b"'", b"9"):
            (tmp_path / "t.npy").write_bytes(whole[:at] + byte + whole[at + 1 :])
            try:
                read_comma(tmp_path)
            except LogError as e:
                assert "t.npy" in e.where or "different lengths" in e.what
