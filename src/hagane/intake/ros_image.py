"""Pictures out of ROS messages: compressed ones as they are, raw ones as uint8.

A message type is known by its fields, not its name: `format` and `data` (sensor_msgs/CompressedImage and its like), or
`height`, `width`, `encoding`, `step` and `data` (sensor_msgs/Image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.picture import MOST_PIXELS, picture_size
from hagane.intake.ros_types import Types, kind_of
from hagane.intake.topic_fields import Column
from hagane.intake.topic_log import FieldPath, Topic
from hagane.terms import LogError

_COMPRESSED: tuple[FieldPath, ...] = (("format",), ("data",))
_RAW: tuple[FieldPath, ...] = (("height",), ("width",), ("encoding",), ("step",), ("data",))
_KINDS = {
    **{name: {"uint32", "int32", "uint16", "int16"} for name in ("height", "width", "step")},
    **{"encoding": {"string"}, "format": {"string"}, "data": {"uint8", "byte", "char"}},
}
_ORDERS = {
    **{"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "mono8": (0, 0, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)},
    **{"8UC1": (0, 0, 0), "8UC3": (2, 1, 0)},
}
"""Where red, green and blue lie in a pixel; OpenCV's names mean its own order, blue first."""
_BYTES = {"mono8": 1, "8UC1": 1, "rgba8": 4, "bgra8": 4}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of a topic."""

    rows: NDArray[np.int64]
    """[M] which messages they are from."""
    values: NDArray[Any]
    """[M, H, W, 3] uint8, or [M] objects: bytes of a JPEG or PNG."""
    lost: int
    """Messages whose picture could not be read; they are left out."""
    first_lost: int = 0
    """The first of them."""


def picture_paths(topic: Topic, types: Types, inside: FieldPath, where: str) -> tuple[FieldPath, ...]:
    """The fields that make a picture.

    Args:
        topic: whose messages.
        types: what they are made of.
        inside: field that holds the picture; () when the message is one.
        where: log and topic, for messages to people.

    Raises:
        LogError: the topic's messages are no pictures.
    """
    name = kind_of(types, topic.schema, inside, where).name if types else topic.encoding
    fields = [(field, kind) for field, kind in types.get(name, ()) if kind.name in _KINDS.get(field, ())]
    names = {(field,) for field, kind in fields if (kind.many is not None) == (field == "data")}
    for paths in (_RAW, _COMPRESSED):
        if set(paths) <= names:
            return paths
    raise LogError(
        f"messages of type {name!r} are no pictures",
        where=where,
        next_step="an image channel needs a topic of sensor_msgs/Image or CompressedImage as its source",
    )


def pictures_of(fields: dict[FieldPath, Column], where: str) -> Pictures:
    """Pictures out of the columns of `picture_paths`.

    Raises:
        LogError: none of them can be read, an encoding that is not read, or raw pictures of different sizes.
    """
    return _raw(fields, where) if ("encoding",) in fields else _compressed(fields, where)


def _compressed(fields: dict[FieldPath, Column], where: str) -> Pictures:
    column = fields[("data",)]
    good, reason = [], ""
    for data in column.values:
        try:
            picture_size(data)
            good.append(True)
        except LogError as e:
            good.append(False)
            reason = reason or e.what
    keep = np.array(good, bool)
    if len(keep) and not keep.any():
        label = fields[("format",)].values[0]
        raise LogError(f"no picture of format {label!r} can be read: {reason}", where=where, next_step=_ADVICE)
    lost = column.rows[~keep]
    return Pictures(column.rows[keep], column.values[keep], len(lost), int(lost[0]) if len(lost) else 0)


_ADVICE = "JPEG and PNG, rgb8, bgr8, rgba8, bgra8 and mono8 are read: republish the topic as one of them"


def _raw(fields: dict[FieldPath, Column], where: str) -> Pictures:
    heights, widths, encodings, steps, blobs = (fields[p].values for p in _RAW)
    kinds = {(int(h), int(w), str(e)) for h, w, e in zip(heights, widths, encodings, strict=True)}
    if not kinds:
        return Pictures(fields[("data",)].rows, np.zeros((0, 1, 1, 3), np.uint8), 0)
    height, width, encoding = sorted(kinds)[0]
    if len(kinds) > 1:
        raise LogError(
            f"pictures of {len(kinds)} sizes or encodings in one topic",
            where=where,
            next_step="record them as topics of one size each",
        )
    if encoding not in _ORDERS:
        raise LogError(f"pictures encoded as {encoding!r} are not read", where=where, next_step=_ADVICE)
    size = _BYTES.get(encoding, 3)
    if not 0 < height * width <= MOST_PIXELS:
        raise LogError(
            f"a picture claims {width} x {height} pixels", where=where, next_step="copy the log again from its source"
        )
    values = np.empty((len(blobs), height, width, 3), np.uint8)
    for k, (step, blob) in enumerate(zip(steps.astype(np.int64).tolist(), blobs, strict=True)):
        if step < width * size or height * step > len(blob):
            raise LogError(
                f"picture {k + 1} has {len(blob)} bytes, not {height} rows of {max(step, width * size)}",
                where=where,
                next_step="the log is damaged",
            )
        rows = np.frombuffer(blob, np.uint8, height * step).reshape(height, step)[:, : width * size]
        values[k] = rows.reshape(height, width, size)[:, :, _ORDERS[encoding]]
    return Pictures(fields[("data",)].rows, values, 0)
