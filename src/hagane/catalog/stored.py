"""A data set that lies on disk, sealed or plain, to be read from; `hagane.catalog.store` says what is in it."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hagane.catalog.episode_io import read_episode
from hagane.catalog.manifest import NAME as MANIFEST
from hagane.catalog.manifest import changed, read_manifest
from hagane.catalog.shelf import Shelf
from hagane.catalog.sketch import unpack_sketches
from hagane.catalog.store import OURS, RECORD, UNLISTED, content_digest
from hagane.intake.lerobot_sketch import Sketch
from hagane.seal import SignedContract
from hagane.terms import CorruptError, Embodiment, Episode, StoreError, digest_bytes, parse_toml


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

    @property
    def contract_path(self) -> Path:
        """The owner's contract."""
        return self.folder / OURS / "contract.toml"

    def sketches(self) -> dict[str, Sketch]:
        """Mergeable statistics by channel."""
        path = f"{OURS}/stats.npz"
        return unpack_sketches(self.bytes(path), str(self.folder / path))

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


def refuse_sealed(stored: StoredSet) -> None:
    """Refuse to change a sealed data set here: its list vouches for all that lies open, the contract too.

    Raises:
        StoreError: it is sealed.
    """
    if stored.shelf.sealed:
        raise StoreError(
            "a sealed data set is renewed by who holds its keys",
            where=str(stored.folder),
            next_step="use hagane contract renew, outside of the jail (hagane.catalog.sealing.renew_set)",
        )
