"""The openpi msgpack-numpy codec, read strictly.

openpi (`openpi_client/msgpack_numpy.py`) writes an array as the map {b"__ndarray__": true, b"data": bytes,
b"dtype": "<f4", b"shape": [..]} and a NumPy scalar as {b"__npgeneric__": true, b"data": value, b"dtype": ".."}.
Its own reader trusts the sender: a 100-byte frame of dtype "|O" crashes it, a 39-byte scalar of dtype "<U.."
allocates gigabytes. This reader checks every count against the bytes that are really there before it makes
anything, knows numeric types only, and raises nothing but WireError.

msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hagane.terms import WireError
from hagane.wire.scan import Cursor

NUMERIC = frozenset(
    [f"|{k}1" for k in "biu"] + [f"{order}{k}{size}" for order in "<>" for k in "iu" for size in "248"]
) | frozenset(f"{order}f{size}" for order in "<>" for size in "248")
"""dtype strings that may cross the wire."""
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in sorted(NUMERIC)}
_ARRAY_KEYS = {"__ndarray__", "data", "dtype", "shape"}
_SCALAR_KEYS = {"__npgeneric__", "data", "dtype"}
_MAX_DIMS = 8
_ARRAY_HEAD = b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data"
_DTYPE_HEAD = b"\xc4\x05dtype\xa3"
_SHAPE_HEAD = b"\xc4\x05shape"
_BYTES_WIDTH = {b"\xc4": 1, b"\xc5": 2, b"\xc6": 4}


@dataclass(frozen=True)
class Limits:
    """What one message may hold; the reader refuses more before it allocates anything for it."""

    frame_bytes: int = 8 << 20
    """Bytes of the whole message."""
    depth: int = 8
    """Maps and lists within each other; an array's own map counts as one."""
    items: int = 20_000
    """Values and keys in all; each costs about 100 bytes of memory at most."""
    text_bytes: int = 64 << 10
    """Bytes of one text."""
    key_bytes: int = 256
    """Bytes of one key."""


DEFAULT = Limits()


def pack(obj: Any) -> bytes:
    """Bytes of plain values and NumPy arrays, exactly as the openpi client packs them.

    Raises:
        WireError: something in it has no place on the wire (object, text or complex arrays, other types).
    """
    try:
        return _ENCODER.encode(obj)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as e:
        raise WireError(
            f"cannot be packed: {e}", next_step="send numbers, texts, numeric arrays, lists and maps"
        ) from e


def unpack(data: bytes, limits: Limits = DEFAULT) -> Any:
    """Values of one packed message. Arrays are read-only views of `data`; plain bytes keys come back as str.

    Raises:
        WireError: anything but one whole well-formed message within the limits.
    """
    if len(data) > limits.frame_bytes:
        raise WireError(f"message of {len(data)} bytes, at most {limits.frame_bytes} are read")
    cursor = Cursor(data, limits.items, limits.text_bytes)
    value = _value(cursor, limits, 0)
    if cursor.at != len(data):
        raise WireError(f"{len(data) - cursor.at} bytes after the message's end")
    return value


def _value(cursor: Cursor, limits: Limits, depth: int) -> Any:
    if depth < limits.depth and cursor.data.startswith(_ARRAY_HEAD, cursor.at):
        array = _common_array(cursor)
        if array is not None:
            return array
    kind, value = cursor.token()
    if kind == "value":
        return value
    if depth >= limits.depth:
        raise WireError(f"more than {limits.depth} maps or lists within each other")
    if kind == "list":
        return [_value(cursor, limits, depth + 1) for _ in range(value)]
    found: dict[str, Any] = {}
    for _ in range(value):
        key = _key(cursor, limits)
        if key in found:
            raise WireError(f"key {key!r} twice in one map")
        found[key] = _value(cursor, limits, depth + 1)
    if "__ndarray__" in found:
        return _array(found)
    if "__npgeneric__" in found:
        return _scalar(found)
    return found


def _key(cursor: Cursor, limits: Limits) -> str:
    size = cursor.data[cursor.at] - 0xA0 if cursor.at < len(cursor.data) else -1
    if 0 <= size < 32 and cursor.items_left > 0:  # nearly all keys: a short text
        cursor.at, cursor.items_left = cursor.at + 1, cursor.items_left - 1
        return cursor.text(size)
    kind, key = cursor.token()
    if kind == "value" and isinstance(key, bytes) and len(key) <= limits.key_bytes:
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise WireError("a key that is no UTF-8 text") from None
    if kind == "value" and isinstance(key, str) and len(key.encode()) <= limits.key_bytes:
        return key
    raise WireError(f"a key must be a text of at most {limits.key_bytes} bytes")


