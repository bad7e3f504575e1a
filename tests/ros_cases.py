"""ROS bags that the tests write, with the real writers: rosbags for bags, mcap for bare files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from hagane.intake.picture import encode_jpeg
from hagane.terms import Channel, Embodiment

S = 10**9
START_NS = 1_700_000_000 * S
JOINTS = ("shoulder", "elbow", "wrist")
MOTOR = "std_msgs/Header header\nstring label\nGauge[2] gauges\nGauge[] more\nfloat64 torque\nbool on\n"
GAUGE = "uint8 id\nfloat32 level\nstring unit\n"
CUSTOM = {"plant_msgs/msg/Motor": MOTOR, "plant_msgs/msg/Gauge": GAUGE}
ARM = Embodiment(
    "arm",
    "robot",
    "member-robots",
    20.0,
    8,
    observe=(
        Channel("joints", shape=(3,), unit=("rad",), source=tuple(f"/joint_states.position[{j}]" for j in JOINTS)),
        Channel("camera", kind="image", shape=(24, 32, 3), role="camera", source=("/camera/compressed",)),
        Channel("motor", shape=(2,), source=("/motor.more.1.level", "/motor.torque")),
    ),
    act=(Channel("command", shape=(3,), role="mv", source=tuple(f"command.data.{k}" for k in range(3))),),
)
Message = tuple[str, str, int, Any]
"""Topic, type, log time, message."""


def store(ros: int = 2, **extra: str) -> Any:
    """A type store with the standard messages, ours, and more ("pkg/msg/Name" written pkg__Name)."""
    made = get_typestore(Stores.ROS2_HUMBLE if ros == 2 else Stores.ROS1_NOETIC)
    types: dict[str, Any] = {}
    for name, text in {**CUSTOM, **{k.replace("__", "/msg/"): v for k, v in extra.items()}}.items():
        types.update(get_types_from_msg(text, name))
    made.register(types)
    return made


def header(types: Any, stamp_ns: int, frame: str = "base") -> Any:
    stamp = types.types["builtin_interfaces/msg/Time"](sec=stamp_ns // S, nanosec=stamp_ns % S)
    more = {"seq": 0} if "seq" in types.types["std_msgs/msg/Header"].__dataclass_fields__ else {}
    return types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame, **more)


def joint_state(types: Any, stamp_ns: int, names: tuple[str, ...], position: Any) -> Any:
    empty = np.zeros(0)
    kind = types.types["sensor_msgs/msg/JointState"]
    head = header(types, stamp_ns)
    return kind(header=head, name=list(names), position=np.array(position, float), velocity=empty, effort=empty)


def arm_drive(types: Any, seed: int = 0, steps: int = 40) -> tuple[list[Message], dict[str, Any]]:
    """Messages of a short drive of ARM, and what was put in: stamps and values by stream."""
    rng = np.random.default_rng(seed)
    t = types.types
    empty = t["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    out: list[Message] = []
    told: dict[str, Any] = {"joints": [], "camera": [], "motor": [], "command": [], "stamps_ns": [], "late_ns": []}
    for k in range(steps):
        at_ns, late_ns = START_NS + k * S // 20, int(rng.integers(1_000_000, 5_000_000))
        joints, motor, command = rng.normal(size=3), rng.normal(size=2).astype(np.float32), rng.normal(size=3)
        order = list(rng.permutation(3)) if k % 5 == 4 else [0, 1, 2]
        names = tuple(JOINTS[i] for i in order)
        picture = encode_jpeg(rng.integers(0, 255, (24, 32, 3), np.uint8), 80)
        kind = t["plant_msgs/msg/Gauge"]
        gauges = [kind(id=i, level=float(v), unit="bar" * i) for i, v in enumerate(motor)]
        image = t["sensor_msgs/msg/CompressedImage"](
            header=header(types, at_ns, "camera"), format="jpeg", data=np.frombuffer(picture, np.uint8)
        )
        full = t["plant_msgs/msg/Motor"](
            header=header(types, at_ns), label="M1", gauges=gauges[::-1], more=gauges, torque=float(joints[0]), on=True
        )
        state = joint_state(types, at_ns, names, joints[order])
        out.append(("/joint_states", "sensor_msgs/msg/JointState", at_ns + late_ns, state))
        out.append(("/camera/compressed", "sensor_msgs/msg/CompressedImage", at_ns + late_ns, image))
        out.append(("/motor", "plant_msgs/msg/Motor", at_ns + late_ns, full))
        data = t["std_msgs/msg/Float64MultiArray"](layout=empty, data=command)
        out.append(("/command", "std_msgs/msg/Float64MultiArray", at_ns, data))
        out.append(("/noise", "std_msgs/msg/String", at_ns, t["std_msgs/msg/String"](data="x" * int(rng.integers(50)))))
        for name, value in (("joints", joints), ("camera", picture), ("command", command)):
            told[name].append(value)
        told["motor"].append([float(motor[1]), float(joints[0])])
        told["stamps_ns"].append(at_ns)
    return out, told


def write_ros2(
    path: Path,
    messages: list[Message],
    types: Any,
    storage: str = "sqlite3",
    compression: str = "none",
    big: bool = False,
) -> Path:
    """A bag folder, as ROS 2 writes it."""
    writer = Writer2(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        links: dict[str, Any] = {}
        for topic, kind, time_ns, message in messages:
            if topic not in links:
                links[topic] = writer.add_connection(topic, kind, typestore=types)
            data = message if isinstance(message, bytes) else types.serialize_cdr(message, kind, little_endian=not big)
            writer.write(links[topic], time_ns, data)
    return path


def write_ros1(path: Path, messages: list[Message], types: Any, compression: str = "") -> Path:
    """A .bag file, as ROS 1 writes it."""
    writer = Writer1(path)
    writer.chunk_threshold = 8192
    if compression:
        writer.set_compression(Writer1.CompressionFormat[compression.upper()])
    with writer:
        links: dict[str, Any] = {}
        for topic, kind, time_ns, message in messages:
            if topic not in links:
                links[topic] = writer.add_connection(topic, kind, typestore=types)
            data = message if isinstance(message, bytes) else types.serialize_ros1(message, kind)
            writer.write(links[topic], time_ns, data)
    return path


def write_mcap(
    path: Path, messages: list[Message], types: Any, encoding: str = "cdr", big: bool = False, **how: Any
) -> Path:
    """A bare MCAP file with the definitions in it, by the writer of the format's own project."""
    from mcap.writer import Writer

    ros = 2 if encoding == "cdr" else 1
    with path.open("wb") as f:
        writer = Writer(f, **{"enable_data_crcs": True, **how})
        writer.start(profile=f"ros{ros}")
        links: dict[str, int] = {}
        for topic, kind, time_ns, message in messages:
            if topic not in links:
                text, _ = types.generate_msgdef(kind, ros_version=ros)
                name = kind if ros == 2 else kind.replace("/msg/", "/")
                links[topic] = writer.register_channel(
                    topic, encoding, writer.register_schema(name, f"ros{ros}msg", text.encode())
                )
            if isinstance(message, bytes):
                data = message
            elif ros == 2:
                data = bytes(types.serialize_cdr(message, kind, little_endian=not big))
            else:
                data = bytes(types.serialize_ros1(message, kind))
            writer.add_message(links[topic], time_ns, data, time_ns)
        writer.finish()
    return path
