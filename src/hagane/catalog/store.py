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
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hagane.catalog.columns_write import ColumnsWriter
from hagane.catalog.convert import Entry, PrepareJob, prepare
from hagane.catalog.episode_io import SCHEMA, read_episode
from hagane.catalog.manifest import NAME as MANIFEST
from hagane.catalog.manifest import changed, read_manifest, write_manifest
from hagane.catalog.shelf import Shelf
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
    CorruptError,
    Embodiment,
    Episode,
    StoreError,
    digest_bytes,
    digest_value,
    dump_toml,
    parse_toml,
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
    replace_file(ours / "episodes.json", _json({"episodes": facts}))
    replace_file(ours / "stats.npz", pack_sketches(sketches))
    replace_file(ours / "record.json", _json(_record(target, digest, facts)))
    put_contract(ours, target.signed)
    write_manifest(folder, ours / MANIFEST, [f"{OURS}/{n}" for n in UNLISTED])
    return digest


def _record(target: Target, digest: str, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `ls` shows of a set."""
    return {
        "name": target.name,
        "embodiment": target.embodiment.name,
        "owner": target.embodiment.owner,
        "site": target.site,
        "episodes": len(facts),
        "steps": sum(f["steps"] for f in facts),
        "seconds": sum(f["span_ns"][1] - f["span_ns"][0] for f in facts) / 1e9,
        "digest": digest,
        "findings": sum(len(f["findings"]) for f in facts),
    }


class StoredSet:
    """A data set. Every byte is checked against the manifest when it is read.

    Args:
        shelf: its folder.

    Raises:
        CorruptError: the manifest is missing or was changed; of a sealed set: its record.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        # a sealed set's manifest needs a key, its record none
        self.record: dict[str, Any] = json.loads(shelf.read(RECORD) if shelf.sealed else self.bytes(RECORD))

    @property
    def folder(self) -> Path:
        """Of the set."""
        return self.shelf.folder

    @cached_property
    def _files(self) -> dict[str, Any]:
        files = read_manifest(self.shelf, f"{OURS}/{MANIFEST}")
        if digest_bytes(self.shelf.read(RECORD)) != files[RECORD]["sha256"]:
            raise changed(self.shelf, RECORD)
        return files

    def bytes(self, path: str) -> bytes:
        """Contents of a file of the set.

        Raises:
            CorruptError: it is missing or differs from its digest.
            StoreError: it is sealed, and nobody here has its key.
        """
        try:
            data = self.shelf.read(path)
        except (OSError, CorruptError):
            raise self._changed(path) from None
        if path not in self._files or digest_bytes(data) != self._files[path]["sha256"]:
            raise self._changed(path)
        return data

    def files(self) -> dict[str, Any]:
        """What the manifest says of every file, by path."""
        return self._files

    def embodiment(self) -> Embodiment:
        """The machine of this set."""
        text = self.bytes(f"{OURS}/embodiment.toml").decode()
        return parse_toml(text, Embodiment, where=str(self.folder / OURS / "embodiment.toml"))

    def facts(self) -> list[dict[str, Any]]:
        """Facts of each episode, in order."""
        facts: list[dict[str, Any]] = json.loads(self.bytes(f"{OURS}/episodes.json"))["episodes"]
        return facts

    def episodes(self, only: Container[int] | None = None) -> Iterator[Episode]:
        """Episodes as they were added: native rates, nothing aligned; all of them, or those of some numbers.

        Raises:
            CorruptError: bytes differ from their digest; raised before an episode of that file is given.
        """
        opened: tuple[int, Any] = (-1, None)
        for number, fact in enumerate(self.facts()):
            if only is not None and number not in only:
                continue
            path = f"{OURS}/streams/file-{fact['file']:03d}.parquet"
            if opened[0] != fact["file"]:
                opened = (fact["file"], pq.ParquetFile(pa.BufferReader(self.bytes(path))))
            yield read_episode(fact, opened[1].read_row_group(fact["group"]), str(self.folder / path))

    def verify(self) -> int:
        """Check every file; returns how many.

        Raises:
            CorruptError: a file is missing, differs from its digest, or is not listed; names it.
        """
        for path, told in self._files.items():
            if not self._whole(path, told):
                raise self._changed(path)
        unlisted = {f"{OURS}/{n}" for n in UNLISTED}
        stray = sorted(set(self.shelf.names()) - set(self._files) - unlisted)
        if stray:
            raise CorruptError("a file that the manifest does not list", where=str(self.folder / stray[0]))
        return len(self._files)

    def _whole(self, path: str, told: Mapping[str, Any]) -> bool:
        try:
            return self.shelf.has(path) and self.shelf.sha256(path) == told["sha256"]
        except CorruptError:
            return False

    def _changed(self, path: str) -> CorruptError:
        told = self._files.get(path)
        # only files of episodes ask for their names, so this ends
        ids = [str(f["id"]) for f in self.facts()] if told and "groups" in told else []
        return changed(self.shelf, path, told, ids)


def refuse_other(
    stored: StoredSet,
    embodiment: Embodiment,
    contents: Sequence[str],
    known: SignedContract | None,
    signed: SignedContract,
) -> None:
    """Refuse to bring in under the name of a data set what is not exactly that data set.

    Args:
        stored: the set that lies there.
        embodiment: machine of what comes.
        contents: episode digests of what comes.
        known: contract of the set that lies there.
        signed: contract of what comes.

    Raises:
        StoreError: other content, or another contract.
    """
    name, where = stored.folder.name, str(stored.folder)
    if content_digest(embodiment, contents) != stored.record["digest"]:
        raise StoreError(
            f"data set {name!r} exists with other content",
            where=where,
            next_step="choose a new name: a data set never changes once runs can have read it",
        )
    if known is None or known.digest != signed.digest:
        raise StoreError(
            f"data set {name!r} exists under another contract",
            where=where,
            next_step="renew its contract instead (Catalog.renew)",
        )


def _json(value: Any) -> bytes:
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
