"""What a verb opens of members' data, said before it runs: the keeper mounts that and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

BROKER = "HAGANE_BROKER"
"""Environment variable that names the broker's socket; it is there only in a jail."""


@dataclass(frozen=True)
class Opens:
    """What one call of a verb reads and makes."""

    home: Path
    """The site's folder: site.toml, trust/, keys/, ledger.jsonl, catalog/."""
    purpose: str
    """What for, as contracts name it."""
    datasets: tuple[str, ...] = ()
    """Data sets of the catalog that it reads."""
    brings: tuple[tuple[str, Path], ...] = ()
    """(data set, contract file) that it brings into the catalog."""
    runs: tuple[Path, ...] = ()
    """Folders of runs whose weights it reads: asked for like every data set that they were trained on."""
    reads: tuple[Path, ...] = ()
    """Other files and folders that it reads."""
    makes: tuple[Path, ...] = ()
    """Folders of runs that it makes or adds to: they are sealed."""
    gives: tuple[Path, ...] = ()
    """Files and folders that leave as plaintext: only where the purpose is to view or to export."""
    handed: Path | None = None
    """Where what it gives is laid for the keeper's own gate, instead of leaving."""
    steps: int = 0
    """Optimiser steps of a run that it makes, for the panel."""
    words: frozenset[str] = frozenset()
    """Words that may be told outside while it runs, beside the names of machines and data sets."""


def in_jail() -> bool:
    """True for a process that a keeper started in a jail."""
    return BROKER in os.environ
