"""What a LeRobot v3 folder says about itself against what lies in it: rows, episodes, frames of videos, rates.

Reading a set refuses most of these; the doctor tells all of them at once, each with its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hagane.catalog.record import DatasetRecord
from hagane.catalog.shelf import PlainShelf, Shelf
from hagane.catalog.symptoms import Symptom
from hagane.intake.files import refuse_outside
from hagane.intake.lerobot_layout import VERSION, check_template
from hagane.intake.lerobot_rows import fps_of
from hagane.terms import CorruptError, Embodiment, HaganeError

_SHOWN = 3
_INFO, _TASKS = "meta/info.json", "meta/tasks.parquet"
_NONSENSE = (
    HaganeError, OSError, pa.ArrowException, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip
"""What following a description that is damaged or makes no sense may raise."""


def count_set(root: Path | Shelf) -> list[Symptom]:
    """Symptoms of kind "metadata" of a LeRobot v3 folder; none for anything else."""
    shelf = PlainShelf(root) if isinstance(root, Path) else root
    try:
        info = json.loads(shelf.read(_INFO))
        if info["codebase_version"] != VERSION:
            return []
    except (OSError, CorruptError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return _followed(_differences(shelf, info))


def count_stored(shelf: Shelf, embodiment: Embodiment, record: DatasetRecord, steps_E: Sequence[int]) -> list[Symptom]:
    """Also against the catalog: its record, the streams (control steps that each episode has), and the machine's rate.

    Args:
        shelf: folder of the data set.
        embodiment: its machine.
        record: what the catalog says.
        steps_E: control steps of every episode, counted from its streams.
    """
    found = count_set(shelf) + _followed(_against_streams(shelf, embodiment, record, steps_E))
    return list(dict.fromkeys(found))


def _followed(differences: Iterator[tuple[int, str]]) -> list[Symptom]:
    """Symptoms of (how many, what); that a description is damaged or makes no sense is one, too."""
    found = []
    try:
        for count, text in differences:
            found.append(_symptom(count, text))
    except _NONSENSE as e:
        words = str(e).splitlines()[0] if str(e) else type(e).__name__
        found.append(_symptom(0, f"the set's own description cannot be followed: {words}"))
    return found


def _against_streams(
    shelf: Shelf, embodiment: Embodiment, record: DatasetRecord, steps_E: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """(how many, what) of everything in which the peers' view differs from record and streams."""
    info = json.loads(shelf.read(_INFO))
    rows = _episode_rows(shelf)
    pairs: list[tuple[str, object, str, object]] = [
        ("the record has {} episodes", record.episodes, "the streams {}", len(steps_E)),
        ("the record has {} steps", record.steps, "the streams {}", sum(steps_E)),
        ("info.json has {} episodes", info["total_episodes"], "the streams {}", len(steps_E)),
        ("info.json has {} frames", info["total_frames"], "the streams {} steps", sum(steps_E)),
        ("info.json says {} frames a second", info["fps"], "the machine {} (rounded)", fps_of(embodiment)),
    ]
    yield from ((0, f"{a.format(x)}, {b.format(y)}") for a, x, b, y in pairs if x != y)
    told = [int(r["length"]) for r in rows]
    wrong = [i for i, (a, b) in enumerate(zip(told, steps_E, strict=False)) if a != b]
    if wrong:
        each = ", ".join(f"{i}: {told[i]} rows, {steps_E[i]} steps" for i in wrong[:_SHOWN])
        yield len(wrong), f"{len(wrong)} episodes have other rows than streams ({each})"


def _symptom(count: int, text: str) -> Symptom:
    return Symptom("serious", "metadata", "*", 0, count, 0.0, "", 0, text)


