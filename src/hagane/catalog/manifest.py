"""The manifest of a data set: the sha256 of every file, and of every episode's bytes inside the Parquet files.

A Parquet file holds one row group an episode, so the damage of a file can be told by episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hagane.catalog.shelf import PlainShelf, Shelf
from hagane.intake.lerobot_journal import replace_file, sync_tree
from hagane.terms import CorruptError, canonical_json, digest_bytes, digest_value

NAME = "manifest.json"
_EPISODES = ("data/", "hagane/streams/")
_NAMED = 5


def write_manifest(folder: Path, place: Path, unlisted: Sequence[str]) -> None:
    """Hash every file of a folder but the unlisted ones, and write the manifest last; all folders are synced."""
    files: dict[str, dict[str, Any]] = {}
    first = dict.fromkeys(_EPISODES, 0)
    shelf = PlainShelf(folder)
    for name in shelf.names():
        if name in unlisted:
            continue
        files[name] = {"sha256": shelf.sha256(name), "bytes": shelf.size(name)}
        for top in (t for t in _EPISODES if name.startswith(t) and name.endswith(".parquet")):
            groups = _groups(shelf, name)
            files[name] |= {"first_episode": first[top], "groups": groups}
            first[top] += len(groups)
    told = {"files": files}
    text = json.dumps({**told, "sha256": digest_value(told)}, sort_keys=True, ensure_ascii=False)
    replace_file(place, text.encode() + b"\n")
    sync_tree(folder)


def read_manifest(shelf: Shelf, place: str) -> dict[str, Any]:
    """Facts by file name.

    Raises:
        CorruptError: the manifest is missing or was changed.
    """
    try:
        told = json.loads(shelf.read(place))
        digest = told.pop("sha256")
        if digest_bytes(canonical_json(told)) != digest:
            raise ValueError
        files: dict[str, Any] = told["files"]
        return files
    except (OSError, CorruptError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise changed(shelf, place) from None


def changed(
    shelf: Shelf, name: str, told: Mapping[str, Any] | None = None, episodes: Sequence[str] = ()
) -> CorruptError:
    """The error of a file that differs from the manifest; names the episodes whose bytes differ where it can.

    Args:
        shelf: where the file lies.
        name: its name there.
        told: its facts.
        episodes: ids of all episodes of the set.
    """
    there = shelf.has(name)
    what = "the file differs from its recorded digest" if there else "the file is missing"
    if there and told and "groups" in told:
        bad = [told["first_episode"] + k for k, group in enumerate(told["groups"]) if _differs(shelf, name, group)]
        names = [repr(episodes[n]) if n < len(episodes) else f"number {n}" for n in bad[:_NAMED]]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        what += f": episode {', '.join(names)}{more}" if bad else ": in its footer, which belongs to all its episodes"
    where = str(shelf.folder / name)
    return CorruptError(what, where=where, next_step="restore the data set from a copy, or bring the logs in again")


def _groups(shelf: Shelf, name: str) -> list[list[Any]]:
    """[first byte, byte after the last, sha256] of each row group."""
    with shelf.open(name) as f:
        metadata = pq.read_metadata(f)
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
        out.append([first, end, digest_bytes(shelf.read(name, first, end))])
        first = end
    return out


def _differs(shelf: Shelf, name: str, group: Sequence[Any]) -> bool:
    first, end, digest = group
    try:
        return digest_bytes(shelf.read(name, first, end)) != str(digest)
    except (OSError, CorruptError):
        return True
