"""CAN traffic that an MDF file has logged as raw frames (ASAM MDF bus logging: CAN_DataFrame) as a `Recording`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.frames import EXTENDED, Frames, Recording, join, width_of
from hagane.intake.mdf_file import Measurement
from hagane.terms import digest_file

_BYTES_OF_CODE = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64])  # ISO 11898-1
_DATA, _LEFT_OUT = "CAN_DataFrame", {"CAN_ErrorFrame": "error", "CAN_RemoteFrame": "remote"}


def holds_can(measured: Measurement) -> bool:
    """True when a file has groups of raw CAN frames."""
    return bool(measured.places_of(f"{_DATA}.ID"))


def recording_of(measured: Measurement) -> Recording:
    """All CAN data frames of a file, of all buses, in the order of time."""
    parts = [_frames(measured, group) for group, _ in measured.places_of(f"{_DATA}.ID")]
    frames = join(parts)
    if len(parts) > 1:
        frames = frames.take(np.argsort(frames.times_ns, kind="stable"))
    groups = measured.file.groups
    skipped = {
        kind: sum(int(groups[g].channel_group.cycles_nr) for g, _ in measured.places_of(f"{name}.ID"))
        for name, kind in _LEFT_OUT.items()
    }
    return Recording(frames, measured.cut, skipped, digest=digest_file(measured.path))


def _frames(measured: Measurement, group: int) -> Frames:
    times_ns = measured.times_ns(group)

    def column(name: str) -> NDArray[Any] | None:
        for number, index in measured.places_of(f"{_DATA}.{name}"):
            if number == group:
                return np.asarray(measured.file.get(group=group, index=index, samples_only=True, raw=True)[0])
        return None

    ident, data = column("ID"), column("DataBytes")
    if ident is None or data is None:
        raise ValueError(f"group #{group} logs CAN frames without ID or DataBytes")
    raw = ident.astype(np.int64)
    ide = column("IDE")
    # without the flag an id says itself whether it is extended: by bit 31, or by its size
    extended = ide.astype(bool) if ide is not None else (raw & EXTENDED != 0) | (raw & 0x1FFFFFFF > 0x7FF)
    payload = np.ascontiguousarray(data).view(np.uint8).reshape(len(times_ns), -1) if len(times_ns) else data[:0]
    length = column("DataLength")
    code = column("DLC")
    if length is None and code is not None:
        length = _BYTES_OF_CODE[np.minimum(code.astype(np.int64), 15)]
    lengths = np.full(len(times_ns), payload.shape[-1]) if length is None else length.astype(np.int64)
    lengths = np.clip(lengths, 0, min(64, payload.shape[-1]))
    width = width_of(int(lengths.max(initial=0)))
    padded = np.zeros((len(times_ns), width), np.uint8)
    some = min(width, payload.shape[-1])
    padded[:, :some] = np.where(np.arange(some) < lengths[:, None], payload[:, :some], 0)
    bus = column("BusChannel")
    buses = np.zeros(len(times_ns)) if bus is None else np.clip(bus.astype(np.int64), 0, 255)
    ids = (raw & 0x1FFFFFFF) | np.where(extended, EXTENDED, 0)
    return Frames(times_ns, ids.astype(np.uint32), padded, lengths.astype(np.uint8), buses.astype(np.uint8))