def _differences(shelf: Shelf, info: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """(how many, what) of everything that does not agree."""
    rows = _episode_rows(shelf)
    lengths = np.array([int(r["length"]) for r in rows], np.int64)
    if len(rows) != info["total_episodes"]:
        yield (
            abs(len(rows) - info["total_episodes"]),
            (f"info.json says {info['total_episodes']} episodes, meta/episodes lists {len(rows)}"),
        )
    if lengths.sum() != info["total_frames"]:
        yield (
            abs(int(lengths.sum()) - info["total_frames"]),
            (f"info.json says {info['total_frames']} frames, lengths of episodes add up to {lengths.sum()}"),
        )
    ends = np.cumsum(lengths)
    if any(int(r.get("dataset_to_index", e)) != e for r, e in zip(rows, ends.tolist(), strict=True)):
        yield 1, "places of episodes (dataset_from_index, dataset_to_index) do not follow from their lengths"
    if shelf.has(_TASKS):
        with shelf.open(_TASKS) as f:
            tasks = pq.read_metadata(f).num_rows
        if tasks != info.get("total_tasks"):
            yield 1, f"info.json says {info.get('total_tasks')} tasks, tasks.parquet has {tasks}"
    yield from _data(shelf, info, rows)
    for key, feature in info["features"].items():
        if feature.get("dtype") == "video":
            yield from _videos(shelf, info, rows, key)


def _data(shelf: Shelf, info: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Rows of every data file against the episodes that should lie in it, and their times against fps."""
    template = check_template(info["data_path"], ("chunk_index", "file_index"), "info.json")
    files: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for r in rows:
        files.setdefault((int(r["data/chunk_index"]), int(r["data/file_index"])), []).append(r)
    for (chunk, file), listed in files.items():
        name = template.format(chunk_index=chunk, file_index=file)
        refuse_outside(shelf.folder / name, shelf.folder)
        if not shelf.has(name):
            yield len(listed), f"{name} is missing: {len(listed)} episodes"
            continue
        with shelf.open(name) as f:
            table = pq.read_table(f, columns=["episode_index", "frame_index", "timestamp"])
        episode, frame, stamp_s = (table.column(c).to_numpy() for c in table.column_names)
        held = dict(zip(*(a.tolist() for a in np.unique(episode, return_counts=True)), strict=True))
        told = {int(r["episode_index"]): int(r["length"]) for r in listed}
        wrong = sorted(e for e in held.keys() | told.keys() if held.get(e) != told.get(e))
        if wrong:
            each = ", ".join(f"episode {e}: {told.get(e, 0)} told, {held.get(e, 0)} there" for e in wrong[:_SHOWN])
            yield len(wrong), f"{name}: rows differ from meta/episodes ({each})"
        step_s = 1 / float(info["fps"])
        late = np.abs(stamp_s - frame * step_s) > 0.5 * step_s
        if late.any():
            at = int(late.argmax())
            text = f"frame {frame[at]} of episode {episode[at]} at {stamp_s[at]:.3f} s"
            text += f" does not fit {1 / step_s:g} a second"
            yield int(late.sum()), f"{name}: {text}, and {late.sum() - 1} more"


def _videos(shelf: Shelf, info: dict[str, Any], rows: list[dict[str, Any]], key: str) -> Iterator[tuple[int, str]]:
    """Frames of every video file against the episodes that should lie in it."""
    template = check_template(info["video_path"], ("chunk_index", "file_index", "video_key"), "info.json")
    files: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for r in rows:
        place = (int(r[f"videos/{key}/chunk_index"]), int(r[f"videos/{key}/file_index"]))
        files.setdefault(place, []).append(r)
    for (chunk, file), listed in files.items():
        name = template.format(video_key=key, chunk_index=chunk, file_index=file)
        refuse_outside(shelf.folder / name, shelf.folder)
        told = sum(int(r["length"]) for r in listed)
        there = _frames(shelf, name)
        if there != told:
            yield abs(there - told), f"{name} has {there} frames, its {len(listed)} episodes have {told}"


def _frames(shelf: Shelf, name: str) -> int:
    """Frames of a video, counted by its packets; 0 when it is missing or cannot be opened."""
    import av

    try:
        with shelf.open(name) as f, av.open(f) as container:
            return sum(1 for p in container.demux(video=0) if p.size)
    except (av.FFmpegError, OSError, CorruptError, IndexError):
        return 0


def _episode_rows(shelf: Shelf) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in (n for n in shelf.names() if fnmatch(n, "meta/episodes/*/*.parquet")):
        with shelf.open(path) as f:
            names = [n for n in pq.read_schema(f).names if not n.startswith("stats/")]
            rows += pq.read_table(f, columns=names).to_pylist()
    return sorted(rows, key=lambda r: int(r["episode_index"]))
