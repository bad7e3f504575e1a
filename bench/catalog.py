"""The catalog on this machine: seconds to add, and milliseconds a training step costs to load.

    OMP_NUM_THREADS=1 python bench/catalog.py [--scale 0.2]

Episodes are random readings of the shape of the demo's machines (1.0 is about 300,000 control steps). Times are CPU
time of one process; the step time is the median of five passes over the same steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

from hagane.catalog import Catalog, Loader, Mixture
from hagane.seal import SignedContract, Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import APPLIED, Contract, Embodiment, Episode, Stream, dump_toml, load_toml

WORLDS = Path(__file__).parents[1] / "src" / "hagane" / "worlds"
SHAPES = {"arm": (250, 160), "road": (800, 80), "mill": (1000, 200)}
SAMPLES, STEPS = 192, 100


def noise(machine: Embodiment, episodes: int, steps: int) -> Iterator[Episode]:
    """Random episodes at the control rate."""
    rng = np.random.default_rng(0)
    times_ns = machine.step_ns * np.arange(steps, dtype=np.int64)
    for number in range(episodes):
        streams = {}
        for c in machine.channels():
            values = rng.normal(size=(steps, *c.shape)).astype(np.float32)
            valid = rng.random((steps, c.places)) < 0.7 if c.kind == "set" else np.ones(steps, bool)
            streams[c.name] = Stream(times_ns, values, valid, c.unit)
        streams |= {c.name + APPLIED: streams[c.name] for c in machine.act}
        yield Episode(f"{machine.name}/{number:06d}", machine.name, streams, "go")


def contract(folder: Path, trust: TrustStore, machine: Embodiment) -> SignedContract:
    """A signed contract for the machine's data set."""
    key = generate_key(folder / f"{machine.owner}.pem")
    trust.add(machine.owner, public_of(key))
    path = folder / f"{machine.name}.toml"
    terms = Contract(
        machine.owner,
        (machine.name,),
        ("JP",),
        ("plant-7",),
        ("anchor",),
        date(2099, 12, 31),
        date(2026, 1, 1),
        1,
        protection="process",
    )
    path.write_text(dump_toml(terms), "utf-8")
    sign_contract(path, key)
    return load_contract(path, trust)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.2, help="part of the episodes")
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trust = TrustStore(folder / "trust")
        catalog = Catalog.open(folder / "catalog", Site("plant-7", "JP", "consortium"), trust)
        for machine_name, (episodes, steps) in SHAPES.items():
            machine = load_toml(WORLDS / f"{machine_name}.toml", Embodiment)
            made = list(noise(machine, max(2, int(episodes * scale)), steps))
            signed, began = contract(folder, trust, machine), time.process_time()
            record = catalog.add(machine.name, machine, signed, made)
            spent = time.process_time() - began
            each = 1000 * spent / record.episodes
            print(
                f"add {machine.name:<5} {record.steps:>7} steps  {spent:6.2f} s  {each:5.1f} ms an episode", flush=True
            )
        loader = Loader(catalog, list(SHAPES), Mixture(), purpose="anchor", samples_per_step=SAMPLES)
        passes = []
        for _ in range(5):
            began = time.process_time()
            for step in range(STEPS):
                loader.at(step)
            passes.append(1000 * (time.process_time() - began) / STEPS)
        print(f"load {SAMPLES} samples of {len(SHAPES)} machines: {statistics.median(passes):.2f} ms a step")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
