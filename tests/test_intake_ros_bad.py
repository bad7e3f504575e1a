"""Bags that are cut, flipped, forged or incomplete: one clear message each, or what is whole with a finding."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

import zstandard

from hagane.intake import read_logs
from hagane.intake.detect import find_logs, format_of
from hagane.intake.inflate import Inflater
from hagane.intake.ros2_sqlite import scan_sqlite
from hagane.intake.topic_log import TopicLog, wanted_topics
from hagane.terms import Channel, Episode, LogError
from tests.ros_cases import (
    ARM,
    arm_drive,
    store,
    write_mcap,
    write_ros1,
    write_ros2,
)


def sqlite(folder: Path, steps: int = 60, **how: Any) -> Path:
    types = store()
    return write_ros2(folder / "drive", arm_drive(types, steps=steps)[0], types, **how) / "drive.db3"


def mcap(folder: Path, steps: int = 60) -> Path:
    types = store()
    return write_mcap(folder / "drive.mcap", arm_drive(types, steps=steps)[0], types, chunk_size=8192)


def ros1(folder: Path, steps: int = 60) -> Path:
    types = store(1)
    return write_ros1(folder / "drive.bag", arm_drive(types, steps=steps)[0], types, "lz4")


BAGS: dict[str, Callable[..., Path]] = {"sqlite": sqlite, "mcap": mcap, "ros1": ros1}


@pytest.mark.parametrize("kind", BAGS)
def test_a_cut_bag_is_refused_or_gives_what_is_whole(tmp_path: Path, kind: str) -> None:
    path = BAGS[kind](tmp_path)
    (whole,) = read_logs(path, ARM)
    data = path.read_bytes()
    given = []
    for part in (0.001, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(LogError, match=r"truncated|neither|no known log format") as e:
            read_logs(path, ARM)
        assert "drive." in e.value.where
        try:
            (back,) = read_logs(path, ARM, keep_whole=True)
        except LogError as e:
            given.append(0)
            assert any(w in str(e) for w in ("no whole message", "no known log format", "holds no message"))
            continue
        assert "truncated" in [f.kind for f in back.findings]
        for name, stream in back.streams.items():
            # what is given is what was written: no message with its end torn off
            rows = np.searchsorted(whole.streams[name].times_ns, stream.times_ns)
            assert stream.values.tolist() == whole.streams[name].values[rows].tolist()
            assert stream.times_ns.tolist() == whole.streams[name].times_ns[rows].tolist()
        given.append(max(map(len, back.streams.values())))
    assert given == sorted(given) and given[0] == 0 and 30 <= given[3] < 60 and given[2] > 0
    path.write_bytes(b"")
    with pytest.raises(LogError, match="the file is empty"):
        read_logs(path, ARM)


def test_ros1_that_was_never_closed(tmp_path: Path) -> None:
    path = ros1(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"index_pos=") + 10
    (index,) = struct.unpack_from("<Q", data, at)
    data[at : at + 8] = bytes(8)
    path.write_bytes(data[:index])
    with pytest.raises(LogError, match=r"the recorder did not close it(?s:.*)--keep-whole"):
        read_logs(path, ARM)
    (back,) = read_logs(path, ARM, keep_whole=True)
    assert len(back.streams["joints"]) == 60
    path.write_bytes(path.read_bytes().replace(b"V2.0", b"V1.2"))
    with pytest.raises(LogError, match=r"a bag of version 1\.2, not 2\.0"):
        read_logs(path, ARM)


def equal(a: Episode, b: Episode) -> bool:
    pairs = [(a.streams[k], b.streams[k]) for k in b.streams]
    return set(a.streams) == set(b.streams) and all(
        np.array_equal(s.times_ns, o.times_ns) and s.values.tolist() == o.values.tolist() for s, o in pairs
    )


@pytest.mark.parametrize("kind", BAGS)
def test_flipped_bytes(tmp_path: Path, kind: str) -> None:
    path = BAGS[kind](tmp_path, 20)
    (whole,) = read_logs(path, ARM)
    data, rng = path.read_bytes(), random.Random(0)
    seen = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            (back,) = read_logs(path, ARM, keep_whole=rng.random() < 0.3)
        except LogError as e:
            seen += 1
            assert "drive." in str(e) and "\n  next: " in str(e)
        else:
            # MCAP has checksums: what comes in is what was written. The other two have none
            assert kind != "mcap" or equal(back, whole)
    assert seen >= {"mcap": 100, "ros1": 10, "sqlite": 1}[kind], seen


@pytest.mark.parametrize("sums", [{"enable_data_crcs": False}, {"enable_crcs": False}])
def test_either_checksum_of_mcap_is_enough(tmp_path: Path, sums: dict[str, bool]) -> None:
    from mcap.writer import CompressionType

    types = store()
    messages, told = arm_drive(types, steps=20)
    path = write_mcap(tmp_path / "a.mcap", messages, types, compression=CompressionType.NONE, **sums)
    data = bytearray(path.read_bytes())
    data[data.index(told["camera"][7]) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"differs? from (its|their) checksum"):
        read_logs(path, ARM)


def chunk(kind: str, data: bytes, claimed: int) -> bytes:
    body = struct.pack("<QQQI", 0, 0, claimed, 0) + struct.pack("<I", len(kind)) + kind.encode()
    body += struct.pack("<Q", len(data)) + data
    return b"\x06" + struct.pack("<Q", len(body)) + body


def test_bombs_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    zeros = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    path = mcap(tmp_path, 5)
    data = path.read_bytes()
    at = data.index(b"\x06", 20)
    tracemalloc.start()
    for forged in (
        chunk("zstd", zeros, 1 << 40),
        chunk("zstd", zeros, 1 << 28),
        chunk("zstd", zeros, 1000),
        chunk("zstd", unsized, 1000),
        chunk("lz4", zeros, 1000),
        chunk("", b"abc", 1 << 40),
    ):
        path.write_bytes(data[:at] + forged + data[at:])
        with pytest.raises(LogError, match=r"claims|inflates to more|is damaged"):
            read_logs(path, ARM)
    with pytest.raises(LogError, match="compressed as 'brotli'"):
        Inflater(100, "here").block("brotli", b"x", 1)
    for name, blob in (("a.db3.zstd", zeros), ("b.db3.zstd", unsized)):
        inner = sqlite(tmp_path / name, 3).read_bytes()
        start = zstandard.ZstdCompressor().compress(inner)
        bomb = tmp_path / name / name
        bomb.write_bytes(start + blob)
        assert format_of(bomb) == "ros2_bag"
        with pytest.raises(LogError, match="holds more than"):
            read_logs(bomb, ARM)
        bomb.write_bytes(zstandard.ZstdCompressor().compress(inner + bytes(1 << 28)))
        with pytest.raises(LogError, match=r"compressed file of \d+ bytes claims to hold \d+"):
            read_logs(bomb, ARM)
    assert tracemalloc.get_traced_memory()[1] < 700 << 20
    tracemalloc.stop()


def test_a_ros1_chunk_that_claims_gigabytes(tmp_path: Path) -> None:
    path = ros1(tmp_path, 5)
    data = bytearray(path.read_bytes())
    at = data.index(b"size=") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"a compressed block of \d+ bytes claims to hold 4294967295"):
        read_logs(path, ARM)


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    for kind, name in (("sqlite", "a.mcap"), ("mcap", "b.bag"), ("ros1", "c.db3")):
        path = BAGS[kind](tmp_path / kind, 5) if (tmp_path / kind).mkdir() is None else Path()
        (episode,) = read_logs(path.rename(tmp_path / kind / name), ARM)
        assert len(episode.streams["joints"]) == 5
    other = tmp_path / "other.db3"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE notes(id INTEGER)")
    with pytest.raises(LogError, match="no known log format"):
        find_logs(other)


def test_bags_without_messages(tmp_path: Path) -> None:
    types = store()
    for path in (
        write_ros2(tmp_path / "a", [], types),
        write_mcap(tmp_path / "b.mcap", [], types),
        write_ros1(tmp_path / "c.bag", [], store(1)),
    ):
        with pytest.raises(LogError, match="the log holds no message"):
            read_logs(path, ARM)


def test_mixed_byte_order_in_one_topic(tmp_path: Path) -> None:
    types = store()
    messages, told = arm_drive(types, steps=20)
    mixed = [
        (t, kind, at, bytes(types.serialize_cdr(m, kind, little_endian=k % 2 == 0)))
        for k, (t, kind, at, m) in enumerate(messages)
    ]
    (episode,) = read_logs(write_mcap(tmp_path / "a.mcap", mixed, types), ARM)
    assert np.array_equal(episode.streams["joints"].values, np.array(told["joints"]))
    assert episode.streams["camera"].values.tolist() == told["camera"]


def test_a_message_that_claims_too_much(tmp_path: Path) -> None:
    types = store()
    messages, _ = arm_drive(types, steps=20)
    at = next(k for k, m in enumerate(messages) if m[0] == "/command" and k > 30)
    bad = bytearray(types.serialize_cdr(messages[at][3], messages[at][1]))
    bad[12:16] = b"\xff\xff\xff\x7f"
    messages[at] = (*messages[at][:3], bytes(bad))
    with pytest.raises(
        LogError, match=r"message \d+ \(at \d+ ns\) is no std_msgs/msg/Float64MultiArray: 'data' claims"
    ):
        read_logs(write_ros2(tmp_path / "a", messages, types), ARM)


def test_metadata_that_leads_astray(tmp_path: Path) -> None:
    path = sqlite(tmp_path)
    folder, meta = path.parent, path.parent / "metadata.yaml"
    text = meta.read_text()
    secret = tmp_path / "secret.db3"
    secret.write_bytes(path.read_bytes())

    def refused(words: str, new: str | None = None, **how: Any) -> None:
        meta.write_text(new if new is not None else text)
        with pytest.raises(LogError, match=words) as e:
            read_logs(folder, ARM, **how)
        assert "\n  next: " in str(e.value)

    for name in (str(secret), "../secret.db3", "x/../../secret.db3", "..\\secret.db3"):
        refused("names a file outside of the folder", text.replace("- drive.db3", f"- {name!r}", 1))
    refused("files of the bag are missing: gone.db3", text.replace("- drive.db3", "- gone.db3", 1))
    more = text.replace("- drive.db3", "- drive.db3\n  - drive_1.db3", 1)
    refused("files of the bag are missing: drive_1.db3(?s:.*)--keep-whole", more)
    (back,) = read_logs(folder, ARM, keep_whole=True)
    assert len(back.streams["joints"]) == 60 and "truncated" in [f.kind for f in back.findings]
    refused("version 10", text.replace("version: 9", "version: 10"))
    refused("storage 'rocks'", text.replace("storage_identifier: sqlite3", "storage_identifier: rocks"))
    refused("compression 'gz'", text.replace("compression_mode: ''", "compression_mode: file").replace(
        "compression_format: ''", "compression_format: gz"))  # fmt: skip
    refused("cannot be read", text + "\n  x: [}")
    refused("not as rosbag2 writes it", "rosbag2_bagfile_information:\n  version: 5\n")
    refused("cannot be read: no map", "rosbag2_bagfile_information: 5\n")
    refused("cannot be read", "rosbag2_bagfile_information: &a [*a, {? *a : *a}]\n" + "[" * 5000)
    meta.write_text(text.replace("message_count: 60", "message_count: 70"))
    (back,) = read_logs(folder, ARM)
    assert any("counts 50 more messages" in f.detail for f in back.findings)
    path.unlink()
    path.symlink_to(secret)
    refused("leads out of the folder")
    path.unlink()
    path.write_bytes(secret.read_bytes())
    # a recorder that died leaves no metadata.yaml: each file is then a bag of its own
    meta.unlink()
    (back,) = read_logs(folder, ARM)
    assert back.id == "drive" and len(back.streams["joints"]) == 60


def test_sqlite_that_is_no_plain_bag(tmp_path: Path) -> None:
    path = sqlite(tmp_path, 5)
    (path.parent / "drive.db3-wal").write_bytes(b"x" * 100)
    with pytest.raises(LogError, match=r"the recorder did not close it(?s:.*)--keep-whole"):
        read_logs(path, ARM)
    (path.parent / "drive.db3-wal").unlink()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE messages RENAME TO hidden")
        db.execute("CREATE VIEW messages AS SELECT id, topic_id, timestamp, zeroblob(1000000000) AS data FROM hidden")
    data = path.read_bytes().replace(b'CREATE TABLE "hidden"', b"CREATE TABLE  messages")
    assert b"CREATE VIEW messages" in data
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t(x TEXT DEFAULT 'CREATE TABLE messages')")
    with pytest.raises(LogError, match="not plain tables"):
        read_logs(path, ARM)
    odd = sqlite(tmp_path / "odd", 5)
    with sqlite3.connect(odd) as db:
        db.execute("UPDATE messages SET data = 'text' WHERE id = 7")
    with pytest.raises(LogError, match="a message without time or bytes"):
        read_logs(odd, ARM)


def test_topics_of_two_types_and_encodings_that_are_not_read(tmp_path: Path) -> None:
    types = store()
    messages, _ = arm_drive(types, steps=5)
    with pytest.raises(LogError, match="'/joint_states' has messages of two types"):
        path = write_ros2(tmp_path / "a", messages, types)
        with sqlite3.connect(path / "a.db3") as db:
            db.execute("INSERT INTO topics VALUES (99, '/joint_states', 'std_msgs/msg/String', 'cdr', '', '')")
        read_logs(path, ARM)
    from mcap.writer import Writer

    with (tmp_path / "b.mcap").open("wb") as f:
        writer = Writer(f)
        writer.start()
        link = writer.register_channel("/command", "protobuf", writer.register_schema("C", "protobuf", b"x"))
        writer.add_message(link, 0, b"x", 0)
        writer.finish()
    with pytest.raises(LogError, match=r"encoded as 'protobuf'(?s:.*)ROS 2"):
        read_logs(tmp_path / "b.mcap", replace(ARM, observe=(Channel("x"),)))


def test_types_that_only_look_like_pictures_and_stamps(tmp_path: Path) -> None:
    odd = {
        "odd_msgs__Image": "float64 height\nfloat64 width\nstring encoding\nuint32 step\nuint8[] data\n",
        "odd_msgs__Text": "string format\nstring data\n",
        "odd_msgs__Time": "float64 sec\nfloat64 nanosec\n",
        "odd_msgs__Stamped": "Header header\nfloat64 x\n",
    }
    types = store(2, **odd)
    t = types.types
    nan = t["odd_msgs/msg/Image"](height=float("nan"), width=1.0, encoding="rgb8", step=3, data=np.zeros(3, np.uint8))
    text = t["odd_msgs/msg/Text"](format="jpeg", data="x")
    camera = replace(ARM, observe=(Channel("camera", kind="image", shape=(1, 1, 3)),), act=(Channel("none"),))
    for name, message in (("Image", nan), ("Text", text)):
        path = write_mcap(tmp_path / f"{name}.mcap", [("/camera", f"odd_msgs/msg/{name}", 0, message)], types)
        with pytest.raises(LogError, match=f"'odd_msgs/msg/{name}' are no pictures"):
            read_logs(path, camera)
    # a header that is forged with times that are no whole numbers: the log's times hold
    text = "std_msgs/Header header\nfloat64 x\n" + "=" * 80 + "\nMSG: std_msgs/Header\nodd_msgs/Time stamp\n"
    text += "string frame_id\n" + "=" * 80 + "\nMSG: odd_msgs/Time\nfloat64 sec\nfloat64 nanosec\n"
    from mcap.writer import Writer

    with (tmp_path / "b.mcap").open("wb") as f:
        writer = Writer(f)
        writer.start("ros2")
        link = writer.register_channel("/x", "cdr", writer.register_schema("odd_msgs/msg/X", "ros2msg", text.encode()))
        for k in range(9):
            data = b"\0\1\0\0" + struct.pack("<ddI4xd", 1e300, float("nan"), 1, 5.0)
            writer.add_message(link, k * 50_000_000, data, 0)
        writer.finish()
    (episode,) = read_logs(tmp_path / "b.mcap", replace(camera, observe=(Channel("x", source=("x.x",)),)))
    assert episode.streams["x"].times_ns.tolist() == [k * 50_000_000 for k in range(9)]
    assert set(episode.streams["x"].values[:, 0]) == {5.0}


def test_a_bag_of_more_than_two_gigabytes_is_not_damaged(tmp_path: Path) -> None:
    path = sqlite(tmp_path, 5)
    os.truncate(path, 3 << 30)
    log = TopicLog(path)
    scan_sqlite(path, log, wanted_topics(ARM), False)
    assert log.topics["/joint_states"].count == 5 and not log.cut


def test_topics_without_a_number_and_virtual_tables_are_one_message(tmp_path: Path) -> None:
    for name, change in (
        ("text", "INSERT INTO topics SELECT 'x', name, type, serialization_format FROM old"),
        ("none", "INSERT INTO topics SELECT NULL, name, type, serialization_format FROM old"),
    ):
        path = sqlite(tmp_path / name, 5)
        with sqlite3.connect(path) as db:
            db.execute("ALTER TABLE topics RENAME TO old")
            db.execute("CREATE TABLE topics(id, name TEXT, type TEXT, serialization_format TEXT)")
            db.execute(change)
        with pytest.raises(LogError, match="damaged bag: a topic of number"):
            read_logs(path, ARM)
    path = sqlite(tmp_path / "virtual", 5)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t(x TEXT DEFAULT 'CREATE TABLE messages')")
        db.execute("DROP TABLE messages")
        db.execute("CREATE VIRTUAL TABLE messages USING fts5(topic_id, timestamp, data)")
    with pytest.raises(LogError, match=r"not plain tables|neither|no known log format"):
        read_logs(path, ARM)


def test_metadata_with_impossible_numbers_and_names(tmp_path: Path) -> None:
    path = sqlite(tmp_path, 5)
    meta = path.parent / "metadata.yaml"
    text = meta.read_text()
    for new, words in (
        (text.replace("version: 9", "version: .inf"), "not as rosbag2 writes it"),
        (text.replace("- drive.db3", '- "dri\\0ve.db3"', 1), "is no path"),
    ):
        assert new != text
        meta.write_text(new)
        with pytest.raises(LogError, match=words):
            read_logs(path.parent, ARM)
