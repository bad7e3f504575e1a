"""MCAP in: our recorder's streams, other people's JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.intake import read_logs
from hagane.terms import Channel, Embodiment, LogError
from tests.intake_cases import CAR, noise

writer = pytest.importorskip("mcap.writer")
S = 10**9


def write(
    path: Path, topics: dict[str, list[tuple[int, Any]]], about: dict[str, str] | None = None, **how: str
) -> Path:
    with path.open("wb") as f:
        w = writer.Writer(f)
        w.start()
        schema = w.register_schema(name=how.get("schema", "hagane.Stream"), encoding="jsonschema", data=b"{}")
        for topic, messages in topics.items():
            channel = w.register_channel(topic, how.get("encoding", "json"), schema)
            for time_ns, message in messages:
                data = message if isinstance(message, bytes) else json.dumps(message).encode()
                w.add_message(channel, time_ns, data, time_ns)
        if about is not None:
            w.add_metadata("hagane", about)
        w.finish()
    return path


def recorded(path: Path, seed: int = 0) -> tuple[Any, Path]:
    episode = noise(CAR, seed, 60)
    topics = {}
    for name, s in episode.streams.items():
        valid = s.valid.tolist() if s.valid.ndim == 2 else [True] * len(s)
        rows = zip(s.times_ns.tolist(), s.values.tolist(), valid, strict=True)
        topics["/" + name] = [(t, {"values": v, "valid": ok}) for t, v, ok in rows]
    about = {"embodiment": "road", "task": "go home", "episode": "drive-7", "outcome": "success", "checkpoint_id": "c"}
    return episode, write(path, topics, about)


def test_what_the_recorder_wrote_comes_back(tmp_path: Path) -> None:
    episode, path = recorded(tmp_path / "a.mcap")
    (back,) = read_logs(path, CAR)
    assert (back.id, back.task, back.outcome, back.findings) == ("drive-7", "go home", "success", ())
    assert set(back.streams) == set(episode.streams)
    for name, stream in episode.streams.items():
        other = back.streams[name]
        assert np.array_equal(other.times_ns, stream.times_ns) and np.array_equal(other.valid, stream.valid)
        assert np.array_equal(other.values[other.valid], stream.values[stream.valid])


def test_null_is_not_a_number(tmp_path: Path) -> None:
    machine = Embodiment("m", "robot", "o", 1.0, 1, (Channel("x"),), (Channel("u"),))
    rows = [(t * S, {"values": [None if t == 2 else 1.0 * t], "valid": True}) for t in range(5)]
    (back,) = read_logs(write(tmp_path / "a.mcap", {"/x": rows, "/u": rows}), machine)
    assert back.streams["x"].valid.tolist() == [True, True, False, True, True]


def test_other_json_is_read_by_topic_and_field(tmp_path: Path) -> None:
    machine = Embodiment(
        "m",
        "robot",
        "o",
        10.0,
        1,
        (Channel("pose", shape=(3,), source=("odom.pose.x", "odom.pose.y", "/joints/state.position.1")),),
        (Channel("u", source=("cmd.speed",)),),
    )
    at = [1_700_000_000 * S + k * S // 10 for k in range(20)]
    topics = {
        "/odom": [(t, {"pose": {"x": k, "y": -k}}) for k, t in enumerate(at)],
        "/joints/state": [(t + 10**6, {"position": [0, 10 * k]}) for k, t in enumerate(at)],
        "/cmd": [(t, {"speed": 0.5}) for t in at],
    }
    path = write(tmp_path / "a.mcap", topics, schema="other")
    (back,) = read_logs(path, machine)
    assert back.findings == () and back.span_ns[0] == 0
    assert back.streams["pose"].values[3].tolist() == [3.0, -3.0, 30.0]
    wrong = Embodiment("m", "robot", "o", 10.0, 1, (Channel("p", source=("odm.pose.x",)),), machine.act)
    with pytest.raises(LogError, match=r"no topic for source 'odm.pose.x'(?s:.*)odom"):
        read_logs(path, wrong)
    wrong = Embodiment("m", "robot", "o", 10.0, 1, (Channel("p", source=("odom.pose.z",)),), machine.act)
    with pytest.raises(LogError, match=r"lacks the field"):
        read_logs(path, wrong)


def test_our_own_schema_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", {"/ego": [(0, b"\0\1\0\0")]}, encoding="cdr")
    with pytest.raises(LogError, match="encoded as 'cdr', not as JSON"):
        read_logs(path, CAR)


def test_json_by_name_and_by_place(tmp_path: Path) -> None:
    rows = [{"name": ["a", "b"][:: 1 if k % 2 else -1], "position": [k, -k][:: 1 if k % 2 else -1]} for k in range(20)]
    rows[5] = {"name": ["b"], "position": [-5]}
    topics = {"/joints": [(k * S // 10, row) for k, row in enumerate(rows)]}
    path = write(tmp_path / "a.mcap", topics, schema="other")
    machine = Embodiment(
        *("m", "robot", "o", 10.0, 1),
        (Channel("a", source=("joints.position[a]",)), Channel("b", source=("joints.position[b]",))),
        (Channel("none"),),
    )
    (back,) = read_logs(path, machine)
    assert back.streams["a"].values[:, 0].tolist() == [k for k in range(20) if k != 5]
    assert back.streams["b"].values[:, 0].tolist() == [-k for k in range(20)]


def test_messages_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    rows = [(k * S // 10, {"x": k}) for k in np.random.default_rng(0).permutation(30).tolist()]
    machine = Embodiment("m", "robot", "o", 10.0, 1, (Channel("x", source=("t.x",)),), (Channel("none"),))
    (back,) = read_logs(write(tmp_path / "a.mcap", {"/t": rows}, schema="other"), machine)
    assert back.streams["x"].values[:, 0].tolist() == list(range(30))
    assert back.streams["x"].valid.all() and [f.kind for f in back.findings] == ["unmapped"]
    huge = [*rows, (3 * S, 10**400)]
    path = write(tmp_path / "a.mcap", {"/t": [(t, {"x": v}) for t, v in huge]}, schema="other")
    with pytest.raises(LogError, match="is no value"):
        read_logs(path, machine)


def test_a_file_without_its_end(tmp_path: Path) -> None:
    _, path = recorded(tmp_path / "a.mcap")
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(LogError, match=r"truncated file: the file has no end mark(?s:.*)--keep-whole"):
        read_logs(path, CAR)
    (back,) = read_logs(path, CAR, keep_whole=True)
    assert len(back.streams["ego"]) == 60 and "truncated" in [f.kind for f in back.findings]
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(LogError, match="no whole message before the cut"):
        read_logs(path, CAR, keep_whole=True)


def test_a_flipped_byte_is_seen(tmp_path: Path) -> None:
    _, path = recorded(tmp_path / "a.mcap")
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) - 100, len(data) // 15):
        broken = bytearray(data)
        broken[at] ^= 0x10
        path.write_bytes(broken)
        try:
            (back,) = read_logs(path, CAR)
        except LogError as e:
            assert "a.mcap" in e.where
        else:
            # a byte of the index or of padding: the messages are whole
            assert len(back.streams["ego"]) == 60


def test_of_another_machine_or_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", {"/ego": [(0, {"values": [1, 2], "valid": True})]}, {"embodiment": "arm"})
    with pytest.raises(LogError, match="recorded on embodiment 'arm', not 'road'"):
        read_logs(path, CAR)
    path = write(tmp_path / "a.mcap", {"/ego": [(0, {"values": [1, 2], "valid": True})]})
    with pytest.raises(LogError, match=r"do not hold \(5,\) values"):
        read_logs(path, CAR)
    path = write(tmp_path / "a.mcap", {"/ego": [(0, b"nonsense")]})
    with pytest.raises(LogError, match="no JSON"):
        read_logs(path, CAR)
    path = write(tmp_path / "a.mcap", {"/else": [(0, {"values": [1]})]})
    with pytest.raises(LogError, match=r"none of the topics(?s:.*)/else"):
        read_logs(path, CAR)


def test_a_recording_that_was_cut_still_says_whose_it_is(tmp_path: Path) -> None:
    recorder = pytest.importorskip("hagane.intake.recorder")
    path = tmp_path / "a.mcap"
    with recorder.McapRecorder(path, CAR, "go home", "c0ffee", wait=True) as r:
        for t in range(2000):
            for name, width in (("ego", 5), ("drive", 2), ("drive.applied", 2)):
                r.write(name, t * S // 10, np.random.default_rng(t).random(width))
    (whole,) = read_logs(path, CAR)
    assert (whole.id, whole.task, len(whole.streams["ego"])) == ("a", "go home", 2000)
    path.write_bytes(path.read_bytes()[:-300])
    (back,) = read_logs(path, CAR, keep_whole=True)
    assert back.task == "go home" and len(back.streams["ego"]) > 100


def test_numbers_and_texts_that_are_none_are_one_message(tmp_path: Path) -> None:
    huge = b'{"values": [1' + b"0" * 400 + b", 0, 0, 0, 0]}"
    with pytest.raises(LogError, match="messages do not hold"):
        read_logs(write(tmp_path / "a.mcap", {"/ego": [(0, huge)]}), CAR)
    said = Embodiment("road", "vehicle", "member-cars", 10.0, 16, observe=(Channel("words", kind="text"),), act=CAR.act)
    (told,) = read_logs(write(tmp_path / "b.mcap", {"/words": [(0, {"values": ["go"]}), (1, {"values": "on"})]}), said)
    assert told.streams["words"].values.tolist() == ["go", "on"]
    with pytest.raises(LogError, match="is no text"):
        read_logs(write(tmp_path / "c.mcap", {"/words": [(0, {"values": [["go"]]}), (1, {"values": [["on"]]})]}), said)
