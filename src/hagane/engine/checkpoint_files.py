"""A checkpoint's folder: made beside, whole or absent, old ones removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hagane.model.chunks import Chunk, write_chunks
from hagane.model.weights import MANIFEST, Manifest, complete, step_of
from hagane.terms import TrainingError, digest_file

MAKING, OLD = ".making-", ".old-"
"""Starts of the names of folders that are no checkpoint yet, or no more."""


def place(folder: Path, step: int) -> tuple[Path, Path]:
    """The folder of a step's checkpoint, and the one it is made in."""
    final = folder / f"step-{step:06d}"
    return final, folder / f"{MAKING}{final.name}"


def clear(folder: Path) -> None:
    """Remove what a killed process left of checkpoints that were never whole."""
    for left in (*folder.glob(f"{MAKING}*"), *folder.glob(f"{OLD}*")):
        shutil.rmtree(left, ignore_errors=True)


def write_part(making: Path, tables: Mapping[str, Mapping[str, Sequence[Chunk]]], rank: int) -> dict[str, str]:
    """Write this rank's chunks; the sha256 of each file by its name in the checkpoint.

    Args:
        making: folder of the checkpoint that is made.
        tables: chunks by table (a folder in it) and owner.
        rank: of this process.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    paths = [path for table, chunks in tables.items() for path in write_chunks(making / table, chunks, rank)]
    return {path.relative_to(making).as_posix(): digest_file(path) for path in paths}


def finish(making: Path, final: Path, manifest: Manifest) -> None:
    """Write the manifest, sync, and give the folder its name: from then on it is a checkpoint.

    Raises:
        OSError: the disk is full or cannot be written.
        TrainingError: a file of another rank is not to be seen from here.
    """
    for name in manifest.files:
        if not (making / name).is_file():
            raise TrainingError(
                f"a rank wrote {name}, but rank 0 does not see it",
                where=str(final),
                next_step="put the run's folder on a file system that all ranks share",
            )
    (making / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True), "utf-8")
    for path in (making / MANIFEST, *(p for p in making.iterdir() if p.is_dir()), making):
        sync(path)
    remove(final)
    making.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, if it is there: first its name, so that no half of it is ever counted."""
    if checkpoint.exists():
        old = checkpoint.with_name(f"{OLD}{checkpoint.name}")
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(checkpoint.rename(old), ignore_errors=True)


def keep_newest(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove complete checkpoints but the newest `keep`, and those whose step `keep_every` divides (0: none).

    One that cannot be removed stays: the newest is whole, and that is what was asked for.
    """
    for old in complete(folder)[:-keep]:
        if not keep_every or step_of(old) % keep_every:
            with suppress(OSError):
                remove(old)


def write_error(e: Exception, final: Path, who: str = "") -> TrainingError:
    """One message for a checkpoint that could not be written."""
    full = (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(e)
    return TrainingError(
        ("the disk is full" if full else f"cannot write the checkpoint: {e}") + who,
        where=str(final),
        next_step=f"{'free space' if full else 'make the folder writable'}, then go on with `hagane train --resume`; "
        "earlier checkpoints are whole",
    )
