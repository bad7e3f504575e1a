"""Episodes out as a CAN log and its DBC: what a member's car would have recorded.

Every column becomes a 16-bit little-endian signal, four a message; what does not fit goes to MESSAGE_B,
MESSAGE_C, ... `low`..`high` (of the data, where a channel gives none) is coded in 50,000 steps, with 15% of room on
either side; beyond that a signal saturates, as real ones do. Observed messages leave in the moments before their
control time, commands (and ACTUATOR, the actions as applied) from that time on. An invalid sample or an absent
place of a set sends no frame. TRIP frames mark each drive (see `hagane.intake.can`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.can import TRIP
from hagane.intake.can_streams import can_names, vector_sources
from hagane.intake.candump import format_candump
from hagane.intake.files import write_atomic
from hagane.intake.frames import Frames
from hagane.intake.signals import Message, Signal
from hagane.intake.sources import set_sources, units_of
from hagane.terms import APPLIED, Channel, ConfigError, Embodiment, Episode, Stream

_FRAME_NS = 130_000  # one frame of 8 bytes on a bus of 1 Mbit/s
_TRIP_ID, _FIRST_ID = 0x0F0, 0x100
_STEPS, _MARGIN = 50_000, 7_767  # raw steps from low to high, and on either side of them
_OUTCOMES = ("unknown", "success", "failure")
_START_NS = 1_767_571_200_000_000_000  # 2026-01-05 00:00 UTC
_BETWEEN_NS = 30_000_000_000


@dataclass(frozen=True)
class Slot:
    """Where one message takes its columns from: a stream, a place of it (sets), and the stream's columns."""

    message: Message
    stream: str
    place: int
    columns: tuple[int, ...]
    when: int
    """Order in the cycle: negative before the control time, 0 and more after it."""


def encode_can(
    episodes: Iterable[Episode],
    embodiment: Embodiment,
    folder: Path,
    *,
    name: str = "drives",
    start_ns: int = _START_NS,
) -> tuple[Path, Path]:
    """Write `<name>.log` (candump text) and `<name>.dbc`; gives both paths.

    Raises:
        ConfigError: an image channel, sources that are no MESSAGE.SIGNAL, or more messages than 11-bit ids.
        LogError: a file cannot be written.
    """
    drives = list(episodes)
    slots = layout(embodiment, drives)
    tasks = sorted({e.task for e in drives})
    trip = _trip_message()
    parts: list[Frames] = []
    at_ns = start_ns
    for number, episode in enumerate(drives):
        parts.append(_drive(episode, embodiment, slots, number, tasks.index(episode.task), at_ns))
        at_ns = int(parts[-1].times_ns[-1]) // 1_000_000_000 * 1_000_000_000 + _BETWEEN_NS
    names = [trip, *{s.message.name: s.message for s in slots}.values()]
    log, dbc = folder / f"{name}.log", folder / f"{name}.dbc"
    write_atomic(dbc, [dbc_text(names, {"OUTCOME": _OUTCOMES, "TASK": tasks}).encode("utf-8")])
    write_atomic(log, (format_candump(p) for p in parts))
    return log, dbc


def layout(embodiment: Embodiment, episodes: Sequence[Episode]) -> list[Slot]:
    """The messages of an embodiment, in the order of a cycle."""
    observed = [c for c in embodiment.observe if c.kind != "text"]
    slots: list[Slot] = []
    idents = iter(range(_FIRST_ID, 0x800))
    used: set[str] = {TRIP}
    for channel, applied in [
        *((c, False) for c in (*observed, *embodiment.act)),
        *((c, True) for c in embodiment.act if any(c.name + APPLIED in e.streams for e in episodes)),
    ]:
        if channel.kind == "image":
            raise ConfigError(
                "images do not go over CAN", where=f"channel {channel.name!r}", next_step="take the channel out"
            )
        rows = set_sources(can_names(channel)) if channel.kind == "set" else (vector_sources(channel, applied=applied),)
        stream = channel.name + (APPLIED if applied else "")
        coding = _coding(channel, stream, episodes)
        units = units_of(channel)
        for place, sources in enumerate(rows):
            for message_name, columns in _messages(channel, sources, used):
                ident = next(idents, None)
                if ident is None:
                    raise ConfigError(
                        "more messages than 11-bit ids",
                        where=f"embodiment {embodiment.name!r}",
                        next_step="split the embodiment",
                    )
                signals = [
                    Signal(
                        sources[k].partition(".")[2],
                        16 * at,
                        16,
                        scale=coding[k][0],
                        offset=coding[k][1],
                        unit=units[k],
                    )
                    for at, k in enumerate(columns)
                ]
                message = Message(message_name, ident, {s.name: s for s in signals})
                slots.append(Slot(message, stream, place, columns, 0))
    before = sum(s.stream in {c.name for c in observed} for s in slots)
    return [Slot(s.message, s.stream, s.place, s.columns, k - before) for k, s in enumerate(slots)]


