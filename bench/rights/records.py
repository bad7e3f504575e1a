"""CPU time of opening sealed records, against crc32 of the same plaintext and against AESGCM called by hand.

Medians of paired rounds of CPU seconds, in one process, on a folder in memory.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.rights.measured import Figure
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hagane.seal import Layout, open_sealed, seal_bytes_to
from hagane.terms import HaganeError

SIZES = (300, 4_096, 65_536, 1 << 20)


def cpu_us(run: Callable[[], None], records: int) -> float:
    """CPU microseconds a record of one run."""
    begin = time.process_time_ns()
    run()
    return (time.process_time_ns() - begin) / records / 1e3


def one_size(size: int, folder: Path, rounds: int, total: int) -> list[float]:
    """Median CPU microseconds a record: crc32, AESGCM by hand, `record`, `fill`, sealing."""
    n = max(16, min(4000, total // size))
    plain, key = os.urandom(n * size), os.urandom(32)
    path = folder / str(size)

    def seal() -> None:
        seal_bytes_to(path, plain, key, "a1" * 16, "c0" * 32, Layout(size))

    seal()
    file = open_sealed(path, key)
    view, gcm, head = memoryview(plain), AESGCM(key), bytes(80)
    nonces = [i.to_bytes(12, "big") for i in range(n)]
    sealed = [gcm.encrypt(nonces[i], view[i * size : (i + 1) * size], head) for i in range(n)]
    out, order = bytearray(n * size), list(range(n))

    def crc() -> None:
        for i in range(n):
            zlib.crc32(view[i * size : (i + 1) * size])

    def bare() -> None:
        for i in range(n):
            gcm.decrypt(nonces[i], sealed[i], head)

    def one() -> None:
        for i in range(n):
            file.record(i)

    def many() -> None:
        file.fill(order, out)

    runs = (crc, bare, one, many, seal)
    rounds = [[cpu_us(run, n) for run in runs] for _ in range(rounds)]
    if bytes(out) != plain:
        raise HaganeError("sealed records did not open to what was sealed; nothing is timed")
    return [median(column) for column in zip(*rounds, strict=True)]


def measure(sizes: tuple[int, ...] = SIZES, rounds: int = 15, total: int = 16 << 20) -> list[Figure]:
    """Rows of the table.

    Args:
        sizes: of records, bytes.
        rounds: of all ways, in turns.
        total: bytes of a file.

    Raises:
        HaganeError: records did not open to what was sealed.
    """
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for size in sizes:
            crc, bare, one, many, seal = one_size(size, Path(folder), rounds, total)
            how = (
                f"CPU, median of {rounds}: {many:.3g} us a record of {size} B ({size / many / 1e3:.2f} GB/s), alone "
                f"{one:.3g}, sealing {seal:.3g}, crc32 {crc:.3g}"
            )
            rows.append(Figure(f"opening records of {size} bytes / AES-GCM called by hand", "x", many / bare, how))
    return rows
