"""Any message of any type: what rosbags wrote, our offsets read back, in both byte orders and both encodings."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rosbags")

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from hagane.intake.ros_layout import BadMessage, layout_of, want_tree
from hagane.intake.ros_types import Types, types_of
from hagane.intake.topic_fields import columns
from hagane.intake.topic_log import FieldPath, Topic, parse_path
from hagane.terms import LogError

NUMBERS = ["bool", "byte", "char", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NUMBERS += ["float32", "float64"]
DTYPES = {"bool": np.bool_, "byte": np.int8, "char": np.uint8}
BOUNDS = st.sampled_from(["", "", "", "[2]", "[3]", "[]", "[]", "[<=4]"])


@st.composite
def definitions(draw: Any) -> list[tuple[str, str]]:
    """Types of which later ones use earlier ones; the last is the message."""
    made: list[tuple[str, str]] = []
    last = draw(st.integers(0, 2))
    for k in range(last + 1):
        kinds = [*NUMBERS, "string", "builtin_interfaces/Time", *(name for name, _ in made)]
        fields = draw(st.lists(st.tuples(st.sampled_from(kinds), BOUNDS), min_size=int(k == last), max_size=5))
        made.append((f"p/T{k}", "".join(f"{kind}{many} f{i}\n" for i, (kind, many) in enumerate(fields))))
    return made


def value(rng: random.Random, types: Any, desc: Any) -> Any:
    node, inner = int(desc[0]), desc[1]
    if node == 1:
        return scalar(rng, inner[0])
    if node == 2:
        fields = types.fielddefs[inner][1]
        return types.types[inner](*(value(rng, types, d) for _, d in fields))
    count = inner[1] if node == 3 else rng.randint(0, inner[1] or 3)
    values = [value(rng, types, inner[0]) for _ in range(count)]
    if int(inner[0][0]) == 1 and inner[0][1][0] != "string":
        return np.array(values, DTYPES.get(inner[0][1][0], inner[0][1][0]))
    return values


def scalar(rng: random.Random, kind: str) -> Any:
    if kind == "string":
        return "".join(rng.choice("ab\u00e9\u92fc") for _ in range(rng.randint(0, 4)))
    if kind == "bool":
        return rng.random() < 0.5
    if kind.startswith("float"):
        return float(np.dtype(kind).type(rng.gauss(0, 1e3)))
    info = np.iinfo(DTYPES.get(kind, kind))
    return rng.randint(int(info.min), int(info.max))


def leaves(message: Any, types: Any, name: str, at: FieldPath = ()) -> dict[FieldPath, Any]:
    """Every number and text of a message by its path."""
    found: dict[FieldPath, Any] = {}
    for field, desc in types.fielddefs[name][1]:
        whole = getattr(message, field)
        inner = desc[1][0] if int(desc[0]) > 2 else desc
        items = [((field, str(k)), v) for k, v in enumerate(whole)] if int(desc[0]) > 2 else [((field,), whole)]
        for path, item in items:
            if int(inner[0]) == 2:
                found |= leaves(item, types, inner[1], (*at, *path))
            elif field != "structure_needs_at_least_one_member":
                found[(*at, *path)] = item
    return found


def topic_of(made: list[tuple[str, str]], encoding: str, payloads: list[bytes]) -> Topic:
    line = "=" * 80
    text = made[-1][1] + "".join(f"{line}\nMSG: {name}\n{body}" for name, body in made[:-1])
    return Topic("/t", encoding, made[-1][0], "msg", text, times_ns=list(range(len(payloads))), payloads=payloads)


@settings(max_examples=60, deadline=None)
@given(definitions(), st.integers(0, 2**32), st.sampled_from(["cdr-le", "cdr-be", "ros1"]))
def test_random_messages_of_random_types(made: list[tuple[str, str]], seed: int, how: str) -> None:
    types, rng = get_typestore(Stores.EMPTY), random.Random(seed)
    for name, text in made:
        types.register(get_types_from_msg(text, name))
    name = made[-1][0].replace("/", "/msg/")
    messages = [value(rng, types, (2, name)) for _ in range(8)] * 2
    if how == "ros1":
        payloads = [bytes(types.serialize_ros1(m, name)) for m in messages]
    else:
        payloads = [bytes(types.serialize_cdr(m, name, little_endian=how == "cdr-le")) for m in messages]
    told = [leaves(m, types, name) for m in messages]
    paths = sorted(set().union(*told))
    topic = topic_of(made, how[:3] if how[:3] == "cdr" else how, payloads)
    found = columns(topic, types_of(topic, None, "", "here"), paths, "here")
    for path in paths:
        rows = [k for k, t in enumerate(told) if path in t]
        column = found[path]
        assert column.rows.tolist() == rows
        expected = [told[k][path] for k in rows]
        assert column.values.tolist() == [v if isinstance(v, str) else float(v) for v in expected], path


@settings(max_examples=150, deadline=None)
@given(definitions(), st.integers(0, 2**32), st.sampled_from(["cdr", "ros1"]), st.data())
def test_damaged_bytes_are_refused_or_read_within_bounds(
    made: list[tuple[str, str]], seed: int, encoding: str, data: Any
) -> None:
    rng = random.Random(seed)
    payload = bytes([0, rng.randint(0, 1), 0, 0] if encoding == "cdr" else []) + rng.randbytes(rng.randint(0, 60))
    topic = topic_of(made, encoding, [payload])
    types = types_of(topic, None, "", "here")
    want = want_tree([("f0",), ("f1", "0"), ("f2", "0", "f0")])
    try:
        layout = layout_of(types, topic.schema, payload, want, cdr=encoding == "cdr")
    except BadMessage as e:
        assert str(e)
    else:
        assert layout.end <= len(payload)
        assert all(slot.at <= len(payload) for slot in layout.slots.values())


def one(text: str, payload: bytes, encoding: str = "cdr") -> tuple[Topic, Types]:
    topic = topic_of([("p/A", text)], encoding, [payload])
    return topic, types_of(topic, None, "", "here")


def test_lengths_that_are_absurd() -> None:
    head = b"\0\1\0\0"
    for text, payload, words in (
        ("float64[] a\n", head + b"\xff\xff\xff\xff" + b"\0" * 8, "claims 4294967295 elements with 8 bytes left"),
        ("string a\n", head + b"\xff\xff\xff\x7f" + b"abc\0", "ends after 12 bytes"),
        ("string[] a\n", head + b"\0\0\0\x10", "claims 268435456 elements"),
        ("builtin_interfaces/Time[1000000000] a\n", head + b"\0" * 40, "claims 1000000000 elements"),
        ("float64 a\n", head + b"\0" * 40, "44 bytes, its type says 12"),
        ("float64 a\n", b"\0\x0a\0\0" + b"\0" * 8, "encapsulation 000a"),
        ("wstring a\n", head + b"\0" * 8, "wstring. is missing"),
    ):
        with pytest.raises(LogError, match=words):
            columns(*one(text, payload), [("a", "0", "sec") if "Time" in text else ("a",)], "here")


def test_types_that_explode() -> None:
    line = "=" * 80
    # empty leaves: 2**60 of them in a ROS 1 message of no bytes
    text = "T0 a\n" + "".join(f"{line}\nMSG: p/T{k}\nT{k + 1} a\nT{k + 1} b\n" for k in range(60))
    topic = Topic("/t", "ros1", "p/A", "msg", text + f"{line}\nMSG: p/T60\n", times_ns=[0], payloads=[b""])
    types = types_of(topic, None, "", "here")
    layout_of(types, topic.schema, b"", {}, cdr=False)
    many = Topic("/t", "ros1", "p/A", "msg", f"E[2000000000] a\nuint8 b\n{line}\nMSG: p/E\n", payloads=[b"\7"])
    many.times_ns.append(0)
    assert columns(many, types_of(many, None, "", "here"), [("b",)], "here")[("b",)].values.tolist() == [7.0]
    with pytest.raises(BadMessage):
        layout_of(types, topic.schema, b"\0\1\0\0" + bytes(100), {}, cdr=True)
    deep = "T0 a\n" + "".join(f"{line}\nMSG: p/T{k}\nT{k + 1} a\n" for k in range(3000))
    topic = Topic("/t", "cdr", "p/A", "msg", deep + f"{line}\nMSG: p/T3000\nint8 a\n", payloads=[])
    try:
        with pytest.raises(BadMessage, match="nested too deeply"):
            layout_of(types_of(topic, None, "", "here"), topic.schema, b"\0\1\0\0\0", {}, cdr=True)
    except LogError as e:
        assert "cannot be read" in str(e)
    for text in ("T0 a\n", "float64\n", "p/A a\n", "float64[99999999999999999999999] a\n" * 2, "\0\0\xff"):
        with pytest.raises(LogError, match=r"missing|cannot be read|contains itself|claims"):
            columns(*one(text, b"\0\1\0\0"), [("a",)], "here")


def test_many_layouts_of_one_size() -> None:
    payloads = []
    for k in range(300):
        # two texts that share 300 characters
        a = k.to_bytes(4, "little") + b"x" * k
        payloads.append(a + (300 - k).to_bytes(4, "little") + b"y" * (300 - k) + bytes([k % 7]))
    topic = Topic("/t", "ros1", "p/A", "msg", "string a\nstring b\nuint8 c\n", times_ns=[0] * 300, payloads=payloads)
    found = columns(topic, types_of(topic, None, "", "here"), [("c",), ("b",)], "here")
    assert found[("c",)].values.tolist() == [float(k % 7) for k in range(300)]
    assert found[("b",)].values[299] == "y" and found[("b",)].rows.tolist() == list(range(300))


def test_messages_of_one_size_of_which_the_first_lacks_the_value() -> None:
    def message(name: str, value: float) -> bytes:
        return struct.pack("<II2sId", 1, 2, name.encode(), 1, value)

    payloads = [message("ab", 1.0), message("cd", 2.0), message("ab", 3.0), struct.pack("<III", 0, 0, 7) + bytes(10)]
    topic = Topic("/t", "ros1", "p/A", "msg", "string[] name\nfloat64[] x\n", times_ns=[0] * 3, payloads=payloads[:3])
    types = types_of(topic, None, "", "here")
    found = columns(topic, types, [("x", "[cd]"), ("x", "[ab]")], "here")
    assert found[("x", "[cd]")].rows.tolist() == [1] and found[("x", "[cd]")].values.tolist() == [2.0]
    assert found[("x", "[ab]")].rows.tolist() == [0, 2]
    # alone, the name is not in the first message, and no value was found there
    assert columns(topic, types, [("x", "[cd]")], "here")[("x", "[cd]")].values.tolist() == [2.0]
    sizes = Topic("/t", "ros1", "p/B", "msg", "uint8[] a\nuint8[] b\n", times_ns=[0, 0])
    sizes.payloads = [struct.pack("<II2B", 0, 2, 8, 9), struct.pack("<I2BI", 2, 5, 6, 0)]
    found = columns(sizes, types_of(sizes, None, "", "here"), [("a", "1")], "here")
    assert found[("a", "1")].rows.tolist() == [1] and found[("a", "1")].values.tolist() == [6.0]


def test_paths_as_people_write_them() -> None:
    assert parse_path("a.b.3.c") == parse_path("a.b[3].c") == ("a", "b", "3", "c")
    assert parse_path("position[left.elbow/j 1]") == ("position", "[left.elbow/j 1]")