def _common_array(cursor: Cursor) -> np.ndarray[Any, Any] | None:
    """An array in the order and spelling of openpi's packer, in one go; None leaves it to the general reader.

    Same checks, same result, a tenth of the time: nearly all of a request is such maps.
    """
    data, at = cursor.data, cursor.at + len(_ARRAY_HEAD)
    width = _BYTES_WIDTH.get(data[at : at + 1], 0)
    start = at + 1 + width
    end = start + int.from_bytes(data[at + 1 : start], "big")
    if not width or data[end : end + 8] != _DTYPE_HEAD or data[end + 11 : end + 18] != _SHAPE_HEAD:
        return None
    dtype = _DTYPES.get(data[end + 8 : end + 11].decode("latin-1"))
    count = data[end + 18] - 0x90 if len(data) > end + 18 else -1
    shape, after = data[end + 19 : end + 19 + count], end + 19 + count
    if dtype is None or not 0 <= count <= _MAX_DIMS or len(shape) != count or max(shape, default=0) > 0x7F:
        return None
    if math.prod(shape) * dtype.itemsize != end - start:
        return None
    cursor.items_left -= 9 + count
    if cursor.items_left < 0:
        raise WireError("too many values in one message")
    cursor.at = after
    return np.ndarray(tuple(shape), dtype, data, start)


def _array(found: dict[str, Any]) -> np.ndarray[Any, Any]:
    """An array, when its bytes are exactly what dtype and shape say."""
    if found.keys() != _ARRAY_KEYS or found["__ndarray__"] is not True:
        raise WireError("an array's map must hold exactly __ndarray__ (true), data, dtype and shape")
    dtype, shape, data = _dtype(found["dtype"]), found["shape"], found["data"]
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        raise WireError(f"an array needs bytes and a list of at most {_MAX_DIMS} dimensions")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(max(n, 1) for n in shape) >= 1 << 31:
        raise WireError("an array's dimensions must be whole numbers, together below 2^31")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(data):
        raise WireError(f"an array of shape {shape} and dtype {dtype.str} needs {wanted} bytes, not {len(data)}")
    return np.ndarray(tuple(shape), dtype, data)


def _scalar(found: dict[str, Any]) -> Any:
    """A NumPy scalar, when the value fits its type."""
    if found.keys() != _SCALAR_KEYS or found["__npgeneric__"] is not True:
        raise WireError("a scalar's map must hold exactly __npgeneric__ (true), data and dtype")
    dtype, value = _dtype(found["dtype"]), found["data"]
    fits: type = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    if type(value) is not fits and not (fits is float and type(value) is int):
        raise WireError(f"a scalar of dtype {dtype.str} cannot be {type(value).__name__}")
    if isinstance(value, int) and dtype.kind in "iu":
        info = np.iinfo(dtype)
        if not info.min <= value <= info.max:
            raise WireError(f"{value} does not fit dtype {dtype.str}")
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, str) and name in _DTYPES:
        return _DTYPES[name]
    shown = repr(name)[:40] if isinstance(name, str | bytes) else type(name).__name__
    raise WireError(f"dtype {shown} is not read", next_step="send bool, integers or floats of 16 to 64 bits")


def _plain(obj: Any) -> Any:
    """What msgspec does not know, as openpi's `pack_array` writes it."""
    if isinstance(obj, float | str | bytes) and isinstance(obj, np.generic):
        # openpi's packer sees these as the Python types they derive from
        return obj.item()
    if not isinstance(obj, np.ndarray | np.generic):
        raise TypeError(f"{type(obj).__name__} has no place on the wire")
    if obj.dtype.str not in NUMERIC:
        raise TypeError(f"arrays of dtype {obj.dtype.str} have no place on the wire")
    if isinstance(obj, np.ndarray):
        return {b"__ndarray__": True, b"data": obj.tobytes(), b"dtype": obj.dtype.str, b"shape": obj.shape}
    return {b"__npgeneric__": True, b"data": obj.item(), b"dtype": obj.dtype.str}


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
