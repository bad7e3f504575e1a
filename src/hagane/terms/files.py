"""Files that are whole or absent: the one place that writes beside, syncs and renames."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Write blocks to a file that is the old one or the new one, never half of it.

    Raises:
        OSError: the disk is full or the folder cannot be written; the caller says it in its own room's words.
    """
    beside = path.with_name(f".{path.name}.making")
    try:
        with beside.open("wb") as f:
            for block in blocks:
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
    except BaseException:  # also what the blocks raise: half a file stays nowhere
        beside.unlink(missing_ok=True)
        raise
