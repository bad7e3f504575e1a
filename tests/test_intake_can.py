"""CAN in and out: the decoder against cantools, the real drive, our writer against our reader, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.intake import check_episode, read_logs
from hagane.intake.can_dbc import load_dbc
from hagane.intake.can_write import encode_can
from hagane.intake.candump import format_candump, parse_candump
from hagane.intake.frames import EXTENDED, Frames
from hagane.intake.signals import Message, Signal, decode
from hagane.terms import Channel, Embodiment, Episode, LogError, load_toml
from tests.conftest import shared_data
from tests.intake_cases import CAR, noise

cantools = pytest.importorskip("cantools")
EXAMPLES = Path(__file__).parents[1] / "examples"


def dbc_line(s: Signal) -> str:
    order, sign = int(not s.big_endian), "-" if s.signed else "+"
    return f' SG_ {s.name} : {s.start}|{s.length}@{order}{sign} ({s.scale!r},{s.offset!r}) [0|0] "{s.unit}" X'


def dbc(*messages: Message, extra: str = "") -> str:
    lines = ['VERSION ""', "NS_ :", "BS_:", "BU_: X", ""]
    for m in messages:
        lines += [f"BO_ {m.id} {m.name}: 8 X", *map(dbc_line, m.signals.values()), ""]
    return "\n".join(lines) + extra + "\n"


@st.composite
def signals(draw: st.DrawFn) -> Signal:
    length = draw(st.integers(1, 52))
    big = draw(st.booleans())
    if big:
        top = draw(st.integers(0, 64 - length))  # from the most significant bit of byte 0
        start = top // 8 * 8 + 7 - top % 8
    else:
        start = draw(st.integers(0, 64 - length))
    scale = draw(st.sampled_from([1.0, 0.1, 0.01, 0.0573, 0.00390625, -0.5, 1.5, 1e-5]))
    offset = draw(st.sampled_from([0.0, -67.67, 40.0, -0.001]))
    return Signal("S", start, length, big, draw(st.booleans()), scale=scale, offset=offset)


@settings(max_examples=150, deadline=None)
@given(signals(), st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=20))
def test_decoding_equals_cantools(signal: Signal, payloads: list[bytes]) -> None:
    message = Message("M", 291, {"S": signal})
    theirs = cantools.database.load_string(dbc(message), "dbc").get_message_by_name("M")
    data = np.frombuffer(b"".join(payloads), np.uint8).reshape(-1, 8)
    ours, present = decode(data, np.full(len(data), 8, np.uint8), message, signal)
    assert present.all()
    assert ours.tolist() == [float(theirs.decode(p, decode_choices=False)["S"]) for p in payloads]


def test_every_signal_of_the_real_dbc_equals_cantools(tmp_path: Path) -> None:
    path = shared_data("can", "dbc", "toyota_nodsu_pt.dbc")
    theirs = cantools.database.load_file(path, strict=False)
    data = np.random.default_rng(0).integers(0, 256, (20, 8), dtype=np.uint8)
    lengths = np.full(20, 8, np.uint8)
    compared = 0
    for message in load_dbc(path).messages.values():
        own = theirs.get_message_by_name(message.name)
        if own.length > 8 or own.is_multiplexed():
            continue
        try:
            wanted = [own.decode(bytes(row[: own.length]), decode_choices=False) for row in data]
        except cantools.database.DecodeError:
            continue  # a few messages of this DBC have signals beyond their own length
        for signal in message.signals.values():
            if signal.last_byte <= 7:
                values, _ = decode(data, lengths, message, signal)
                assert values.tolist() == [float(w[signal.name]) for w in wanted], (message.name, signal.name)
                compared += 1
    assert compared > 200


def test_short_frames_and_multiplexers_leave_signals_absent(tmp_path: Path) -> None:
    text = dbc(Message("PLAIN", 1, {"A": Signal("A", 0, 8), "B": Signal("B", 32, 16)}))
    text += (
        'BO_ 2 MUXED: 8 X\n SG_ SEL M : 0|8@1+ (1,0) [0|0] "" X\n SG_ P m0 : 8|16@1+ (1,0) [0|0] "" X\n'
        ' SG_ Q m1 : 8|16@1+ (2,0) [0|0] "" X\n'
    )
    (tmp_path / "m.dbc").write_text(text)
    messages = load_dbc(tmp_path / "m.dbc").messages
    data = np.array([[0, 7, 0, 0, 0, 0, 0, 0], [1, 9, 0, 0, 0, 0, 0, 0]], np.uint8)
    values, present = decode(data, np.array([4, 8], np.uint8), messages["PLAIN"], messages["PLAIN"].signals["B"])
    assert present.tolist() == [False, True] and np.isnan(values[0])
    for name, wanted in (("P", [7.0, None]), ("Q", [None, 18.0])):
        values, present = decode(data, np.full(2, 8, np.uint8), messages["MUXED"], messages["MUXED"].signals[name])
        assert [v if p else None for v, p in zip(values.tolist(), present.tolist(), strict=True)] == wanted


def test_the_real_drive_decodes_to_its_own_steering_and_speed() -> None:
    drive = shared_data("can", "comma2k19_segment")
    embodiment = load_toml(EXAMPLES / "toyota-drive.toml", Embodiment)
    (episode,) = read_logs(drive, embodiment, dbc=shared_data("can", "dbc", "toyota_nodsu_pt.dbc"))
    assert episode.findings == ()
    steering = episode.streams["steering"]
    own = np.load(drive / "steering_angle" / "value.npy", allow_pickle=False)
    assert np.array_equal(steering.values[:, 0], own) and len(own) == 4974
    own_ns = np.round(np.load(drive / "steering_angle" / "t.npy", allow_pickle=False) * 1e9).astype(np.int64)
    assert np.array_equal(steering.times_ns - steering.clock_offset_ns, own_ns)
    wheels = episode.streams["wheel_speed"].values / 3.6
    own = np.load(drive / "wheel_speed" / "value.npy", allow_pickle=False)
    assert np.abs(wheels - own).max() < 1e-12
    own = np.load(drive / "speed" / "value.npy", allow_pickle=False)[:, 0]
    assert np.abs(wheels.mean(1) - own).max() < 1e-12
    assert episode.streams["speed"].unit == ("km/h",) and episode.span_ns[0] == 0


def written(tmp_path: Path, count: int = 4, steps: int = 40) -> tuple[list[Episode], Path]:
    episodes = [noise(CAR, k, steps) for k in range(count)]
    log, _ = encode_can(episodes, CAR, tmp_path, name="drives")
    return episodes, log


def test_what_we_write_comes_back(tmp_path: Path) -> None:
    episodes, log = written(tmp_path)
    back = list(read_logs(log, CAR))
    assert [e.id for e in back] == [f"drives-{k:05d}" for k in range(4)]
    for before, after in zip(episodes, back, strict=True):
        assert (after.task, after.outcome, after.findings) == (before.task, before.outcome, ())
        assert set(after.streams) == set(before.streams)
        command_ns = after.streams["drive"].times_ns
        assert (np.diff(command_ns) == CAR.step_ns).all()
        for name, stream in before.streams.items():
            other = after.streams[name]
            assert np.array_equal(stream.valid, other.valid), name
            channel = CAR.channel(name.removesuffix(".applied"))
            step = (np.array(channel.high) - np.array(channel.low)) / 50_000
            error = np.abs(np.where(stream.valid[..., None], stream.values - other.values, 0))
            assert (error <= 0.51 * step).all(), name
            # observed before the control time, commanded at it, applied right after
            late_ns = other.times_ns - command_ns
            assert (late_ns < 0).all() if "drive" not in name else ((late_ns >= 0) & (late_ns < 1e6)).all()


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    _, one = written(tmp_path / "a", 2)
    _, two = written(tmp_path / "b", 2)
    assert (
        one.read_bytes() == two.read_bytes()
        and one.with_suffix(".dbc").read_text() == two.with_suffix(".dbc").read_text()
    )


def test_our_dbc_reads_in_cantools_without_a_warning(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    theirs = cantools.database.load_file(log.with_suffix(".dbc"), strict=True)
    assert theirs.get_message_by_name("EGO_B").signals[0].name == "LIMIT"
    assert theirs.get_message_by_name("TRIP").get_signal_by_name("TASK").choices[0] == "task 0"


@pytest.mark.parametrize("where", [1, 20, 45])
def test_a_log_cut_in_a_line_is_refused_or_gives_its_whole_drives(tmp_path: Path, where: int) -> None:
    _, log = written(tmp_path)
    data = log.read_bytes()
    width = data.index(b"\n") + 1
    log.write_bytes(data[: len(data) * 7 // 8 // width * width + where])
    with pytest.raises(LogError, match=r"truncated log.*whole drives come before(?s:.*)--keep-whole"):
        read_logs(log, CAR)
    kept = list(read_logs(log, CAR, keep_whole=True))
    assert [e.id for e in kept] == ["drives-00000", "drives-00001", "drives-00002"]
    assert [f.kind for f in kept[-1].findings] == ["truncated"]


def test_a_log_cut_between_lines_misses_its_end_frame(tmp_path: Path) -> None:
    _, log = written(tmp_path, 2)
    data = log.read_bytes()
    log.write_bytes(data[: -5 * (data.index(b"\n") + 1)])
    with pytest.raises(LogError, match="no TRIP end frame"):
        read_logs(log, CAR)


def test_without_trip_frames_a_silence_divides(tmp_path: Path) -> None:
    _, log = written(tmp_path, 3)
    dbc_path = log.with_suffix(".dbc")
    dbc_path.write_text(dbc_path.read_text().replace(" TRIP:", " OTHER:"))
    assert [e.id for e in read_logs(log, CAR)] == ["drives-00000", "drives-00001", "drives-00002"]
    assert len(list(read_logs(log, CAR, gap_s=3600.0))) == 1


def test_messages_that_the_dbc_lacks_are_named_with_the_nearest(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    wrong = replace(CAR, observe=(Channel("ego", source=("EGGO.SPEED",)),))
    with pytest.raises(LogError, match=r"no message 'EGGO'(?s:.*)EGO"):
        read_logs(log, wrong)
    wrong = replace(CAR, observe=(Channel("ego", source=("EGO.SPED",)),))
    with pytest.raises(LogError, match=r"no signal 'SPED'(?s:.*)SPEED"):
        read_logs(log, wrong)


def test_a_dbc_of_another_car_is_refused(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    dbc_path = log.with_suffix(".dbc")
    text = dbc_path.read_text()
    for ident in range(256, 300):
        text = text.replace(f"BO_ {ident} ", f"BO_ {ident + 500} ")
    dbc_path.write_text(text)
    with pytest.raises(LogError, match=r"none of the .* messages asked for is in the log"):
        read_logs(log, CAR)


def test_a_missing_or_damaged_dbc_is_one_message(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    dbc_path = log.with_suffix(".dbc")
    text = dbc_path.read_text()
    dbc_path.write_text(text[: len(text) // 2] + "\nBO_ what is this\n")
    with pytest.raises(LogError, match="cannot be read as DBC"):
        read_logs(log, CAR)
    dbc_path.unlink()
    with pytest.raises(LogError, match=r"no DBC file beside the log(?s:.*)--dbc"):
        read_logs(log, CAR)


def test_a_message_that_never_comes_is_a_finding(tmp_path: Path) -> None:
    episode = noise(CAR, 1, 30)
    streams = {k: v for k, v in episode.streams.items() if k != "ego"}
    encode_can([replace(episode, streams=streams)], CAR, tmp_path)
    (back,) = read_logs(tmp_path / "drives.log", CAR)
    assert [(f.kind, f.stream) for f in back.findings] == [("unmapped", "ego")]


def test_units_of_the_dbc_are_compared(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    dbc_path = log.with_suffix(".dbc")
    dbc_path.write_text(dbc_path.read_text().replace('"m/s"', '"km/h"'))
    (back,) = read_logs(log, CAR)
    assert [(f.kind, f.stream) for f in back.findings] == [("unit-mismatch", "ego")]
    assert not back.streams["ego"].valid.any()


def test_comma_arrays_that_are_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "drive" / "raw_can"
    folder.mkdir(parents=True)
    arrays = {"t": np.arange(5.0), "address": np.arange(5), "data": np.zeros(5, "S8"), "src": np.zeros(5, np.int64)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (tmp_path / "drive" / "car.dbc").write_text(dbc(Message("EGO", 1, {"S": Signal("S", 0, 8)})))
    one = replace(CAR, observe=(Channel("ego", source=("EGO.S",)),), act=(Channel("a", source=("EGO.S",)),))
    assert len(list(read_logs(tmp_path / "drive", one))) == 1
    np.save(folder / "t.npy", np.arange(4.0))
    with pytest.raises(LogError, match="different lengths"):
        read_logs(tmp_path / "drive", one)
    data = (folder / "data.npy").read_bytes()
    (folder / "data.npy").write_bytes(data[:-9])
    with pytest.raises(LogError, match=r"data.npy.*damaged or truncated"):
        read_logs(tmp_path / "drive", one)
    np.save(folder / "data.npy", np.array([{}] * 5, object), allow_pickle=True)
    with pytest.raises(LogError, match="damaged or truncated"):
        read_logs(tmp_path / "drive", one)


def frames_of(lines: list[tuple[int, int, bytes, int]]) -> Frames:
    return Frames(
        np.array([r[0] for r in lines], np.int64),
        np.array([r[1] for r in lines], np.uint32),
        np.frombuffer(b"".join(r[2].ljust(8, b"\0") for r in lines), np.uint8).reshape(-1, 8),
        np.array([len(r[2]) for r in lines], np.uint8),
        np.array([r[3] for r in lines], np.uint8),
    )


FRAME = st.tuples(
    st.integers(0, 2_000_000_000_000_000).map(lambda us: us * 1000),
    st.one_of(st.integers(0, 0x7FF), st.integers(0, (1 << 29) - 1).map(lambda i: i | EXTENDED)),
    st.binary(max_size=8),
    st.integers(0, 12),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(FRAME, min_size=1, max_size=40), st.booleans())
def test_any_candump_log_parses_to_its_frames(rows: list[tuple[int, int, bytes, int]], upper: bool) -> None:
    lines = []
    for time_ns, ident, data, bus in rows:
        name = f"{ident & ~EXTENDED:08X}" if ident & EXTENDED else f"{ident:03X}"
        text = f"({time_ns // 10**9:010d}.{time_ns // 1000 % 10**6:06d}) can{bus} {name}#{data.hex()}"
        lines.append(text.upper().replace("CAN", "can") if upper else text)
    log = parse_candump(("\n".join(lines) + "\n").encode())
    frames, cut = log.frames, log.cut
    wanted = frames_of(rows)
    assert cut == ""
    for field in ("times_ns", "ids", "data", "lengths", "buses"):
        assert np.array_equal(getattr(frames, field), getattr(wanted, field)), field


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 300))
def test_the_parser_fails_with_one_kind_of_error_only(junk: bytes, at: int, drop: int) -> None:
    good = b"(1436509053.249713) can0 123#0011223344556677\n(1436509053.349713) can1 18DAF110#01\n" * 3
    for text in (junk, junk + b"\n", good[:at] + junk + good[at + drop :]):
        try:
            frames = parse_candump(text).frames
        except LogError as e:
            assert "candump log" in e.where
        else:
            assert len(frames.data) == len(frames.times_ns)


def test_a_line_that_is_no_frame_is_named() -> None:
    good = b"(1436509053.249713) can0 123#0011223344556677\n"
    for bad, words in (
        (b"hello\n", "no CAN frame"),
        (b"(1436509053.249713) can0 12G#0011223344556677\n", "no CAN frame"),
        (b"(1436509053.2497x3) can0 123#0011223344556677\n", "no CAN frame"),
        (b"(1436509053.249713) can0 123#001122334455667788\n", "no CAN frame"),
        (b"(1436509053.249713) can0 123##100112\n", "no CAN frame"),
    ):
        with pytest.raises(LogError, match=rf"log:1235: {words}"):
            parse_candump(good * 1234 + bad + good * 500, "log")
    log = parse_candump(good + b"(1436509053.249714) can0 123#R\n" + good)
    assert len(log.frames) == 2 and log.skipped == {"remote": 1}


def test_our_lines_are_those_of_candump() -> None:
    frames = frames_of([(1436509053249713000, 0x123, bytes(range(8)), 0)])
    assert format_candump(frames) == b"(1436509053.249713) can0 123#0001020304050607\n"


def test_checked_episodes_are_the_same_twice(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    (first,) = read_logs(log, CAR)
    again = check_episode(replace(first, findings=()), CAR)
    assert again.findings == () and first.digest == next(iter(read_logs(log, CAR))).digest


@pytest.mark.parametrize("observe", [CAR.observe, CAR.observe[1:]])
def test_a_clock_set_forward_by_years_within_a_drive(tmp_path: Path, observe: tuple[Channel, ...]) -> None:
    episode = noise(CAR, 0, 40)
    late_ns = np.where(np.arange(40) < 20, 0, 40 * 365 * 86_400 * 10**9)
    streams = {name: replace(s, times_ns=s.times_ns + late_ns) for name, s in episode.streams.items()}
    log, _ = encode_can([replace(episode, streams=streams)], CAR, tmp_path)
    (back,) = read_logs(log, replace(CAR, observe=observe))
    assert "clock-jump" in {f.kind for f in back.findings}
    assert 35 <= len(back.streams["agents"]) <= 45


def test_frames_between_the_drives_are_counted_and_a_log_without_a_start_is_refused(tmp_path: Path) -> None:
    _, log = written(tmp_path, 2)
    lines = log.read_bytes().splitlines(keepends=True)
    starts = [k for k, line in enumerate(lines) if b" 0F0#" in line]
    # the second drive lost its start
    log.write_bytes(b"".join(lines[: starts[2]] + lines[starts[2] + 1 :]))
    (only,) = read_logs(log, CAR)
    assert [(f.kind, f.count) for f in only.findings] == [("unmapped", len(lines) - 1 - starts[2])]
    log.write_bytes(b"".join(lines[starts[2] + 1 :]))
    with pytest.raises(LogError, match=r"no TRIP frame of .* starts a drive"):
        read_logs(log, CAR)


def test_a_bus_that_the_log_lacks_is_named(tmp_path: Path) -> None:
    _, log = written(tmp_path, 1)
    with pytest.raises(LogError, match=r"no frame is of bus 3; the log has 0(?s:.*)bus=N"):
        read_logs(log, CAR, bus=3)


def test_a_folder_of_arrays_may_be_the_present_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "2026.01.05"
    folder.mkdir()
    arrays = {"t": np.arange(5.0), "address": np.ones(5, int), "data": np.zeros(5, "S8"), "src": np.zeros(5, np.int64)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "car.dbc").write_text(dbc(Message("EGO", 1, {"S": Signal("S", 0, 8)})))
    one = replace(CAR, observe=(Channel("ego", source=("EGO.S",)),), act=(Channel("a", source=("EGO.S",)),))
    (far,) = read_logs(folder, one)
    monkeypatch.chdir(folder)
    (near,) = read_logs(Path(), one)
    assert near.id == far.id == "2026.01.05" and near.digest == far.digest


def test_remote_frames_of_a_large_log_take_no_longer_than_their_number(tmp_path: Path) -> None:
    log = parse_candump(b"".join(b"(%d.000000) can0 %03X#R\n" % (k, k % 9) for k in range(1000, 9000)))
    assert log.skipped == {"remote": 8000} and not len(log.frames)
