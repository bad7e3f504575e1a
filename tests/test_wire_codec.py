"""The codec: the same bytes as the openpi client, and nothing but WireError for everything else."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hagane.terms import WireError
from hagane.wire import Limits, pack, unpack
from hagane.wire.codec import NUMERIC

# made once with openpi-client 0.1.2, msgpack 1.2.4
GOLDEN = bytes.fromhex(
    "83a17884c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f000000c0c4056474797065a33c6634c40573686170659201"
    "02a17383c40d5f5f6e7067656e657269635f5fc3c4046461746105c4056474797065a33c6938a170a26869"
)


def message() -> dict[str, Any]:
    return {"x": np.array([[1, -2]], np.float32), "s": np.int64(5), "p": "hi"}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


def test_bytes_are_those_of_the_openpi_client() -> None:
    assert pack(message()) == GOLDEN
    assert same(unpack(GOLDEN), message())


def test_both_ways_with_the_real_client_when_installed() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="openpi-client is not installed")
    full = {
        **message(),
        "image": np.arange(2 * 300 * 3, dtype=np.uint8).reshape(2, 300, 3),
        "nested": {"list": [1, -1, 2.5, True, None, "ü" * 40, 2**40, -(2**40)], "zero": np.zeros((0, 3), np.float64)},
        "scalars": [np.float32(2), np.float64(3), np.bool_(True), np.uint8(200), np.float16(1)],
        "0d": np.array(1.5),
        "big-endian": np.array([1, 2], ">i4"),
    }
    assert pack(full) == theirs.packb(full)
    assert same(unpack(theirs.packb(full)), unpack(pack(full)))
    back = theirs.unpackb(pack(full))
    assert same(unpack(pack(full))["image"], back["image"])
    assert same(unpack(pack(full))["nested"]["zero"], back["nested"]["zero"])


def test_str_keys_are_read_as_well() -> None:
    written = {"a": {"__ndarray__": True, "data": b"\x01\x02", "dtype": "|u1", "shape": [2]}}
    assert same(unpack(pack(written))["a"], np.array([1, 2], np.uint8))


def test_arrays_are_read_only_views() -> None:
    assert not unpack(pack({"a": np.zeros(3)}))["a"].flags.writeable


def array_map(**changes: Any) -> bytes:
    fields = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    fields.update({k.encode(): v for k, v in changes.items()})
    return pack({"a": {k: v for k, v in fields.items() if v is not ...}})


BAD: dict[str, bytes] = {
    "nothing": b"",
    "object array": array_map(dtype="|O", data=bytes(16)),
    "text array": array_map(dtype="<U2", data=bytes(16)),
    "void array": array_map(dtype="|V8", data=bytes(16)),
    "structured": array_map(dtype="f4,f4"),
    "too few bytes": array_map(shape=[3]),
    "too many bytes": array_map(shape=[1]),
    "huge shape": array_map(shape=[2**31, 2**31]),
    "huge empty shape": array_map(shape=[0, 2**40, 2**40], data=b""),
    "negative": array_map(shape=[-1, -2]),
    "bool dimension": array_map(shape=[True, 2]),
    "float dimension": array_map(shape=[2.0]),
    "many dimensions": array_map(shape=[1] * 40, data=bytes(4)),
    "no dtype": array_map(dtype=...),
    "extra key": array_map(more=1),
    "false mark": array_map(__ndarray__=False),
    "data as text": array_map(data="12345678"),
    "scalar of 2 GB": pack({b"__npgeneric__": True, b"data": 1, b"dtype": "<U536870911"}),
    "scalar too large": pack({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    "scalar of a list": pack({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    "same key twice": b"\x82\xa1a\x01\xa1a\x02",
    "same key as bytes": b"\x82\xa1a\x01\xc4\x01a\x02",
    "number as key": b"\x81\x01\x02",
    "list as key": b"\x81\x90\x02",
    "invalid utf-8": b"\xa2\xff\xfe",
    "time stamp": b"\xd6\xff\x00\x00\x00\x00",
    "extension": b"\xc7\x01\x05\x00",
    "reserved": b"\xc1",
    "trailing": b"\x01\x01",
    "list of 4 G": b"\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 G": b"\xc6\xff\xff\xff\xff",
    "deep": b"\x91" * 5000 + b"\x01",
    "wide": b"\xdc\xff\xff" + b"\x01" * 65535,
    "long text": b"\xdb" + struct.pack(">I", 100_000) + b"a" * 100_000,
    "long key": pack({"k" * 300: 1}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused(name: str) -> None:
    with pytest.raises(WireError):
        unpack(BAD[name])


def test_a_frame_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(WireError, match="at most 100"):
        unpack(bytes(101), Limits(frame_bytes=100))


@pytest.mark.parametrize("bad", [{"a": object()}, np.array(["x"]), np.array([None]), np.zeros(2, complex), 1j])
def test_what_has_no_place_on_the_wire_is_not_packed(bad: Any) -> None:
    with pytest.raises(WireError):
        pack(bad)


arrays = st.sampled_from(sorted(NUMERIC)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | arrays
keys = st.text(max_size=20).filter(lambda k: k not in ("__ndarray__", "__npgeneric__"))
values = st.recursive(leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(keys, x, max_size=4), max_leaves=12)


@given(values)
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_back(value: Any) -> None:
    assert same(unpack(pack(value), Limits(depth=30)), value)


@given(arrays)
@settings(max_examples=100, deadline=None)
def test_the_quick_way_and_the_general_way_read_the_same(array: Any) -> None:
    # openpi's order and bytes keys take the quick way; any other order the general one
    general = {b"shape": array.shape, b"dtype": array.dtype.str, b"data": array.tobytes(), b"__ndarray__": True}
    assert same(unpack(pack(array)), unpack(pack(general)))


def only_wire_error(data: bytes) -> None:
    """Read hostile bytes: any other exception fails the test."""
    with contextlib.suppress(WireError):
        unpack(data)


@given(st.binary(max_size=400))
@settings(max_examples=250, deadline=None)
def test_random_bytes_raise_only_wire_errors(data: bytes) -> None:
    only_wire_error(data)


@given(values, st.data())
@settings(max_examples=120, deadline=None)
def test_mutated_frames_raise_only_wire_errors(value: Any, draw: st.DataObject) -> None:
    frame = bytearray(pack({"a": value, **message()}))
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, len(frame) - 1))
        match draw.draw(st.sampled_from(["flip", "cut", "insert", "length"])):
            case "flip":
                frame[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "cut":
                frame = frame[: at + 1]
            case "insert":
                frame[at:at] = draw.draw(st.binary(min_size=1, max_size=6))
            case _:
                frame[at] = draw.draw(st.sampled_from([0xC4, 0xC6, 0xDB, 0xDD, 0xDF, 0xC1, 0xD6, 0xFF]))
    only_wire_error(bytes(frame))


def test_memory_stays_near_the_size_of_the_message() -> None:
    rng = np.random.default_rng(7)
    frames = [*BAD.values(), b"\xdd\x00\x00\x4e\x00" + b"\xa0" * 19_968]
    for _ in range(300):
        frame = bytearray(GOLDEN)
        for at in rng.integers(0, len(frame), 3):
            frame[at] = rng.integers(256)
        frames.append(bytes(frame))
    tracemalloc.start()
    try:
        for frame in frames:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            only_wire_error(frame)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 100_000 + 150 * len(frame), (frame[:40], peak)
    finally:
        tracemalloc.stop()
