"""The manifest of a data set: the sha256 of every file, and of every episode's bytes inside the Parquet files.

A Parquet file holds one row group an episode, so the damage of a file can be told by episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hagane.intake.lerobot_journal import replace_file, sync_tree
from hagane.terms import CorruptError, canonical_json, digest_bytes, digest_file, digest_value

NAME = "manifest.json"
_EPISODES = ("data/", "hagane/streams/")
_NAMED = 5


def write_manifest(folder: Path, place: Path, unlisted: Sequence[str]) -> None:
    """Hash every file of a folder but the unlisted ones, and write the manifest last; all folders are synced."""
    files: dict[str, dict[str, Any]] = {}
    first = dict.fromkeys(_EPISODES, 0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in unlisted:
            continue
        files[name] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
        for top in (t for t in _EPISODES if name.startswith(t) and path.suffix == ".parquet"):
            groups = _groups(path)
            files[name] |= {"first_episode": first[top], "groups": groups}
            first[top] += len(groups)
    told = {"files": files}
    text = json.dumps({**told, "sha256": digest_value(told)}, sort_keys=True, ensure_ascii=False)
    replace_file(place, text.encode() + b"\n")
    sync_tree(folder)


def read_manifest(place: Path) -> dict[str, Any]:
    """Facts by file name.

    Raises:
        CorruptError: the manifest is missing or was changed.
    """
    try:
        told = json.loads(place.read_bytes())
        digest = told.pop("sha256")
        if digest_bytes(canonical_json(told)) != digest:
            raise ValueError
        files: dict[str, Any] = told["files"]
        return files
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise changed(place) from None


def changed(path: Path, told: Mapping[str, Any] | None = None, episodes: Sequence[str] = ()) -> CorruptError:
    """The error of a file that differs from the manifest; names the episodes whose bytes differ where it can.

    Args:
        path: the file.
        told: its facts.
        episodes: ids of all episodes of the set.
    """
    what = "the file differs from its recorded digest" if path.exists() else "the file is missing"
    if path.exists() and told and "groups" in told:
        bad = [told["first_episode"] + k for k, group in enumerate(told["groups"]) if _differs(path, group)]
        names = [repr(episodes[n]) if n < len(episodes) else f"number {n}" for n in bad[:_NAMED]]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        what += f": episode {', '.join(names)}{more}" if bad else ": in its footer, which belongs to all its episodes"
    return CorruptError(what, where=str(path), next_step="restore the data set from a copy, or bring the logs in again")


def _groups(path: Path) -> list[list[Any]]:
    """[first byte, byte after the last, sha256] of each row group."""
    metadata = pq.read_metadata(path)
    out: list[list[Any]] = []
    first = 4  # after the magic
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(k) for k in range(group.num_columns)]
        # pages lie end to end; a column chunk begins at its dictionary where it has one
        end = max(
            (min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) + c.total_compressed_size)
            for c in chunks
        )
        out.append([first, end, _digest_range(path, first, end)])
        first = end
    return out


def _differs(path: Path, group: Sequence[Any]) -> bool:
    first, end, digest = group
    return _digest_range(path, first, end) != str(digest)


def _digest_range(path: Path, first: int, end: int) -> str:
    with path.open("rb") as f:
        f.seek(first)
        return digest_bytes(f.read(end - first))
