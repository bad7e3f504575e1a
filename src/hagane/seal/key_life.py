"""The life of a wrapping key after its birth: rotation, and destruction on purpose.

Every step is whole or not there, and a step that was cut short is taken again by the same call: a kill between any two
loses nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hagane.seal.entry import Entry
from hagane.seal.folder import SealedFolder, check_proof_of, open_folder, vouched_for
from hagane.seal.key_file import KeyFile, Place, Tombstone, WrappingKey
from hagane.seal.keyring import Keyring, Wrapped
from hagane.seal.sealed_list import SealedEntry, write_list
from hagane.terms import Refused, StoreError
from hagane.terms.files import alone, sync_folder

ALWAYS_OUT_OF_REACH = (
    "copies of the folder of keys (backups, snapshots, another site): destroy them too, or the data can be read again",
    "keys that a process running now was given: they end with that process",
    "what a journal or a flash disk keeps of bytes that were overwritten",
    "plaintext outside the sealed folders: the owner's own files, and copies that a person made",
)


@dataclass(frozen=True)
class Rotated:
    """What a rotation did."""

    generation: int
    """The newest generation."""
    folders: tuple[Path, ...]
    """Sealed folders whose keys are under it now."""
    missing: tuple[Place, ...]
    """Folders that need the key and were not found."""
    destroyed: tuple[int, ...]
    """Generations that are no more; none while folders are missing."""


@dataclass(frozen=True)
class Erased:
    """What an erasure did, and what it could not do."""

    name: str
    """Data set or run."""
    generations: tuple[int, ...]
    """Generations of the key that were destroyed."""
    places: tuple[Place, ...]
    """Sealed folders that nobody can read any more; their files may be deleted."""
    entry: int
    """Place in the ledger."""


def rotate(keyring: Keyring, owner: str, name: str, folders: Sequence[Path] = (), *, gone: bool = False) -> Rotated:
    """Wrap all keys of a data set or run anew and destroy the old wrapping key; no data file is touched.

    Args:
        keyring: holds the key.
        owner: whose.
        name: data set or run.
        folders: sealed folders that were moved since they were made; the others are found by themselves.
        gone: go on although folders are missing, which then can never be read again.

    Raises:
        Refused: there is no such key, or it was erased.
        CorruptError: a list of a folder is not the one that was sealed; its keys are as they were.
        StoreError: the disk refuses.
    """
    with alone(keyring.folder / ".rotate", private=True):
        if not keyring.generations(owner, name):
            raise Refused(f"there is no key for {name!r} of {owner!r}", where=str(keyring.path_of(owner)))
        keyring.change(owner, lambda file: _with_next(file, name))
        newest = keyring.generations(owner, name)[-1]
        done: dict[str, Path] = {}
        for folder in _found(keyring.file_of(owner), name, owner, folders):
            _rewrap(folder, keyring, newest)
            done[folder.listed.id] = folder.path
        destroyed: list[int] = []

        def finish(file: KeyFile) -> KeyFile:
            # judged under the lock: a folder that is being sealed now is enrolled already
            file = replace(file, places=tuple(_moved(p, done) for p in file.places))
            if _missing(file, name, done) and not gone:
                return file
            old = [k for k in file.keys if k.name == name and k.generation < newest]
            destroyed.extend(k.generation for k in old)
            lost = _missing(file, name, done)
            keys, places = (k for k in file.keys if k not in old), (p for p in file.places if p not in lost)
            return replace(file, keys=tuple(keys), places=tuple(places))

        before = keyring.file_of(owner)
        after = keyring.change(owner, finish)
        missing = _missing(before if gone else after, name, done)
        return Rotated(newest, tuple(done.values()), missing, tuple(destroyed))


def erase(keyring: Keyring, owner: str, name: str, record: Callable[[str, Mapping[str, Any]], int]) -> Erased:
    """Destroy a wrapping key: no file sealed under it can ever be read again, wherever copies of it lie.

    Args:
        keyring: holds the key.
        owner: whose.
        name: data set or run.
        record: `Ledger.append`; gets kind "erase" once the key is gone. After a kill in between, call again.

    Raises:
        Refused: there is no such key, or its erasure is recorded already.
        StoreError: the disk refuses.
    """
    file = keyring.file_of(owner)
    generations = keyring.generations(owner, name)
    stone = next((t for t in file.erased if t.name == name), None)
    if stone is None and not generations:
        raise Refused(f"there is no key for {name!r} of {owner!r}", where=str(keyring.path_of(owner)))
    if stone is not None and stone.recorded:
        day = datetime.fromtimestamp(stone.time_ns / 1e9, UTC).date()
        raise Refused(f"the key of {name!r} was erased on {day} already", where=str(keyring.path_of(owner)))
    destroyed = keyring.change(owner, lambda f: _without(f, name, time.time_ns(), recorded=False))
    places = tuple(p for p in destroyed.places if p.name == name)
    folders = [{"id": p.folder_id, "path": p.path} for p in places]
    entry = record("erase", {"dataset": name, "owner": owner, "generations": list(generations), "folders": folders})
    keyring.change(owner, lambda f: _without(f, name, time.time_ns(), recorded=True))
    return Erased(name, generations, places, entry)


def out_of_reach(name: str, entries: Iterable[Entry]) -> Iterator[str]:
    """In words, a line each: copies and descendants of a data set that erasing its key does not reach.

    Args:
        name: data set.
        entries: of the ledger; exports and checkpoints are found in it.
    """
    for entry in entries:
        body, at = entry.body, f"ledger entry {entry.index}"
        datasets = body.get("datasets")
        if entry.kind == "export" and body.get("dataset") == name:
            yield f"an export to {body.get('to', 'a place that is not named')} ({at})"
        elif entry.kind in ("checkpoint", "bundle", "run") and isinstance(datasets, dict | list) and name in datasets:
            what = body.get("checkpoint") or body.get("bundle") or body.get("run")
            yield f"a {entry.kind} trained on it: {str(what)[:16]} ({at}); weights may remember what they saw"
    yield from ALWAYS_OUT_OF_REACH


def _with_next(file: KeyFile, name: str) -> KeyFile:
    """A new generation, unless an interrupted rotation left one."""
    living = [k.generation for k in file.keys if k.name == name]
    if len(living) != 1:
        return file
    key = WrappingKey(name, living[0] + 1, os.urandom(32), time.time_ns())
    return replace(file, keys=(*file.keys, key))


def _found(file: KeyFile, name: str, owner: str, folders: Sequence[Path]) -> Iterator[SealedFolder]:
    """The sealed folders of a key: those named, then those that still lie where they were made."""
    seen = set()
    for path in folders:
        folder = open_folder(path)
        if (folder.name, folder.listed.owner) != (name, owner):
            raise StoreError(f"this folder is sealed for {folder.name!r}, not {name!r}", where=str(path))
        seen.add(folder.listed.id)
        yield folder
    for place in file.places:
        if place.name != name or place.folder_id in seen or not (Path(place.path) / "sealed.json").exists():
            continue
        folder = open_folder(Path(place.path))
        if folder.listed.id == place.folder_id:
            yield folder


def _rewrap(folder: SealedFolder, keyring: Keyring, newest: int) -> None:
    """Put the keys of a folder's files under the newest generation."""
    check_proof_of(folder, keyring)
    listed = folder.listed
    if all(e.generation == newest for e in listed.files.values()) and listed.generation == newest:
        return

    def again(entry: SealedEntry) -> SealedEntry:
        old = Wrapped(entry.generation, entry.wrapped)
        key = keyring.unwrap(listed.owner, listed.name, old, entry.shard, listed.contract)
        new = keyring.wrap(listed.owner, listed.name, key, entry.shard, listed.contract)
        return replace(entry, generation=new.generation, wrapped=new.data)

    files = {path: again(entry) for path, entry in listed.files.items()}
    try:
        write_list(folder.path, vouched_for(replace(listed, files=files), keyring))
        sync_folder(folder.path)
    except OSError as e:
        raise StoreError(f"cannot be written: {e.strerror}", where=str(folder.path)) from None


def _missing(file: KeyFile, name: str, done: Mapping[str, Path]) -> tuple[Place, ...]:
    return tuple(p for p in file.places if p.name == name and p.folder_id not in done)


def _moved(place: Place, done: Mapping[str, Path]) -> Place:
    return replace(place, path=str(done[place.folder_id].absolute())) if place.folder_id in done else place


def _without(file: KeyFile, name: str, now_ns: int, *, recorded: bool) -> KeyFile:
    stone = next((t for t in file.erased if t.name == name), Tombstone(name, now_ns, False))
    others = tuple(t for t in file.erased if t.name != name)
    keys = tuple(k for k in file.keys if k.name != name)
    places = tuple(p for p in file.places if p.name != name or not recorded)
    return replace(file, keys=keys, places=places, erased=(*others, replace(stone, recorded=recorded)))
