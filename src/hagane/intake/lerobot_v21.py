"""LeRobot v2.0 and v2.1 sets: one Parquet file and one video a camera for each episode, JSON lines in `meta/`.

    meta/info.json            features, fps, counts, path templates ({episode_chunk:03d}, {episode_index:06d})
    meta/episodes.jsonl       {"episode_index": 0, "tasks": ["..."], "length": 120} a line
    meta/tasks.jsonl          {"task_index": 0, "task": "..."} a line

v2.1 differs from v2.0 in where it keeps statistics (meta/episodes_stats.jsonl instead of meta/stats.json); neither
is read. Source: lerobot 0.3, common/datasets/utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hagane.intake.files import read_bytes, refuse_outside
from hagane.intake.lerobot_layout import check_template
from hagane.intake.lerobot_open import About, Entry, OpenedSet, checked_set
from hagane.terms import LogError

VERSIONS = ("v2.0", "v2.1")
_PLACES = ("episode_chunk", "episode_index")


def open_v21(about: About) -> OpenedSet:
    """Episodes of a LeRobot v2.0 or v2.1 set.

    Raises:
        LogError: metadata that is damaged, that leads out of the folder, or that counts other rows than there are.
    """
    data = check_template(about.data_path, _PLACES, about.where)
    video = check_template(about.video_path, (*_PLACES, "video_key"), about.where)
    entries = []
    for where, row in _lines(about, "episodes.jsonl"):
        number, length = _whole(row, "episode_index", where), _whole(row, "length", where)
        at = {"episode_chunk": number // about.chunk_size, "episode_index": number}
        videos = {key: (about.root / video.format(video_key=key, **at), 0.0) for key in about.videos}
        entries.append(Entry(number, length, about.root / data.format(**at), videos))
    if not entries:
        raise LogError("the set has no episode", where=about.where, next_step="copy the set again from its source")
    tasks = {_whole(row, "task_index", where): str(row.get("task", "")) for where, row in _lines(about, "tasks.jsonl")}
    return checked_set(about, entries, tasks)


def _lines(about: About, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    path = about.root / "meta" / name
    refuse_outside(path, about.root)
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise LogError(f"is no JSON: {e}", where=where, next_step="the set is truncated: copy it again") from None
        if not isinstance(row, dict):
            raise LogError("is no JSON object", where=where, next_step="the set is damaged: copy it again")
        yield where, row


def _whole(row: dict[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise LogError(f"{key} is {value!r}, not a count", where=where, next_step="the set is damaged: copy it again")
    return value
