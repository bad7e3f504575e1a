"""What a stored set says of itself without its streams: episodes, files, site, sketches. Read anew, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hagane.catalog.catalog import Catalog
from hagane.catalog.sketch import unpack_sketches
from hagane.catalog.store import OURS, StoredSet
from hagane.intake.lerobot_sketch import Sketch


@dataclass(frozen=True)
class EpisodeFacts:
    """One line about an episode."""

    number: int
    """Place in its set, from 0."""
    id: str
    """Unique in its set."""
    content: str
    """Digest of all that the episode says."""
    source: str
    """Digest of the bytes it was read from; several episodes of one log share it."""
    task: str
    """Instruction in words."""
    outcome: str
    """success, failure or "" when unknown."""
    steps: int
    """Control steps."""
    seconds: float
    """From the first to the last sample."""
    findings: tuple[str, ...]
    """Kinds of the findings."""


@dataclass(frozen=True)
class FileFacts:
    """One file of a set."""

    path: str
    """Relative to the set's folder, with forward slashes."""
    sha256: str
    """As the manifest has it."""
    size: int
    """Bytes."""


def folder_of(catalog: Catalog, name: str) -> Path:
    """Folder of a data set.

    Raises:
        StoreError: there is none; CorruptError: its record is damaged.
    """
    catalog.record(name)
    return catalog.root / "sets" / name


def episodes_of(catalog: Catalog, name: str) -> tuple[EpisodeFacts, ...]:
    """Facts of every episode, in order. Nothing of the data is read.

    Raises:
        StoreError: as `folder_of`.
    """
    facts = StoredSet(folder_of(catalog, name)).facts()
    return tuple(
        EpisodeFacts(
            number,
            f["id"],
            f["content"],
            f["digest"],
            f["task"],
            f["outcome"],
            f["steps"],
            (f["span_ns"][1] - f["span_ns"][0]) / 1e9,
            tuple(x["kind"] for x in f["findings"]),
        )
        for number, f in enumerate(facts)
    )


def files_of(catalog: Catalog, name: str) -> tuple[FileFacts, ...]:
    """Every file that the manifest lists, by path.

    Raises:
        StoreError: as `folder_of`.
    """
    folder = folder_of(catalog, name)
    StoredSet(folder)  # checks the manifest against its own digest
    listed = json.loads((folder / OURS / "manifest.json").read_bytes())["files"]
    return tuple(FileFacts(path, f["sha256"], f["bytes"]) for path, f in sorted(listed.items()))


def site_of(catalog: Catalog, name: str) -> str:
    """Name of the site where a data set was brought in; "" where its record does not say.

    Raises:
        StoreError: as `folder_of`.
    """
    return str(StoredSet(folder_of(catalog, name)).record.get("site", ""))


def sketches_of(catalog: Catalog, name: str, purpose: str) -> dict[str, Sketch]:
    """Mergeable statistics by channel.

    Raises:
        Refused: the contract does not permit it; CorruptError: stored bytes differ from their digest.
    """
    catalog.stats(name, purpose)  # asks the contract
    path = f"{OURS}/stats.npz"
    stored = StoredSet(folder_of(catalog, name))
    return unpack_sketches(stored.bytes(path), str(stored.folder / path))


def disk_bytes(folder: Path) -> int:
    """Bytes of all files under a folder; 0 when it is absent."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
