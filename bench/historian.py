"""Rates of reading plant historian tables on this machine: wide and long, CSV and Parquet.

    OMP_NUM_THREADS=1 python bench/historian.py [--rows 100000] [--tags 20]

A table of random readings of 20 tags, one a second; the long one has a row a reading, with its quality. Rates are
rows in a CPU second, best of three, without and with the checks of intake.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from hagane.intake import Options, read_logs
from hagane.intake.historian import read
from hagane.terms import Channel, Embodiment

START_NS = 1_767_571_200_000_000_000


def machine(tags: list[str]) -> Embodiment:
    """One channel a tag, the last one a command."""
    observe = tuple(Channel(t, role="pv", source=(t,)) for t in tags[:-1])
    act = (Channel(tags[-1], role="mv", source=(tags[-1],)),)
    return Embodiment("bench", "plant", "member-steel", 1.0, 4, observe, act)


def tables(rows: int, tags: list[str]) -> dict[str, pa.Table]:
    """The same number of readings in both forms."""
    rng = np.random.default_rng(0)
    stamps = pa.array(START_NS + np.arange(rows) * 10**9).cast(pa.timestamp("ns")).cast(pa.timestamp("s"))
    wide = pa.table({"time": stamps, **{t: rng.normal(size=rows).round(5) for t in tags}})
    names = pa.array(tags).take(pa.array(np.tile(np.arange(len(tags)), rows)))
    values = rng.normal(size=rows * len(tags)).round(5)
    times = stamps.take(pa.array(np.repeat(np.arange(rows), len(tags))))
    long = pa.table({"time": times, "tag": names, "value": values, "quality": np.full(len(values), 192)})
    return {"wide": wide, "long": long}


def best(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tags", type=int, default=20)
    args = parser.parse_args()
    tags = [f"TAG{k:03d}" for k in range(args.tags)]
    line = machine(tags)
    with tempfile.TemporaryDirectory() as folder:
        for form, table in tables(args.rows, tags).items():
            for ending in ("csv", "parquet"):
                path = Path(folder) / f"{form}.{ending}"
                if ending == "csv":
                    pa_csv.write_csv(table, path)
                else:
                    pq.write_table(table, path)
                plain = best(lambda path=path: list(read(path, line, Options())))
                checked = best(lambda path=path: list(read_logs(path, line)))
                n, mb = table.num_rows, path.stat().st_size / 1e6
                print(
                    f"{form} {ending:<8} {n:>9,} rows {mb:6.1f} MB {n / plain / 1e3:8.0f} k rows/s"
                    f" {mb / plain:6.0f} MB/s, with checks {n / checked / 1e3:8.0f} k rows/s"
                )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
