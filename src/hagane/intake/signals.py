"""DBC signals, and their values out of CAN payloads: whole columns at once.

Bit numbering as in DBC files: bit 0 is the least significant of byte 0; a big-endian (Motorola) signal starts at
its most significant bit. Compared with cantools frame by frame in the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.frames import EXTENDED
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


def load_dbc(path: Path) -> dict[str, Message]:
    """Messages of a DBC file by name.

    Raises:
        LogError: missing file, no DBC, two messages of one name, or cantools is not installed.
    """
    try:
        import cantools
    except ImportError:
        raise LogError(
            "reading CAN definitions needs cantools", where=str(path), next_step='pip install "hagane[intake]"'
        ) from None
    # cantools warns of overlapping signals through logging; strict=False reads such files, as members have them
    logging.getLogger("cantools").setLevel(logging.ERROR)
    try:
        text = _text(path.read_bytes())
        database: Any = cantools.database.load_string(text, database_format="dbc", strict=False)
    except FileNotFoundError:
        raise LogError("no such DBC file", where=str(path), next_step="check --dbc") from None
    except Exception as e:
        # cantools raises many kinds for a damaged file; the message names the line
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise LogError(f"cannot be read as DBC: {first}", where=str(path), next_step="check --dbc") from None
    messages: dict[str, Message] = {}
    for m in database.messages:
        ident = int(m.frame_id) | (EXTENDED if m.is_extended_frame else 0)
        messages[m.name] = Message(m.name, ident, {s.name: _signal(s) for s in m.signals})
    if not messages:
        raise LogError("the DBC file defines no message", where=str(path), next_step="check --dbc")
    return messages


def _signal(s: Any) -> Signal:
    return Signal(
        name=s.name,
        start=int(s.start),
        length=int(s.length),
        big_endian=s.byte_order == "big_endian",
        signed=bool(s.is_signed),
        is_float=bool(s.conversion.is_float),
        scale=float(s.scale),
        offset=float(s.offset),
        unit=s.unit or "",
        selector=s.multiplexer_signal or "",
        selected_by=tuple(int(v) for v in s.multiplexer_ids or ()),
        choices={int(k): str(v) for k, v in (s.choices or {}).items()},
    )


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
    """Raw integers (int64 or uint64) or floats of a signal; data [..., 8] to [...]."""
    data = np.ascontiguousarray(data)
    if signal.big_endian:
        word = data.view(">u8")[..., 0].astype(np.uint64)
        top = signal.start // 8 * 8 + 7 - signal.start % 8
        shift = 64 - top - signal.length
    else:
        word = data.view("<u8")[..., 0].astype(np.uint64)
        shift = signal.start
    # to the top of the word and back down: drops the bits above, and extends the sign where there is one
    word = word << np.uint64(64 - shift - signal.length)
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
    """Physical values of one signal, and where it is present; data [..., 8], lengths [...] bytes, both to [...].

    Absent (value NaN): the frame is too short for the signal, or the multiplexer selects others.

    Raises:
        LogError: the signal lies beyond 8 bytes (CAN FD), or its multiplexer is itself multiplexed.
    """
    where = f"{message.name}.{signal.name}"
    if signal.last_byte > 7:
        raise LogError("the signal lies beyond 8 bytes", where=where, next_step="CAN FD is not read yet")
    values = raw_values(data, signal).astype(np.float64) * signal.scale + signal.offset
    present = lengths > signal.last_byte
    if signal.selector:
        selector = message.signals[signal.selector]
        if selector.selector:
            raise LogError("the signal is multiplexed twice", where=where, next_step="not read yet")
        present = present & np.isin(raw_values(data, selector), np.array(signal.selected_by))
    if not present.all():
        values[~present] = np.nan
    return values, present


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # what most DBC editors write
        return data.decode("cp1252", "replace")
