"""Random control steps of a data set, to look at: drawn over all steps, so long episodes are met more often."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import episodes_of
from hagane.intake.lerobot_grid import align, instruction
from hagane.intake.picture import encode_png
from hagane.terms import ConfigError, Embodiment, Reading, StoreError, digest_bytes
from hagane.terms.files import write_whole


@dataclass(frozen=True, eq=False)
class Sample:
    """One control step of one episode."""

    episode: str
    """Episode id."""
    step: int
    """Control step in the episode, from 0."""
    time_ns: int
    """Control time on the episode's clock."""
    task: str
    """Instruction in words."""
    readings: dict[str, Reading]
    """Observed channels by name: values [1, *shape], valid [1] or [1, n], age_s [1]."""
    commands: dict[str, Reading]
    """The same of the action channels."""


def sample_steps(catalog: Catalog, name: str, count: int, seed: int, purpose: str = "view") -> list[Sample]:
    """Draw control steps without repeats; the same seed draws the same ones. In order of the set.

    Raises:
        Refused: the contract does not permit it.
        ConfigError: count below 1; StoreError: no such data set; CorruptError: damaged.
    """
    if count < 1:
        raise ConfigError(f"cannot draw {count} samples", next_step="ask for at least 1")
    steps = [e.steps for e in episodes_of(catalog, name)]
    begins = np.concatenate([[0], np.cumsum(steps)])
    drawn = np.random.default_rng(seed).choice(int(begins[-1]), min(count, int(begins[-1])), replace=False)
    wanted: dict[int, list[int]] = defaultdict(list)
    for at in sorted(drawn.tolist()):
        number = int(np.searchsorted(begins, at, side="right")) - 1
        wanted[number].append(at - int(begins[number]))
    machine, out = catalog.embodiment(name), []
    for number, episode in zip(sorted(wanted), catalog.episodes(name, purpose, wanted), strict=True):
        grid, task = align(episode, machine), instruction(episode, machine)
        for step in wanted[number]:
            readings = {c: _row(r, step) for c, r in grid.observe.items()}
            commands = {c: _row(r, step) for c, r in grid.command.items()}
            out.append(Sample(episode.id, step, int(grid.times_ns[step]), task, readings, commands))
    return out


def write_samples(samples: Sequence[Sample], machine: Embodiment, path: Path) -> None:
    """Write samples as .parquet (pictures as PNG or JPEG bytes) or .jsonl (pictures as their digest).

    Raises:
        ConfigError: another suffix; StoreError: the file exists, or the disk refuses.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(
            f"cannot write samples as {path.suffix or 'a file without suffix'}",
            where=str(path),
            next_step="use .parquet or .jsonl",
        )
    if path.exists():
        raise StoreError("the file exists and is not overwritten", where=str(path), next_step="choose another --out")
    rows = [_flat(s, machine) for s in samples]
    if path.suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        data = buffer.getvalue()
    else:
        lines = (json.dumps({k: _plain(v) for k, v in row.items()}, ensure_ascii=False) for row in rows)
        data = "".join(f"{line}\n" for line in lines).encode()
    try:
        write_whole(path, [data])
    except OSError as e:
        raise StoreError(f"the samples cannot be written: {e.strerror}", where=str(path)) from None


def _row(reading: Reading, step: int) -> Reading:
    return Reading(reading.values[step : step + 1], reading.valid[step : step + 1], reading.age_s[step : step + 1])


def _flat(sample: Sample, machine: Embodiment) -> dict[str, Any]:
    """A sample as one record; values that are not valid are null."""
    row: dict[str, Any] = {
        "episode": sample.episode,
        "step": sample.step,
        "time_ns": sample.time_ns,
        "task": sample.task,
    }
    for channel in machine.channels():
        reading = sample.readings.get(channel.name) or sample.commands.get(channel.name)
        if reading is None:
            continue
        valid = bool(reading.valid.any())
        if channel.kind == "image":
            picture = reading.values[0]
            row[channel.name] = (picture if isinstance(picture, bytes) else encode_png(picture)) if valid else None
        else:
            row[channel.name] = reading.values[0].tolist() if valid else None
        flags = reading.valid[0].tolist()
        row[f"{channel.name}.valid"] = flags
        row[f"{channel.name}.age_s"] = float(reading.age_s[0])
    return row


def _plain(value: Any) -> Any:
    return f"picture, {len(value)} bytes, sha256:{digest_bytes(value)}" if isinstance(value, bytes) else value
