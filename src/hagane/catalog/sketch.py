"""Statistics of a data set's channels: mergeable sketches on disk, and `ChannelStats` for the model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import fields

import numpy as np

from hagane.intake.lerobot_sketch import Sketch, merge
from hagane.terms import ChannelStats, CorruptError


def merge_all(parts: Iterable[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    """Channel by channel, the sketch of several parts together."""
    out: dict[str, Sketch] = {}
    for part in parts:
        for name, sketch in part.items():
            out[name] = merge(out[name], sketch) if name in out else sketch
    return out


def channel_stats(sketch: Sketch) -> ChannelStats:
    """What the model's normaliser needs; a column without samples has mean 0, std 0 and all bounds 0."""
    seen = sketch.count > 0
    low, high = np.where(seen, sketch.low, 0), np.where(seen, sketch.high, 0)
    q01, q99 = (np.where(seen, sketch.quantile(q), 0) for q in (0.01, 0.99))
    return ChannelStats(int(sketch.count.max(initial=0)), sketch.mean, sketch.std, low, high, q01, q99)


def pack_sketches(sketches: Mapping[str, Sketch]) -> bytes:
    """As bytes of an .npz archive without pickles: the same sketches always give the same bytes."""
    names = sorted(sketches)
    arrays = {f"{i:03d}.{f.name}": getattr(sketches[n], f.name) for i, n in enumerate(names) for f in fields(Sketch)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, names=np.array(names), **arrays)
    return buffer.getvalue()


def unpack_sketches(data: bytes, where: str) -> dict[str, Sketch]:
    """The inverse of `pack_sketches`.

    Raises:
        CorruptError: the bytes are not that.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {
                str(name): Sketch(**{f.name: archive[f"{i:03d}.{f.name}"] for f in fields(Sketch)})
                for i, name in enumerate(archive["names"])
            }
    except Exception as e:
        raise CorruptError(f"statistics cannot be read: {e}", where=where) from None
