"""DBC signals, and their values out of CAN payloads: whole columns at once.

Bit numbering as in DBC files: bit 0 is the least significant of byte 0; a big-endian (Motorola) signal starts at
its most significant bit. Compared with cantools frame by frame in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.sources import nearest
from hagane.terms import LogError


@dataclass(frozen=True)
class Signal:
    """One signal: physical value = raw * scale + offset."""

    name: str
    """Name in its message."""
    start: int
    """Start bit, DBC numbering."""
    length: int
    """Bits, 1 to 64."""
    big_endian: bool = False
    """Motorola byte order."""
    signed: bool = False
    """Two's complement."""
    is_float: bool = False
    """IEEE 754 of 32 or 64 bits."""
    scale: float = 1.0
    """Physical units a step."""
    offset: float = 0.0
    """Physical value of raw 0."""
    unit: str = ""
    """Unit in the DBC; "" when it gives none."""
    selector: str = ""
    """Name of the multiplexer signal, or ""."""
    selected_by: tuple[int, ...] = ()
    """Multiplexer values for which this signal is present."""
    choices: Mapping[int, str] = field(default_factory=dict)
    """Names of raw values."""

    @property
    def last_byte(self) -> int:
        """Index of the last payload byte that the signal touches."""
        if not self.big_endian:
            return (self.start + self.length - 1) // 8
        top = self.start // 8 * 8 + 7 - self.start % 8
        return (top + self.length - 1) // 8


@dataclass(frozen=True)
class Message:
    """One message of a DBC file."""

    name: str
    """Name."""
    id: int
    """Identifier; `EXTENDED` is added to 29-bit ones."""
    signals: Mapping[str, Signal]
    """Signals by name."""


def find_signal(source: str, messages: Mapping[str, Message], where: str) -> list[tuple[Message, Signal]]:
    """Message and signal of "MESSAGE.SIGNAL", or of each term of a sum "MESSAGE.A + MESSAGE.B".

    A signal that MESSAGE lacks is looked for in its continuations MESSAGE_B, MESSAGE_C, ... (our writer splits
    what does not fit into 8 bytes). The terms of a sum must share one message.

    Raises:
        LogError: no such message or signal (with the nearest names), or a source of another form.
    """
    found = []
    for term in source.split("+"):
        name, dot, signal = term.strip().partition(".")
        if not dot:
            raise LogError(f"source {source!r} is not MESSAGE.SIGNAL", where=where, next_step="edit the embodiment")
        if name not in messages:
            raise LogError(f"the DBC has no message {name!r}", where=where, next_step=nearest(name, messages))
        parts = [messages[name]]
        for letter in "BCDEFGHIJKLMNOP":
            if signal in parts[-1].signals or f"{name}_{letter}" not in messages:
                break
            parts.append(messages[f"{name}_{letter}"])
        if signal not in parts[-1].signals:
            known = [s for p in parts for s in p.signals]
            raise LogError(f"message {name!r} has no signal {signal!r}", where=where, next_step=nearest(signal, known))
        found.append((parts[-1], parts[-1].signals[signal]))
    if len({m.name for m, _ in found}) > 1:
        raise LogError(f"source {source!r} adds signals of two messages", where=where, next_step="edit the embodiment")
    return found


def raw_values(data: NDArray[np.uint8], signal: Signal) -> NDArray[Any]:
    """Raw integers (int64 or uint64) or floats of a signal that lies within W bytes; data [..., W] to [...]."""
    big = signal.big_endian
    first = signal.start // 8 * 8 + 7 - signal.start % 8 if big else signal.start
    byte = min(first // 8, data.shape[-1] - 8)
    bit = first - 8 * byte
    window = np.ascontiguousarray(data[..., byte : byte + 8])
    word = window.view(">u8" if big else "<u8")[..., 0].astype(np.uint64)
    # to the top of the word and back down: drops the bits above, and extends the sign where there is one
    if bit + signal.length <= 64:
        word = word << np.uint64(bit if big else 64 - bit - signal.length)
    else:
        # a signal of an FD frame that touches nine bytes
        ninth = data[..., byte + 8].astype(np.uint64)
        if big:
            word = (word << np.uint64(bit)) | (ninth >> np.uint64(8 - bit))
        else:
            word = (word >> np.uint64(bit)) | (ninth << np.uint64(64 - bit))
            word = word << np.uint64(64 - signal.length)
    down = 64 - signal.length
    if signal.is_float:
        word = word >> np.uint64(down)
        return word.astype(np.uint32).view(np.float32) if signal.length == 32 else word.view(np.float64)
    if signal.signed:
        return word.view(np.int64) >> np.int64(down)
    return word >> np.uint64(down)


def decode(
    data: NDArray[np.uint8], lengths: NDArray[np.uint8], message: Message, signal: Signal
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Physical values of one signal, and where it is present; data [..., W], lengths [...] bytes, both to [...].

    Absent (value NaN): the frame is too short for the signal, or a multiplexer selects others.
    """
    present = lengths > signal.last_byte
    if signal.last_byte >= data.shape[-1]:
        return np.full(data.shape[:-1], np.nan), np.asarray(present)
    values = raw_values(data, signal).astype(np.float64) * signal.scale + signal.offset
    below = signal
    for _ in range(len(message.signals)):
        if not below.selector:
            break
        # a multiplexer may itself be multiplexed
        selector = message.signals[below.selector]
        if selector.last_byte >= data.shape[-1]:
            present = np.zeros_like(present)
            break
        chosen = np.isin(raw_values(data, selector), np.array(below.selected_by))
        present = present & (lengths > selector.last_byte) & chosen
        below = selector
    if not present.all():
        values[~present] = np.nan
    return values, present
