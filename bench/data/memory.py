"""Memory: flat over passes of loading, and the statistics of a set ten times larger than the memory it may use.

    OMP_NUM_THREADS=1 python bench/data/memory.py [--passes 20] [--limit-mb 320] [--out FILE.json]

The second part brings a set of ten times the limit in, in a process whose private memory the kernel limits
(RLIMIT_DATA), and compares its statistics with those of the same numbers made again and sorted. Needs about six times
the set on disk while it runs. Exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from run import machine
from tests.catalog_fixture import make_home
from tests.pictures_fixture import EYES, episodes

from hagane.catalog import Loader, Mixture
from hagane.terms import Channel, Embodiment, Episode, Stream

WIDTH, STEPS = 62, 4000
WIDE = Embodiment(
    "wide", "plant", "member-steel", 100.0, 8, (Channel("tags", shape=(WIDTH,)),), (Channel("valve", shape=(2,)),)
)
CHECKED = (0, 17, 61)
"""Columns whose exact statistics are computed too."""


def rows(number: int) -> np.ndarray:
    """[STEPS, WIDTH] float32 of an episode; scales differ by episode, so that averages of quantiles are wrong."""
    rng = np.random.default_rng(number)
    scale = np.float32(1 + 50 * (number % 17 == 3))
    return rng.standard_normal((STEPS, WIDTH), np.float32) * scale + np.float32(number % 5)


def made(count: int) -> Iterator[Episode]:
    """Episodes 0 .. count - 1."""
    times_ns = np.arange(STEPS, dtype=np.int64) * WIDE.step_ns
    ones = np.ones(STEPS, bool)
    for n in range(count):
        values = rows(n)
        yield Episode(
            f"wide/{n:05d}",
            "wide",
            {"tags": Stream(times_ns, values, ones), "valve": Stream(times_ns, values[:, :2], ones)},
        )


def resident_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def passes(count: int, folder: Path) -> dict[str, Any]:
    """Resident memory after each of many passes over a set with pictures, in both modes."""
    home = make_home(folder)
    catalog = home.catalog()
    catalog.add("eyes-demo", EYES, home.contract(EYES), episodes(40))
    out: dict[str, Any] = {"passes": count}
    for mode in ("jpeg", "video"):
        loader = Loader(catalog, ["eyes-demo"], Mixture(), purpose="anchor", samples_per_step=16, pictures=mode)  # type: ignore[arg-type]
        steps = -(-loader.samples["eyes-demo"] // 16)
        seen = []
        for n in range(count):
            for step in range(n * steps, (n + 1) * steps):
                loader.at(step)
            seen.append(resident_mb())
        # the first pass fills what is held on purpose
        out[f"growth of {mode} after the first pass"] = round(max(seen) / seen[0] - 1, 4)
    out["ok"] = all(v < 0.05 for k, v in out.items() if k.startswith("growth"))
    return out


CHILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import memory
from tests.catalog_fixture import make_home
home = make_home(Path(sys.argv[1]))
limit = int(sys.argv[2]) << 20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
signed = home.contract(memory.WIDE, "wide-demo")
home.catalog().add("wide-demo", memory.WIDE, signed, memory.made(int(sys.argv[3])))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def statistics_under_limit(limit_mb: int, folder: Path) -> dict[str, Any]:
    """Bring in ten times the limit under the limit, and compare the statistics with the exact ones."""
    count = -(-10 * limit_mb * 2**20 // (STEPS * WIDTH * 4))
    began = time.monotonic()
    child = [sys.executable, "-c", CHILD, str(folder), str(limit_mb), str(count), str(Path(__file__).parent)]
    # stacks of idle threads are addresses, not memory, and would be counted at 8 MiB each
    args = ["sh", "-c", 'ulimit -s 1024; exec "$@"', "sh", *child]
    # Arrow's own allocator reserves a gigabyte of addresses at once, which the limit would count as used
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(args, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env=env)
    out: dict[str, Any] = {"limit MiB": limit_mb, "set MiB": round(count * STEPS * WIDTH * 4 / 2**20)}
    if done.returncode:
        return {**out, "ok": False, "said": done.stderr.strip()[-400:]}
    out["peak resident MiB"] = round(float(done.stdout.split()[-1]))
    out["seconds"] = round(time.monotonic() - began, 1)
    stats = make_home(folder).catalog().stats("wide-demo", "view")["tags"]
    exact = np.concatenate([rows(n)[:, CHECKED] for n in range(count)])
    worst = 0.0
    for k, column in enumerate(CHECKED):
        for q, got in ((0.01, stats.q01[column]), (0.99, stats.q99[column])):
            want = float(np.quantile(exact[:, k], q))
            worst = max(worst, abs(got / want - 1))
        assert abs(stats.mean[column] - exact[:, k].mean(dtype=np.float64)) < 1e-4
    shutil.rmtree(folder)
    return {**out, "worst error of q01 and q99": round(worst, 5), "ok": bool(worst < 0.01)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--limit-mb", type=int, default=320)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        out["memory over passes"] = passes(o.passes, Path(folder))
        print(f"memory over passes: {json.dumps(out['memory over passes'])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out["statistics under a limit"] = statistics_under_limit(o.limit_mb, Path(folder) / "site")
        print(f"statistics under a limit: {json.dumps(out['statistics under a limit'])}", flush=True)
    if o.out:
        told = {"date": str(date.today()), "machine": machine(), "rows": out}
        o.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(row["ok"] for row in out.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
