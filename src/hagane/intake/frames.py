"""Frames: CAN traffic as columns, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

EXTENDED = 1 << 31
"""Set in `ids` for 29-bit identifiers, as SocketCAN and DBC files do."""


@dataclass(frozen=True, eq=False)
class Frames:
    """N data frames, classic CAN or CAN FD, in the order of the log."""

    times_ns: NDArray[np.int64]
    """[N] the log's own time stamps, nanoseconds."""
    ids: NDArray[np.uint32]
    """[N] identifiers; `EXTENDED` is added to 29-bit ones."""
    data: NDArray[np.uint8]
    """[N, W] payload, zero past its length; W is 8, or 64 where the log holds longer (FD) frames."""
    lengths: NDArray[np.uint8]
    """[N] bytes of payload, 0 to 64."""
    buses: NDArray[np.uint8]
    """[N] number of the bus or interface, from 0."""

    def __len__(self) -> int:
        return len(self.times_ns)

    def take(self, rows: NDArray[np.int64] | slice) -> Frames:
        """The frames at these rows."""
        return Frames(self.times_ns[rows], self.ids[rows], self.data[rows], self.lengths[rows], self.buses[rows])


@dataclass(frozen=True, eq=False)
class Recording:
    """What one log holds: its frames, and what was seen beside them."""

    frames: Frames
    """All data frames."""
    cut: str = ""
    """Words that say how the log's end is cut; "" when it is whole."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Frames that carry no data, by kind ("error", "remote"): counted, and left out."""
    notes: tuple[str, ...] = ()
    """What else a person should know: each becomes a finding."""
    digest: str = ""
    """sha256 of the log's bytes."""


def width_of(longest: int) -> int:
    """Width W of the payload matrix for frames of at most `longest` bytes."""
    return 8 if longest <= 8 else 64


def join(parts: list[Frames]) -> Frames:
    """Frames end to end."""
    parts = [p for p in parts if len(p)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Frames(*(np.zeros(s, t) for s, t in _EMPTY))
    width = max(p.data.shape[1] for p in parts)
    names = ("times_ns", "ids", "lengths", "buses")
    times_ns, ids, lengths, buses = (np.concatenate([getattr(p, n) for p in parts]) for n in names)
    data = np.concatenate([np.pad(p.data, ((0, 0), (0, width - p.data.shape[1]))) for p in parts])
    return Frames(times_ns, ids, data, lengths, buses)


def in_order(parts: list[Frames], rows: list[NDArray[np.int64]]) -> Frames:
    """Parts of a log as one, in the log's order; `rows` tells for each part where its frames stood."""
    together = join(parts)
    order = np.concatenate([np.zeros(0, np.int64), *rows])
    return together if (np.diff(order) > 0).all() else together.take(np.argsort(order, kind="stable"))


_EMPTY: tuple[tuple[tuple[int, ...], type], ...] = (
    ((0,), np.int64),
    ((0,), np.uint32),
    ((0, 8), np.uint8),
    ((0,), np.uint8),
    ((0,), np.uint8),
)
