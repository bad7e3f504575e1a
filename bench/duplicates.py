"""How long it takes to find copies among many episodes, and how many planted ones are found.

    python bench/duplicates.py [--world mill] [--episodes 10000]

Runs the world's expert, plants altered copies of 1% of the runs (noise of 2% of each column's standard deviation,
0.8 times the rate, 5% cut from each end, a moved clock), and prints CPU seconds, memory, recall and precision.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import numpy as np
from tests.curation_fixture import noisy, resampled, shifted, stats_of, trimmed

from hagane.catalog.duplicates import find_copies
from hagane.catalog.motion import motion_of, scales
from hagane.catalog.signature import signature
from hagane.demo.members import demonstrations
from hagane.worlds import make


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="mill")
    parser.add_argument("--episodes", type=int, default=10_000)
    o = parser.parse_args()
    machine = make(o.world).embodiment
    stats = stats_of(machine, tuple(demonstrations(make(o.world), 200)))
    scale_D, rng = scales(machine, stats), np.random.default_rng(0)
    made, planted, cpu_s = [], 0, 0.0
    for episode in demonstrations(make(o.world), o.episodes):
        runs = [("runs", episode)]
        if rng.random() < 0.01:
            copy = shifted(10**9)(trimmed(0.05, 0.05)(resampled(0.8)(noisy(0.02, stats, rng)(episode))))
            runs.append(("copies", replace(copy, id=episode.id)))
            planted += 1
        for dataset, run in runs:
            began = time.process_time()
            made.append(signature(dataset, run, machine, motion_of(run, machine), scale_D))
            cpu_s += time.process_time() - began
    print(f"{o.world}: {len(made)} episodes, {planted} planted; signatures {1e3 * cpu_s / len(made):.2f} CPU ms each")
    began = time.process_time()
    found = find_copies(made)
    cpu_s = time.process_time() - began
    right = sum(c.first[1] == c.second[1] for c in found)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"search {cpu_s:.1f} CPU s, at most {memory:.0f} MB; {made[0].curve_PD.nbytes / 1e3:.1f} kB an episode")
    print(f"recall {right / max(planted, 1):.3f}, precision {right / max(len(found), 1):.3f} ({len(found)} pairs)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
