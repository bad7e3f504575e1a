"""One data set on disk, complete or absent, every file under a digest.

    sets/<name>/meta, data      LeRobot v3.0: rows on the control grid, for peers
    sets/<name>/hagane/
        embodiment.toml         the machine
        contract.toml(.sig)     the owner's terms, verified at every open
        streams/file-000.parquet  native-rate streams (int64 ns), one row group an episode
        episodes.json           facts and findings of each episode, and where its streams lie
        stats.npz               mergeable statistics
        record.json             what `ls` shows
        manifest.json           sha256 of every file but the contract's

Adding goes through `staging/<name>`: each episode is appended to a journal, then the set is written there and renamed
into place. A crash leaves the catalog as it was; the next `add` of the same episodes goes on from the journal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hagane.catalog.columns_write import ColumnsWriter
from hagane.catalog.convert import Entry, PrepareJob, prepare
from hagane.catalog.episode_io import SCHEMA
from hagane.catalog.manifest import NAME as MANIFEST
from hagane.catalog.manifest import write_manifest
from hagane.catalog.sketch import merge_all, pack_sketches
from hagane.catalog.workers import Mapper
from hagane.intake.lerobot_files import sync_and_close
from hagane.intake.lerobot_journal import disk_error, replace_file
from hagane.intake.lerobot_layout import FILE_BYTES
from hagane.intake.lerobot_rows import embodiment_features, facts_of, fps_of
from hagane.intake.lerobot_sketch import Sketch
from hagane.intake.lerobot_write import SetPart, grouped, write_set
from hagane.seal import SignedContract
from hagane.terms import (
    Embodiment,
    digest_value,
    dump_toml,
)

OURS = "hagane"
UNLISTED = ("contract.toml", "contract.toml.sig", MANIFEST)
"""Files of `hagane/` that the manifest does not list: signed on their own, or the manifest itself."""

RECORD = f"{OURS}/record.json"
"""What `ls` shows, in a data set."""

Progress = Callable[[str, int], None]
"""Called with what is being done and how many episodes of it are done."""


def content_digest(embodiment: Embodiment, episode_digests: Sequence[str]) -> str:
    """Digest of a data set: its machine and its episodes, in order, whatever the files look like."""
    return digest_value({"embodiment": dump_toml(embodiment), "episodes": list(episode_digests)})


def put_contract(folder: Path, signed: SignedContract) -> None:
    """Lay an owner's contract beside its data. Killed between the two files, the old text has the new signature: the
    contract does not verify, and the data stays closed until this is done again."""
    replace_file(folder / "contract.toml.sig", signed.signature)
    replace_file(folder / "contract.toml", signed.toml)


@dataclass(frozen=True)
class Target:
    """A data set that is being made."""

    work: Path
    """Folder of its own in `staging/`: the set is made in `set`, its training cache in `columns`."""
    name: str
    """Data set name."""
    embodiment: Embodiment
    """The machine."""
    signed: SignedContract
    """The owner's contract."""
    site: str
    """Name of the site where it is brought in."""


def write_stored(target: Target, entries: Sequence[Entry], mapper: Mapper, progress: Progress) -> str:
    """Write the set and its training cache out of packed episodes; returns the content digest.

    Raises:
        LogError: an episode whose streams do not fit the embodiment, a picture that cannot be read.
        StoreError: the disk refuses.
    """
    work, machine = target.work, target.embodiment
    folder = work / "set"
    shutil.rmtree(folder, ignore_errors=True)
    ours = folder / OURS
    digest = content_digest(machine, [e.content for e in entries])
    columns = ColumnsWriter(work / "columns", target.name, digest, machine)
    streams = _StreamFiles(ours / "streams")
    facts: list[dict[str, Any]] = []
    sketches: dict[str, Sketch] = {}

    def parts() -> Iterator[SetPart]:
        nonlocal sketches
        groups = grouped(entries, lambda e: e.bytes)
        jobs = (PrepareJob(tuple(e.place for e in group), machine) for group in groups)
        for done in mapper(prepare, jobs):
            for fact, table, rows in zip(done.facts, done.streams, done.rows, strict=True):
                facts.append({**fact, **streams.write(table)})
                columns.add(rows)
                progress("store", len(facts))
            sketches = merge_all([sketches, done.sketches])
            yield done.lerobot

    try:
        features = embodiment_features(machine)
        extra = {**facts_of(machine), "owner": machine.owner, "dataset": target.name}
        write_set(folder, features, fps_of(machine), parts(), robot_type=machine.name, extra=extra)
        streams.close()
        columns.close()
    except OSError as e:
        raise disk_error(e, work) from None
    progress("statistics", len(facts))
    replace_file(ours / "embodiment.toml", dump_toml(machine).encode())
    replace_file(ours / "episodes.json", as_json({"episodes": facts}))
    replace_file(ours / "stats.npz", pack_sketches(sketches))
    replace_file(ours / "record.json", as_json(_record(target, digest, facts)))
    put_contract(ours, target.signed)
    write_manifest(folder, ours / MANIFEST, [f"{OURS}/{n}" for n in UNLISTED])
    return digest


def _record(target: Target, digest: str, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `ls` shows of a set."""
    return {
        "name": target.name,
        "embodiment": target.embodiment.name,
        "domain": target.embodiment.domain,
        "owner": target.embodiment.owner,
        "site": target.site,
        "episodes": len(facts),
        "steps": sum(f["steps"] for f in facts),
        "seconds": sum(f["span_ns"][1] - f["span_ns"][0] for f in facts) / 1e9,
        "digest": digest,
        "findings": sum(len(f["findings"]) for f in facts),
    }


def as_json(value: Any) -> bytes:
    """A value as our own JSON files hold it."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


class _StreamFiles:
    """streams/file-*.parquet: one row group an episode, a new file when one is full."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.groups = folder, 0, 0
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def write(self, table: pa.Table) -> dict[str, int]:
        """Append an episode's streams; returns where they lie."""
        if self._writer is not None and self._file.tell() > FILE_BYTES:
            self.close()
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"file-{self.files:03d}.parquet").open("wb")
            self._writer = pq.ParquetWriter(
                self._file,
                SCHEMA,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=False,
            )
            self.files, self.groups = self.files + 1, 0
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self.groups += 1
        return {"file": self.files - 1, "group": self.groups - 1}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            sync_and_close(self._file)
            self._writer = None
