"""Export: a data set leaves the catalog under its owner's terms, complete or not at all.

    OUT/meta, OUT/data           (to lerobot) the canonical LeRobot v3.0 set, byte for byte
    OUT/episodes.parquet, OUT/episodes/*.parquet   (to parquet) native-rate streams, see `export_parquet`
    OUT/embodiment.toml          the machine
    OUT/contract.toml(.sig)      the owner's signed terms, as they were when the data left
    OUT/croissant.json           Croissant 1.1: owner, terms, files, fields with units
    OUT/manifest.json            sha256 and size of every other file

Everything is made in a folder beside OUT and renamed at the end. What leaves is checked on the way against the
digests in the catalog, so damage is never handed on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import FileFacts, files_of, stored_of
from hagane.catalog.croissant import croissant
from hagane.catalog.export_parquet import Layout, write_parquet
from hagane.catalog.manifest import NAME as MANIFEST
from hagane.catalog.manifest import read_manifest
from hagane.catalog.shelf import PlainShelf, Shelf
from hagane.catalog.store import OURS
from hagane.intake.lerobot_journal import sync_tree
from hagane.terms import (
    CorruptError,
    StoreError,
    digest_file,
    digest_value,
    dump_toml,
)
from hagane.terms.files import sync_folder

Format = Literal["lerobot", "parquet"]
_BLOCK = 1 << 20
_CONTRACT = ("contract.toml", "contract.toml.sig")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    """The folder."""
    files: int
    """Files in it, the manifest aside."""
    size: int
    """Their bytes."""
    digest: str
    """Digest of the manifest: names every byte that left."""


def export_set(
    catalog: Catalog,
    name: str,
    to: Format,
    out: Path,
    *,
    layout: Layout = "wide",
    today: Callable[[], date] = date.today,
) -> Exported:
    """Write a data set to a new folder for use elsewhere; the ledger notes it before the folder is there.

    Args:
        catalog: the catalog.
        name: data set.
        to: lerobot or parquet.
        out: the folder; must not exist.
        layout: of parquet: wide or long.
        today: date that the description carries.

    Raises:
        Refused: the contract does not grant "export" here and now; nothing is written.
        StoreError: no such data set, the folder exists, or the disk refuses.
        CorruptError: stored bytes differ from their digest; nothing is left at `out`.
    """
    catalog.stats(name, "export")  # asks the contract before anything is written
    if out.exists() or out.is_symlink():
        raise StoreError("the folder exists", where=str(out), next_step="choose another --out, or remove it")
    with _beside(out) as work:
        if to == "lerobot":
            shelf = stored_of(catalog, name).shelf
            for told in _canonical(catalog, name):
                _copy(shelf, work / told.path, told)
        else:
            write_parquet(catalog, name, work, layout)
        signed = catalog.contract(name)
        _write(work / "embodiment.toml", dump_toml(catalog.embodiment(name)).encode())
        for path, data in zip(_CONTRACT, (signed.toml, signed.signature), strict=True):
            _write(work / path, data)
        described = croissant(catalog, name, to, layout, _files(work), work, today())
        _write(work / "croissant.json", json.dumps(described, indent=1, ensure_ascii=False).encode() + b"\n")
        files = _files(work)
        digest = _write_manifest(work, files)
        # before it leaves: nothing is out there that the ledger does not know
        catalog.note("export", name, {"to": to, "files": len(files), "manifest": digest})
    return Exported(out, len(files), sum(f.size for f in files), digest)


def verify_export(folder: Path) -> int:
    """Check every file of an exported folder against its manifest; returns how many.

    Raises:
        CorruptError: the manifest or a file is missing or differs, or a file is not listed; names it.
    """
    again = "ask for the export again"
    try:
        listed = read_manifest(PlainShelf(folder), MANIFEST)
    except CorruptError as e:
        raise CorruptError(e.what, where=e.where, next_step=again) from None
    found = {f.path: f for f in _files(folder) if f.path != MANIFEST}
    for name in sorted({*found, *listed}):
        there = found.get(name)
        if there is None or name not in listed or there.sha256 != listed[name]["sha256"]:
            what = "is not listed in the manifest" if name not in listed else "is missing or differs from the manifest"
            raise CorruptError(f"the file {what}", where=str(folder / name), next_step=again)
    return len(found)


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A fresh folder that becomes `out` when the block ends well, and is removed otherwise."""
    work = out.with_name(f".{out.name}.making")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        sync_tree(work)
        work.rename(out)
        sync_folder(out.parent)
    except OSError as e:
        raise StoreError(
            f"the export cannot be written: {e.strerror or e}",
            where=str(out),
            next_step="free some disk or choose another --out; nothing was left there",
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _canonical(catalog: Catalog, name: str) -> list[FileFacts]:
    return [f for f in files_of(catalog, name) if not f.path.startswith(f"{OURS}/")]


def _copy(shelf: Shelf, target: Path, told: FileFacts) -> None:
    """Copy a file while its digest is taken.

    Raises:
        CorruptError: it is missing or differs from its digest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    source = shelf.folder / told.path
    damaged = not shelf.has(told.path) or source.is_symlink()
    if not damaged:
        with shelf.open(told.path) as a, target.open("wb") as b:
            while block := a.read(_BLOCK):
                sha256.update(block)
                b.write(block)
            b.flush()
            os.fsync(b.fileno())
    if damaged or sha256.hexdigest() != told.sha256:
        raise CorruptError(
            "the file is missing or differs from its recorded digest",
            where=str(source),
            next_step="restore the data set from a copy, or bring the logs in again; nothing was exported",
        )


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _files(folder: Path) -> list[FileFacts]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    return [FileFacts(p.relative_to(folder).as_posix(), digest_file(p), p.stat().st_size) for p in found]


def _write_manifest(work: Path, files: list[FileFacts]) -> str:
    told = {"files": {f.path: {"sha256": f.sha256, "bytes": f.size} for f in files}}
    digest = digest_value(told)
    _write(work / MANIFEST, json.dumps({**told, "sha256": digest}, indent=1, sort_keys=True).encode() + b"\n")
    return digest
