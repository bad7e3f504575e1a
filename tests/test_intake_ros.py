"""ROS bags in: what real writers wrote comes back bit for bit, from every container and encoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from hagane.intake import read_logs
from hagane.intake.detect import format_of
from hagane.intake.picture import decode_picture, encode_png, plain_pictures
from hagane.terms import Channel, Embodiment, Episode, LogError
from tests.ros_cases import (
    ARM,
    CUSTOM,
    JOINTS,
    START_NS,
    S,
    arm_drive,
    header,
    joint_state,
    store,
    write_mcap,
    write_ros1,
    write_ros2,
)
from tests.test_intake_detect import intake, member

CONTAINERS = [
    "sqlite3",
    "mcap",
    "sqlite3-file",
    "mcap-file",
    "sqlite3-message",
    "mcap-message",
    "mcap-storage",
    "bare-db3",
    "bare-mcap",
    "bare-mcap-big",
    "bare-mcap-ros1",
    "bag",
    "bag-lz4",
    "bag-bz2",
]


def written(folder: Path, container: str, seed: int = 0, steps: int = 40) -> tuple[Path, dict[str, Any]]:
    ros = 1 if container.startswith("bag") or container.endswith("ros1") else 2
    types = store(ros)
    messages, told = arm_drive(types, seed, steps)
    if container.startswith("bag"):
        return write_ros1(folder / "drive.bag", messages, types, container[4:]), told
    if container.startswith("bare-mcap"):
        encoding = "ros1" if ros == 1 else "cdr"
        return write_mcap(folder / "drive.mcap", messages, types, encoding, container.endswith("big")), told
    if container == "bare-db3":
        return write_ros2(folder / "drive", messages, types) / "drive.db3", told
    storage, _, compression = container.partition("-")
    return write_ros2(folder / "drive", messages, types, storage, compression or "none"), told


def same(episode: Episode, told: dict[str, Any]) -> None:
    start_ns = told["stamps_ns"][0]
    for name in ("joints", "camera", "motor", "command"):
        stream = episode.streams[name]
        assert (stream.times_ns + start_ns).tolist() == told["stamps_ns"], name
        assert stream.clock_offset_ns == -start_ns and stream.valid.all()
        if name == "camera":
            assert stream.values.tolist() == told[name]
        else:
            assert np.array_equal(stream.values, np.array(told[name])), name


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_drive_comes_back_bit_for_bit(tmp_path: Path, container: str) -> None:
    path, told = written(tmp_path, container)
    assert format_of(path) == {"bar": "mcap_log", "bag": "ros1_bag"}.get(
        "bag" if container[:3] == "bag" else "bar" if "bare-mcap" in container else "", "ros2_bag"
    )
    (episode,) = read_logs(path, ARM, task="lift")
    assert (episode.id, episode.task, episode.findings) == ("drive", "lift", ())
    same(episode, told)


def test_the_same_bag_is_the_same_episode_whatever_its_folder_is_called(tmp_path: Path) -> None:
    path, told = written(tmp_path, "sqlite3")
    (a,) = read_logs(path, ARM)
    (b,) = read_logs(path.rename(tmp_path / "other"), ARM)
    assert (a.id, a.digest) == (b.id, b.digest)
    same(b, told)


def test_a_folder_of_bags_is_one_episode_each(tmp_path: Path) -> None:
    types = store()
    for k in range(3):
        write_ros2(tmp_path / f"drive-{k}", arm_drive(types, k, 20)[0], types)
    assert [e.id for e in read_logs(tmp_path, ARM)] == ["drive-0", "drive-1", "drive-2"]


def test_a_bag_of_several_files_is_one_episode(tmp_path: Path) -> None:
    types = store()
    messages, told = arm_drive(types)
    first, second = write_ros2(tmp_path / "a", messages[:100], types), write_ros2(tmp_path / "b", messages[100:], types)
    (second / "b.db3").rename(first / "a_1.db3")
    meta = first / "metadata.yaml"
    # bags before version 4 put the folder's name before each file
    text = meta.read_text().replace("- a.db3", "- a/a.db3\n  - a_1.db3", 1)
    meta.write_text(text)
    (episode,) = read_logs(first, ARM)
    same(episode, told)


def test_old_bags_take_definitions_from_a_folder(tmp_path: Path) -> None:
    path, told = written(tmp_path, "bare-db3")
    import sqlite3

    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE message_definitions")
    with pytest.raises(LogError, match=r"'plant_msgs/msg/Motor' is missing(?s:.*)--read messages=FOLDER"):
        read_logs(path, ARM)
    folder = tmp_path / "ws" / "plant_msgs" / "msg"
    folder.mkdir(parents=True)
    (folder / "Motor.msg").write_text(CUSTOM["plant_msgs/msg/Motor"])
    with pytest.raises(LogError, match=r"'plant_msgs/msg/Gauge' is missing"):
        read_logs(path, ARM, messages=tmp_path / "ws")
    (folder / "Gauge.msg").write_text(CUSTOM["plant_msgs/msg/Gauge"].replace("\n", "\r\n") + "# trailing words")
    (episode,) = read_logs(path, ARM, messages=tmp_path / "ws")
    same(episode, told)
    # a definition of another version does not fit the bytes
    (folder / "Gauge.msg").write_text("uint8 id\nfloat64 level\nstring unit\n")
    with pytest.raises(LogError, match=r"is no plant_msgs/msg/Motor(?s:.*)definition of the type is another"):
        read_logs(path, ARM, messages=tmp_path / "ws")
    (folder / "Gauge.msg").write_text("Motor back\n")
    with pytest.raises(LogError, match="contains itself"):
        read_logs(path, ARM, messages=tmp_path / "ws")
    (folder / "Gauge.msg").write_text("")
    with pytest.raises(LogError, match=r"is no plant_msgs/msg/Motor"):
        read_logs(path, arm(Channel("x", source=("motor.torque",))), messages=tmp_path / "ws")
    (folder / "Gauge.msg").unlink()
    (folder / "Gauge.msg").symlink_to(Path(__file__))
    with pytest.raises(LogError, match="leads out of the folder"):
        read_logs(path, ARM, messages=tmp_path / "ws")


def arm(*channels: Channel, act: tuple[Channel, ...] = (Channel("none"),)) -> Embodiment:
    return replace(ARM, observe=channels, act=act)


def test_joints_by_name_from_two_publishers(tmp_path: Path) -> None:
    types = store()
    messages, told = arm_drive(types, steps=20)
    for k in range(20):
        at_ns = START_NS + k * S // 20
        state = joint_state(types, at_ns, ("gripper",), [0.1 * k])
        messages.append(("/joint_states", "sensor_msgs/msg/JointState", at_ns + 1000, state))
    path = write_mcap(tmp_path / "a.mcap", messages, types)
    machine = arm(*ARM.observe, Channel("gripper", source=("joint_states.position[gripper]",)), act=ARM.act)
    (episode,) = read_logs(path, machine)
    same(episode, told)
    assert np.allclose(episode.streams["gripper"].values[:, 0], 0.1 * np.arange(20))
    wrong = arm(Channel("x", source=("joint_states.position[elbo]",)))
    with pytest.raises(LogError, match=r"lacks the field of 'position.\[elbo\]'"):
        read_logs(path, wrong)
    for source, words in (
        ("joint_states.posit.0", "has no field 'posit'(?s:.*)position"),
        ("joint_states.header", "is no value but a std_msgs/msg/Header"),
        ("joint_states.position", "is no number(?s:.*)position.3"),
        ("joint_states.position.x", "is an array, and 'x' is no place"),
        ("motor.label", "is no number"),
        ("moto.label", "no topic for source(?s:.*)motor"),
    ):
        with pytest.raises(LogError, match=words):
            read_logs(path, arm(Channel("x", source=(source,))))
    (episode,) = read_logs(path, arm(Channel("x"), Channel("label", kind="text", source=("motor.label",))))
    assert episode.streams["label"].values.tolist() == ["M1"] * 20
    assert [(f.kind, f.stream) for f in episode.findings] == [("unmapped", "x"), ("unmapped", "none")]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8"])
@pytest.mark.parametrize("flag", [0, 1])
def test_raw_pictures_become_uint8(tmp_path: Path, encoding: str, flag: int) -> None:
    types, rng = store(), np.random.default_rng(0)
    size = {"mono8": 1, "rgba8": 4}.get(encoding, 3)
    frames, messages = [], []
    for k in range(6):
        pixels = rng.integers(0, 255, (4, 5, size), np.uint8)
        padded = np.concatenate([pixels.reshape(4, -1), np.full((4, 3), 7, np.uint8)], 1)
        at_ns = START_NS + k * S // 20
        message = types.types["sensor_msgs/msg/Image"](
            header=header(types, at_ns),
            height=4,
            width=5,
            encoding=encoding,
            is_bigendian=flag,
            step=5 * size + 3,
            data=padded.ravel(),
        )
        messages.append(("/camera", "sensor_msgs/msg/Image", at_ns, message))
        order = {"bgr8": [2, 1, 0], "mono8": [0, 0, 0]}.get(encoding, [0, 1, 2])
        frames.append(pixels[:, :, order])
    camera = arm(Channel("camera", kind="image", shape=(4, 5, 3), role="camera"))
    (episode,) = read_logs(write_ros2(tmp_path / "a", messages, types), camera)
    assert episode.streams["camera"].values.dtype == np.uint8
    assert np.array_equal(episode.streams["camera"].values, np.stack(frames))


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    types, kind = store(), "sensor_msgs/msg/CompressedImage"
    camera = arm(Channel("camera", kind="image", shape=(4, 4, 3), role="camera"))

    def bag(name: str, blobs: list[bytes], label: str = "png") -> Path:
        messages = []
        for k, blob in enumerate(blobs):
            at_ns = START_NS + k * S // 20
            data = np.frombuffer(blob, np.uint8)
            message = types.types[kind](header=header(types, at_ns), format=label, data=data)
            messages.append(("/camera", kind, at_ns, message))
        return write_ros2(tmp_path / name, messages, types)

    good = encode_png((np.arange(48).reshape(4, 4, 3) * 5).astype(np.uint8))
    others = [encode_png((np.arange(48).reshape(4, 4, 3) * 5 + k).astype(np.uint8)) for k in (1, 2)]
    (episode,) = read_logs(bag("a", [good, b"", others[0], b"\xff\xd8\xff", others[1]]), camera)
    assert episode.streams["camera"].values.tolist() == [good, *others]
    assert [(f.kind, f.time_ns, f.count) for f in episode.findings if f.stream == "camera"] == [("missing", S // 20, 2)]
    with pytest.raises(LogError, match="no picture of format 'h264' can be read"):
        read_logs(bag("b", [b"\0\0\0\1g"], "h264"), camera)
    with pytest.raises(LogError, match="'std_msgs/msg/String' are no pictures"):
        message = types.types["std_msgs/msg/String"](data="x")
        read_logs(write_ros2(tmp_path / "c", [("/camera", "std_msgs/msg/String", 0, message)], types), camera)


JOINTS_ONLY = arm(Channel("joints", shape=(3,), unit=("rad",), source=ARM.observe[0].source))


def stamped(path: Path, log_ns: list[int], stamps_ns: list[int]) -> Episode:
    types = store()
    messages = [
        ("/joint_states", "sensor_msgs/msg/JointState", a, joint_state(types, b, JOINTS, [k, 0.5 * k, -k]))
        for k, (a, b) in enumerate(zip(log_ns, stamps_ns, strict=True))
    ]
    (episode,) = read_logs(write_mcap(path / "a.mcap", messages, types), JOINTS_ONLY)
    return episode


def test_which_clock_a_stream_lives_on(tmp_path: Path) -> None:
    log = [START_NS + k * S // 20 for k in range(40)]
    grid = [k * S // 20 for k in range(40)]

    def kinds(episode: Episode) -> list[tuple[str, int]]:
        return [(f.kind, f.count) for f in episode.findings if f.stream == "joints"]

    jitter = np.random.default_rng(0).integers(0, 9_000_000, 40).tolist()
    late = stamped(tmp_path, [a + j for a, j in zip(log, jitter, strict=True)], log)
    assert late.streams["joints"].times_ns.tolist() == grid and kinds(late) == []
    unset = stamped(tmp_path, log, [0] * 40)
    assert unset.streams["joints"].times_ns.tolist() == grid and kinds(unset) == [("clock-jump", 40)]
    simulated = stamped(tmp_path, log, [k * S // 10 for k in range(1, 41)])
    assert simulated.streams["joints"].times_ns.tolist() == grid
    assert "on another clock" in simulated.findings[-1].detail
    once = stamped(tmp_path, log, [0 if k == 7 else a for k, a in enumerate(log)])
    assert once.streams["joints"].times_ns.tolist() == grid
    assert kinds(once) == [("clock-jump", 1)] and once.findings[-1].time_ns == grid[7]
    slow = stamped(tmp_path, [a + S for a in log], log)
    assert slow.streams["joints"].times_ns.tolist() == grid
    assert "usually 1.000 s before the log's times" in slow.findings[-1].detail


def test_unsorted_and_repeated_stamps_are_findings(tmp_path: Path) -> None:
    log = [START_NS + k * S // 20 for k in range(40)]
    stamps = list(log)
    stamps[10], stamps[11] = stamps[11], stamps[10]
    stamps[20] = stamps[19]
    episode = stamped(tmp_path, log, stamps)
    kinds = [(f.kind, f.count) for f in episode.findings if f.stream == "joints"]
    assert ("clock-jump", 1) in kinds and ("duplicate", 1) in kinds
    assert len(episode.streams["joints"]) == 40 and episode.streams["joints"].valid.sum() == 38


def test_a_topic_that_vanishes_is_a_finding(tmp_path: Path) -> None:
    types = store()
    messages, _ = arm_drive(types, steps=100)
    end_ns = START_NS + 2 * S
    kept = [m for m in messages if m[0] != "/motor" or m[2] < end_ns]
    (episode,) = read_logs(write_ros1(tmp_path / "a.bag", *_ros1(kept)), ARM)
    gone = [f for f in episode.findings if f.stream == "motor"]
    assert [f.kind for f in gone] == ["missing"] and "ends 3.000 s before the log does" in gone[0].detail
    # the type is known, no message came
    kept = [m for m in messages if m[0] != "/motor"]
    bag = write_ros2(tmp_path / "b", kept, types)
    import sqlite3

    with sqlite3.connect(bag / "b.db3") as db:
        db.execute("INSERT INTO topics VALUES (99, '/motor', 'std_msgs/msg/Float64', 'cdr', '', '')")
    machine = arm(ARM.observe[0], Channel("motor", source=("motor.data",)))
    (episode,) = read_logs(bag, machine)
    assert ("unmapped", "motor") in [(f.kind, f.stream) for f in episode.findings]


def _ros1(messages: list[Any]) -> tuple[list[Any], Any]:
    types = store(1)
    again, _ = arm_drive(types, steps=len({m[2] for m in messages if m[0] == "/command"}))
    keep = {(m[0], m[2]) for m in messages}
    return [m for m in again if (m[0], m[2]) in keep], types


def test_a_long_silence_starts_another_episode_where_asked(tmp_path: Path) -> None:
    types = store()
    messages, _ = arm_drive(types, steps=20)
    later, told = arm_drive(types, seed=1, steps=20)
    shift_ns = 60 * S
    moved = [(t, kind, at + shift_ns, _later(m, shift_ns)) for t, kind, at, m in later]
    path = write_mcap(tmp_path / "a.mcap", messages + moved, types)
    (one,) = read_logs(path, ARM)
    assert len(one.streams["joints"]) == 40
    first, second = read_logs(path, ARM, gap_s=10.0)
    assert (first.id, second.id) == ("a-00000", "a-00001") and first.findings == second.findings == ()
    told["stamps_ns"] = [t + shift_ns for t in told["stamps_ns"]]
    same(second, told)


def _later(message: Any, by_ns: int) -> Any:
    if hasattr(message, "header"):
        message.header.stamp.sec += by_ns // S
    return message


def test_a_picture_inside_a_message(tmp_path: Path) -> None:
    types = store(eye_msgs__Eye="std_msgs/Header header\nfloat64 zoom\nsensor_msgs/CompressedImage image\n")
    picture = encode_png(np.zeros((4, 4, 3), np.uint8))
    kind = "sensor_msgs/msg/CompressedImage"
    messages = []
    for k in range(5):
        at_ns = START_NS + k * S // 20
        head = header(types, at_ns)
        image = types.types[kind](header=head, format="png", data=np.frombuffer(picture, np.uint8))
        message = types.types["eye_msgs/msg/Eye"](header=head, zoom=2.0, image=image)
        messages.append(("/eye", "eye_msgs/msg/Eye", at_ns, message))
    path = write_mcap(tmp_path / "a.mcap", messages, types)
    eye = Channel("eye", kind="image", shape=(4, 4, 3), source=("/eye.image",))
    (episode,) = read_logs(path, arm(eye, Channel("zoom", source=("eye.zoom",))))
    assert episode.streams["eye"].values.tolist() == [picture] * 5
    assert episode.streams["zoom"].values[:, 0].tolist() == [2.0] * 5


def test_definitions_in_idl(tmp_path: Path) -> None:
    from mcap.writer import Writer

    types = store()
    kind = "geometry_msgs/msg/Vector3"
    idl = "module geometry_msgs { module msg { struct Vector3 { double x; double y; double z; }; }; };\n"
    with (tmp_path / "a.mcap").open("wb") as f:
        writer = Writer(f)
        writer.start("ros2")
        text = "=" * 80 + f"\nIDL: {kind}\n" + idl
        link = writer.register_channel("/v", "cdr", writer.register_schema(kind, "ros2idl", text.encode()))
        for k in range(10):
            data = bytes(types.serialize_cdr(types.types[kind](x=float(k), y=-1.0, z=0.5), kind))
            writer.add_message(link, START_NS + k * S // 20, data, 0)
        writer.finish()
    (episode,) = read_logs(tmp_path / "a.mcap", arm(Channel("v", shape=(2,), source=("v.x", "v.z"))))
    assert episode.streams["v"].values.tolist() == [[k, 0.5] for k in range(10)]


def test_the_verb_stores_a_bag_and_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, told = written(tmp_path, "mcap-storage")
    contract, machine = member(tmp_path, ARM, "arm-demo")
    assert intake(tmp_path, path, contract, machine, "--name", "arm-demo", "--dry-run") == 0
    assert intake(tmp_path, path, contract, machine, "--name", "arm-demo") == 0
    out = capsys.readouterr().out
    assert out.count("1 episodes") == out.count("findings: none") == 2
    # the set reads back as a LeRobot one: at every control step one of the pictures that the camera took
    (stored,) = read_logs(tmp_path / "catalog" / "sets" / "arm-demo", ARM)
    taken = {decode_picture(p).tobytes() for p in told["camera"]}
    assert (
        len(stored.streams["camera"])
        and {p.tobytes() for p in plain_pictures(stored.streams["camera"].values)} <= taken
    )


def test_a_first_picture_that_is_lost_is_said_all_the_same(tmp_path: Path) -> None:
    types, kind = store(), "sensor_msgs/msg/CompressedImage"
    camera = arm(Channel("camera", kind="image", shape=(4, 4, 3), role="camera"))
    good = [encode_png((np.arange(48).reshape(4, 4, 3) * 5 + k).astype(np.uint8)) for k in range(3)]
    messages = []
    for k, blob in enumerate([b"", *good, b""]):
        head, data = header(types, START_NS + k * S // 20), np.frombuffer(blob, np.uint8)
        messages.append(
            ("/camera", kind, START_NS + k * S // 20, types.types[kind](header=head, format="png", data=data))
        )
    (episode,) = read_logs(write_ros2(tmp_path / "a", messages, types), camera)
    lost = [(f.kind, f.time_ns, f.count) for f in episode.findings if "cannot be read" in f.detail]
    assert lost == [("missing", 0, 2)] and len(episode.streams["camera"]) == 3


def test_only_jpeg_and_png_are_decoded() -> None:
    for data in (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", b"GIF89a" + bytes(20), b""):
        with pytest.raises(LogError, match="neither JPEG nor PNG"):
            decode_picture(data)
