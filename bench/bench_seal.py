"""CPU time of opening sealed records, against crc32 of the same plaintext and against AESGCM called by hand.

python -m bench.bench_seal: one line a size; medians of paired rounds of CPU seconds, in one process.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hagane.seal import Layout, open_sealed, seal_bytes_to

SIZES = (300, 1_000, 2_000, 10_000, 50_000, 65_536, 1 << 20)
ROUNDS, BYTES = 15, 16 << 20


def cpu_us(run: Callable[[], None], records: int) -> float:
    """CPU microseconds a record of one run."""
    begin = time.process_time_ns()
    run()
    return (time.process_time_ns() - begin) / records / 1e3


def measure(size: int, folder: Path) -> list[float]:
    """Median CPU microseconds a record: crc32, AESGCM by hand, `record`, `fill`, sealing."""
    n = max(16, min(4000, BYTES // size))
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
    rounds = [[cpu_us(run, n) for run in runs] for _ in range(ROUNDS)]
    assert bytes(out) == plain
    return [median(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    """Print the table."""
    print("   bytes     crc32    AESGCM    record      fill      seal   us; fill: GB/s, x crc32, x AESGCM")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for size in SIZES:
            crc, bare, one, many, seal = measure(size, Path(folder))
            print(
                f"{size:>8} {crc:>9.2f} {bare:>9.2f} {one:>9.2f} {many:>9.2f} {seal:>9.2f}   "
                f"{size / many / 1e3:.2f} {many / crc:.2f} {many / bare:.2f}"
            )


if __name__ == "__main__":
    main()