def _messages(channel: Channel, sources: Sequence[str], used: set[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Split one row of sources into messages of at most four columns."""
    by_name: dict[str, list[int]] = {}
    for k, source in enumerate(sources):
        if not re.fullmatch(r"[A-Za-z_]\w{0,30}\.[A-Za-z_]\w{0,31}", source):
            raise ConfigError(
                f"source {source!r} is no MESSAGE.SIGNAL",
                where=f"channel {channel.name!r}",
                next_step='write as in "SPEED.VALUE"',
            )
        by_name.setdefault(source.partition(".")[0], []).append(k)
    found = []
    for name, columns in by_name.items():
        for part in range(math.ceil(len(columns) / 4)):
            full = name + (f"_{chr(ord('A') + part)}" if part else "")
            if full in used:
                raise ConfigError(
                    f"message {full!r} is used by two channels",
                    where=f"channel {channel.name!r}",
                    next_step="give each channel messages of its own",
                )
            used.add(full)
            found.append((full, tuple(columns[4 * part : 4 * part + 4])))
    return found


def _coding(channel: Channel, stream: str, episodes: Sequence[Episode]) -> list[tuple[float, float]]:
    """Scale and offset of each column."""
    low, high = (np.array(v * channel.columns if len(v) == 1 else v, float) for v in (channel.low, channel.high))
    if not len(low) or not len(high):
        seen = [_rows(e.streams[stream], channel) for e in episodes if stream in e.streams]
        values = np.concatenate(seen) if seen else np.zeros((0, channel.columns))
        values = values[np.isfinite(values).all(1)]
        least = values.min(0) if len(values) else np.zeros(channel.columns)
        most = values.max(0) if len(values) else np.ones(channel.columns)
        low = low if len(low) else np.minimum(least, most - 1e-6)
        high = high if len(high) else np.maximum(most, low + 1e-6)
    # low and high lie exactly on the grid, so a value at its bound does not come back beyond it
    scale = (high - low) / _STEPS
    return list(zip(scale.tolist(), (low - _MARGIN * scale).tolist(), strict=True))


def _rows(stream: Stream, channel: Channel) -> NDArray[np.float64]:
    return np.asarray(stream.values, np.float64)[stream.valid].reshape(-1, channel.columns)


def _trip_message() -> Message:
    names = ("DRIVE", "STATE", "OUTCOME", "TASK")
    return Message(TRIP, _TRIP_ID, {n: Signal(n, 16 * k, 16) for k, n in enumerate(names)})


def _drive(episode: Episode, embodiment: Embodiment, slots: list[Slot], number: int, task: int, at_ns: int) -> Frames:
    """Frames of one drive in time order, between its TRIP frames."""
    spacing_ns = min(_FRAME_NS, round(0.45e9 / embodiment.rate_hz / max(len(slots), 1)))
    start_ns, _ = episode.span_ns
    shift_ns = at_ns + 1_000_000_000 - start_ns
    times, ids, data = [], [], []
    for slot in slots:
        stream = episode.streams.get(slot.stream)
        if stream is None or not len(stream):
            continue
        values = np.asarray(stream.values, np.float64)
        is_set = values.ndim == 3
        values = (values[:, slot.place] if is_set else values)[:, slot.columns]
        sent = (stream.valid[:, slot.place] if is_set else stream.valid) & np.isfinite(values).all(1)
        words = np.zeros((int(sent.sum()), 4), "<u2")
        for k, signal in enumerate(slot.message.signals.values()):
            raw = np.rint((values[sent, k] - signal.offset) / signal.scale)
            words[:, k] = np.clip(raw, 0, 65535)
        times.append(stream.times_ns[sent] + shift_ns + slot.when * spacing_ns)
        ids.append(np.full(len(words), slot.message.id, np.uint32))
        data.append(words.view(np.uint8))
    ends = [(1, at_ns), (2, max((int(t.max()) for t in times if len(t)), default=at_ns) + 1_000_000)]
    outcome = _OUTCOMES.index(episode.outcome) if episode.outcome in _OUTCOMES else 0
    for state, t in ends:
        times.append(np.array([t], np.int64))
        ids.append(np.array([_TRIP_ID], np.uint32))
        words = np.array([[number % 65536, state, outcome if state == 2 else 0, task]], "<u2")
        data.append(words.view(np.uint8))
    all_ns = np.concatenate(times)
    order = np.argsort(all_ns, kind="stable")
    n = len(order)
    return Frames(
        all_ns[order],
        np.concatenate(ids)[order],
        np.concatenate(data)[order],
        np.full(n, 8, np.uint8),
        np.zeros(n, np.uint8),
    )


def dbc_text(messages: Iterable[Message], trip_names: dict[str, Sequence[str]]) -> str:
    """DBC text of messages of 8 bytes; `trip_names` are the value tables of TRIP's signals."""
    lines = ['VERSION ""', "", "NS_ :", "", "BS_:", "", "BU_: CAR", ""]
    for m in messages:
        lines.append(f"BO_ {m.id} {m.name}: 8 CAR")
        for s in m.signals.values():
            low, high = s.offset, s.offset + 65535 * s.scale
            unit = s.unit.replace('"', "") if s.unit != "1" else ""
            coding = f"{s.start}|{s.length}@1+ ({s.scale!r},{s.offset!r}) [{low!r}|{high!r}]"
            lines.append(f' SG_ {s.name} : {coding} "{unit}" Vector__XXX')
        lines.append("")
    for signal, names in trip_names.items():
        entries = " ".join(f'{k} "{_plain(name)}"' for k, name in enumerate(names))
        lines.append(f"VAL_ {_TRIP_ID} {signal} {entries} ;")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace('"', "'").replace("\\", "/").replace("\n", " ")
