"""Loss and closed-loop score over sizes and data amounts, really trained: the points that `hagane plan scaling` fits.

    make bench-scaling              (or: python bench/scaling/run.py --help)

One process, one thread. Every finished run is one JSON line; a measurement that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grid
import torch
from measure import measure
from site_of_grid import make_site

from hagane.cli.site import open_catalog
from hagane.plan.scaling_runs import append_run, read_runs

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / f"bench/results/scaling-{date.today()}.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/scaling", help="logs, catalog and runs in the making")
    parser.add_argument("--only", default="", help="cells whose name begins so: 1m, 40m-u12800 ...")
    parser.add_argument("--minutes", type=float, default=75.0, help="CPU minutes after which no further cell is begun")
    parser.add_argument("--lr-factor", type=float, default=1.0, help="on the recipe's learning rate, to try it out")
    o = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    catalog = open_catalog(make_site(o.work), noted=False)
    print(f"site: {time.process_time() - began:.0f} CPU s", flush=True)
    done = {run.name for run in read_runs(o.out)} if o.out.exists() else set()
    for cell in grid.cells():
        if cell.name in done or not cell.name.startswith(o.only):
            continue
        if time.process_time() - began > 60 * o.minutes:
            print(f"the budget of {o.minutes:g} CPU minutes is spent; run again to go on", flush=True)
            return 0
        run = measure(catalog, cell, o.work / "runs", o.lr_factor)
        append_run(o.out, run)
        scores = "  ".join(f"{w} {s.mean:8.3f} [{s.low:.3f}, {s.high:.3f}]" for w, s in run.scores.items())
        losses = "  ".join(f"{w} {loss:.4f}" for w, loss in run.held_out.items())
        spent = f"{run.cpu_s:6.0f} + {run.notes['judging_cpu_s']:>4} CPU s"
        print(f"{run.name:<24} {spent}  loss {losses}  score {scores}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
