"""Erasing and rotating the key of one sealed folder of many files: seconds on the clock, fsync with it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.rights.measured import Figure

from hagane.seal import Keyring, Ledger, open_folder, seal_folder
from hagane.seal.folder import OwnKeys
from hagane.seal.key_life import erase, rotate
from hagane.terms import HaganeError, Refused

OWNER, NAME, CONTRACT = "member-steel", "mill-demo", "c0" * 32


def measure(folder: Path, files: int = 1000, rounds: int = 5, file_bytes: int = 1000) -> list[Figure]:
    """Rows of the table.

    Raises:
        HaganeError: a file could not be read after a rotation, or could be after the erasure.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    for i in range(files):
        (source / f"{i:06d}.bin").write_bytes(os.urandom(file_bytes))
    took: dict[str, list[tuple[float, float]]] = {"seal": [], "rotate": [], "erase": []}
    for number in range(rounds):
        for what, wall_and_cpu in life(source, folder / f"round{number}").items():
            took[what].append(wall_and_cpu)
    rows = []
    for what, found in took.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        how = f"wall with fsync, median of {rounds}; {cpu:.3f} CPU s; files of {file_bytes} bytes"
        ends = (min(w for w, _ in found), max(w for w, _ in found)) if rounds > 1 else (None, None)
        rows.append(Figure(f"{what} a folder of {files} files", "s", wall, how + "; least and most", None, *ends))
    return rows


def life(source: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Seal a folder, rotate its key, erase it: (wall, CPU) seconds of each."""
    keyring, sealed, ledger = Keyring(folder / "keys"), folder / "sealed", Ledger(folder / "ledger.jsonl")
    took = {
        "seal": seconds(lambda: seal_folder(source, sealed, keyring, NAME, OWNER, CONTRACT)),
        "rotate": seconds(lambda: rotate(keyring, OWNER, NAME)),
    }
    if not same(source, sealed, keyring):
        raise HaganeError("a file cannot be read after its key was rotated; nothing is told")
    took["erase"] = seconds(lambda: erase(keyring, OWNER, NAME, ledger.append))
    try:
        same(source, sealed, keyring)
    except Refused:
        return took
    raise HaganeError("a file can be read after its key was erased; nothing is told")


def same(source: Path, sealed: Path, keyring: Keyring) -> bool:
    """Whether every file still opens to what was sealed."""
    folder = open_folder(sealed)
    keys = OwnKeys(folder, keyring)
    return all(folder.read(path, keys) == (source / path).read_bytes() for path in folder.files)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu
