"""One record a control step: every number that a sample may need, side by side, with a crc32 of its own.

A record holds the step's time, each observed channel (values, age, flags; for pictures the number of the picture in
its episode), the commands, what the actuators did, and last the crc32 of all bytes before it. Records of an
episode depend on nothing outside it, so they can be made anywhere and laid end to end.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.flat import view_of
from hagane.intake.lerobot_grid import Grid
from hagane.intake.lerobot_rows import side_by_side
from hagane.terms import Channel, Embodiment, Reading

SEEN, COMMANDED = 1, 2
"""Flags of a control step: some channel has a valid value; every action channel has a usable command."""


@dataclass(frozen=True)
class RowLayout:
    """Where each field of a record lies."""

    embodiment: Embodiment
    """The machine."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The record as a packed structured type; crc32 last, size a multiple of 8 bytes."""
        wide: list[tuple[str, str, tuple[int, ...]]] = [("time_ns", "<i8", ())]
        flags: list[tuple[str, str, tuple[int, ...]]] = []
        for i, c in enumerate(self.seen):
            if c.kind == "image":
                wide.append((f"see{i}", "<i8", ()))
        for i, c in enumerate(self.seen):
            if c.kind != "image":
                wide.append((f"see{i}", "<f4", c.shape))
            wide.append((f"see{i}.age_s", "<f4", ()))
            flags.append((f"see{i}.valid", "?", (c.places,) if c.kind == "set" else ()))
        wide.append(("commands", "<f4", (self.embodiment.action_width,)))
        for i, c in enumerate(self.embodiment.act):
            wide.append((f"did{i}", "<f4", c.shape))
            flags.append((f"did{i}.valid", "?", ()))
        flags.append(("command_valid", "?", ()))
        fields = wide + flags
        sizes = [np.dtype((kind, shape)).itemsize for _, kind, shape in fields]
        offsets = np.cumsum([0, *sizes]).tolist()
        end = -(-(offsets[-1] + 4) // 8) * 8
        return np.dtype(
            {
                "names": [*(n for n, _, _ in fields), "crc32"],
                "formats": [*((k, s) for _, k, s in fields), "<u4"],
                "offsets": [*offsets[:-1], end - 4],
                "itemsize": end,
            }
        )

    @property
    def seen(self) -> list[Channel]:
        """Observed channels that a record holds: all but text."""
        return [c for c in self.embodiment.observe if c.kind != "text"]

    def readings(self, records: NDArray[Any]) -> dict[str, Reading]:
        """Views of the observed channels; pictures are [T] numbers within the episode."""
        return {
            c.name: Reading(records[f"see{i}"], records[f"see{i}.valid"], records[f"see{i}.age_s"])
            for i, c in enumerate(self.seen)
        }

    def applied(self, records: NDArray[Any]) -> dict[str, Reading]:
        """Views of what the actuators did, by action channel."""
        fresh = np.broadcast_to(np.float32(0), (len(records),))
        return {
            c.name: Reading(records[f"did{i}"], records[f"did{i}.valid"], fresh)
            for i, c in enumerate(self.embodiment.act)
        }


def pack_rows(grid: Grid, layout: RowLayout, pictures: Mapping[str, NDArray[np.int64]]) -> NDArray[Any]:
    """[K] records of an aligned episode.

    Args:
        grid: the episode on the control grid.
        layout: of its machine.
        pictures: [K] number of the picture of each step, by image channel.
    """
    # zeros, so that padding has a known value: the crc covers it
    records = np.zeros(len(grid), layout.dtype)
    records["time_ns"] = grid.times_ns
    for i, c in enumerate(layout.seen):
        reading = grid.observe[c.name]
        records[f"see{i}"] = pictures[c.name] if c.kind == "image" else reading.values
        records[f"see{i}.valid"], records[f"see{i}.age_s"] = reading.valid, reading.age_s
    act = layout.embodiment.act
    records["commands"] = side_by_side(grid.command, layout.embodiment)
    records["command_valid"] = np.all([grid.command[c.name].valid for c in act], axis=0)
    for i, c in enumerate(act):
        records[f"did{i}"], records[f"did{i}.valid"] = grid.applied[c.name].values, grid.applied[c.name].valid
    records["crc32"] = crc_of_rows(records)
    return records


def crc_of_rows(records: NDArray[Any]) -> NDArray[np.uint32]:
    """[K] crc32 of each record's bytes before its own crc field."""
    size = records.dtype.itemsize
    data, crc32 = view_of(np.ascontiguousarray(records)), zlib.crc32
    return np.array([crc32(data[at : at + size - 4]) for at in range(0, len(data), size)], np.uint32)


def step_flags(records: NDArray[Any], layout: RowLayout) -> NDArray[np.uint8]:
    """[K] `SEEN` and `COMMANDED` of each control step."""
    seen = np.zeros(len(records), np.bool_)
    for i in range(len(layout.seen)):
        seen |= records[f"see{i}.valid"].reshape(len(records), -1).any(1)
    flags: NDArray[np.uint8] = (seen * SEEN + records["command_valid"] * COMMANDED).astype(np.uint8)
    return flags


def last_command(records: NDArray[Any]) -> NDArray[np.float32]:
    """[A] last usable command of an episode, zeros without one: pads chunks that reach past its end."""
    usable = np.flatnonzero(records["command_valid"])
    row = records["commands"][usable[-1]] if len(usable) else np.zeros(records["commands"].shape[1:])
    return np.asarray(row, np.float32)
