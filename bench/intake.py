"""Rates of intake on this machine: CAN and historian, out and in, checks included.

    OMP_NUM_THREADS=1 python bench/intake.py [--drives 400] [--coils 200]

Logs are made of random readings of the shape of the demo's machines. The figure of a row is the best of three.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from hagane.intake import check_episode, read_logs
from hagane.intake.can_write import encode_can
from hagane.intake.candump import parse_candump
from hagane.intake.historian_write import write_historian
from hagane.terms import APPLIED, Embodiment, Episode, Stream, load_toml

WORLDS = Path(__file__).parents[1] / "src" / "hagane" / "worlds"
T = TypeVar("T")


def noise(embodiment: Embodiment, seed: int, steps: int) -> Episode:
    """Random readings within their ranges."""
    rng = np.random.default_rng(seed)
    times_ns = embodiment.step_ns * np.arange(steps, dtype=np.int64)
    streams = {}
    for c in (*embodiment.observe, *embodiment.act):
        values = rng.uniform(np.array(c.low), np.array(c.high), (steps, *c.shape)).astype(np.float32)
        valid = rng.random((steps, c.places)) < 0.7 if c.kind == "set" else np.ones(steps, bool)
        streams[c.name] = Stream(times_ns, values, valid, c.unit)
        if c in embodiment.act:
            streams[c.name + APPLIED] = streams[c.name]
    return Episode(f"{embodiment.name}/{seed:06d}", embodiment.name, streams, "drive on")


def best(work: Callable[[], T], times: int = 3) -> tuple[float, T]:
    """Shortest time of a few, and the last result."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def row(what: str, seconds: float, count: int, unit: str, size: int) -> None:
    print(f"{what:<34} {seconds:7.2f} s {count / seconds / 1e3:9.0f} k {unit}/s {size / 1e6 / seconds:8.1f} MB/s")


def can(drives: int, folder: Path) -> None:
    car = load_toml(WORLDS / "road.toml", Embodiment)
    episodes = [noise(car, k, 160) for k in range(drives)]
    seconds, (log, _) = best(lambda: encode_can(episodes, car, folder))
    text = log.read_bytes()
    frames = text.count(b"\n")
    print(f"CAN: {drives} drives, {frames:,} frames, {len(text) / 1e6:.0f} MB")
    row("encode and write", seconds, frames, "frames", len(text))
    row("parse, lines of one width", best(lambda: parse_candump(text))[0], frames, "frames", len(text))
    lines = text.split(b"\n")[:400_000]
    mixed = b"\n".join(line[: -2 * (k % 3)] if k % 3 else line for k, line in enumerate(lines)) + b"\n"
    row("parse, lines of mixed width", best(lambda: parse_candump(mixed))[0], len(lines), "frames", len(mixed))
    seconds, back = best(lambda: list(read_logs(log, car)), 1)
    row("read to checked episodes", seconds, frames, "frames", len(text))
    seconds, _ = best(lambda: [check_episode(e, car) for e in back])
    row("of that, the checks", seconds, frames, "frames", len(text))


def historian(coils: int, folder: Path) -> None:
    line = load_toml(WORLDS / "mill.toml", Embodiment)
    episodes = [noise(line, k, 2000) for k in range(coils)]
    seconds, path = best(lambda: write_historian(episodes, line, folder / "line.csv"), 1)
    size, rows = path.stat().st_size, 2000 * coils
    print(f"historian: {coils} coils, {rows:,} rows, {size / 1e6:.0f} MB")
    row("write", seconds, rows, "rows", size)
    seconds, _ = best(lambda: list(read_logs(path, line)), 1)
    row("read to checked episodes", seconds, rows, "rows", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drives", type=int, default=400)
    parser.add_argument("--coils", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        can(args.drives, Path(folder))
        historian(args.coils, Path(folder))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
