"""Frames: CAN traffic as columns, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXTENDED = 1 << 31
"""Set in `ids` for 29-bit identifiers, as SocketCAN and DBC files do."""


@dataclass(frozen=True, eq=False)
class Frames:
    """N classic CAN frames in the order of the log."""

    times_ns: NDArray[np.int64]
    """[N] the log's own time stamps, nanoseconds."""
    ids: NDArray[np.uint32]
    """[N] identifiers; `EXTENDED` is added to 29-bit ones."""
    data: NDArray[np.uint8]
    """[N, 8] payload, zero past its length."""
    lengths: NDArray[np.uint8]
    """[N] bytes of payload, 0 to 8."""
    buses: NDArray[np.uint8]
    """[N] number of the bus or interface."""

    def __len__(self) -> int:
        return len(self.times_ns)

    def take(self, rows: NDArray[np.int64] | slice) -> Frames:
        """The frames at these rows."""
        return Frames(self.times_ns[rows], self.ids[rows], self.data[rows], self.lengths[rows], self.buses[rows])


def join(parts: list[Frames]) -> Frames:
    """Frames end to end."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Frames(*(np.zeros(s, t) for s, t in _EMPTY))
    names = ("times_ns", "ids", "data", "lengths", "buses")
    return Frames(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


_EMPTY: tuple[tuple[tuple[int, ...], type], ...] = (
    ((0,), np.int64),
    ((0,), np.uint32),
    ((0, 8), np.uint8),
    ((0,), np.uint8),
    ((0,), np.uint8),
)
