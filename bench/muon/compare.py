"""AdamW against Muon on two simulated machines: held-out action loss at equal steps, and the time of a step.

    OMP_NUM_THREADS=1 nice python bench/muon/compare.py --out OUT [--steps 400] [--seeds 2] [--lr 1e-3 2e-3 4e-3]

Demonstrations of the road and the mill are made and brought into OUT/catalog; every pair of optimiser and peak learning
rate is trained with the first seed, and the best rate of each with the others. Held-out loss is the mean over both
machines of the action loss (L1, at unit scale) on whole episodes that training never sees. A run that is there already
is not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import date
from itertools import pairwise
from pathlib import Path

import torch

from hagane.catalog import Catalog
from hagane.demo.members import demonstrations
from hagane.engine import StepConfig
from hagane.engine.optimiser import make_optimiser
from hagane.engine.placed import Placed
from hagane.model import Generalist, make_config
from hagane.seal import (
    Ledger,
    Site,
    TrustStore,
    generate_key,
    load_contract,
    load_private,
    public_of,
    sign_contract,
)
from hagane.terms import Contract, dump_toml
from hagane.train import TrainConfig, open_data, read_lines, train
from hagane.worlds import make

WORLDS = ("road", "mill")
LAST = 20
"""Steps at the end whose training loss is averaged."""


def make_catalog(home: Path, episodes: int) -> Catalog:
    """A site with demonstrations of both machines."""
    trust = TrustStore(home / "trust")
    (home / "trust").mkdir(parents=True, exist_ok=True)
    site = Site("bench", "JP", "consortium")
    (home / "site.toml").write_text(dump_toml(site), "utf-8")
    catalog = Catalog.open(home / "catalog", site, trust, Ledger(home / "ledger.jsonl"))
    for name in WORLDS:
        world = make(name)
        machine, dataset = world.embodiment, f"{name}-demo"
        if dataset in {r.name for r in catalog.ls()}:
            continue
        key, terms = home / f"{machine.owner}.pem", home / f"{name}.toml"
        if not key.exists():
            generate_key(key)
            trust.add(machine.owner, public_of(load_private(key)))
        days = (date(2099, 12, 31), date(2026, 1, 1))
        use = ("anchor", "view")
        contract = Contract(machine.owner, (dataset,), ("JP",), ("bench",), use, *days, 1, protection="process")
        terms.write_text(dump_toml(contract), "utf-8")
        sign_contract(terms, load_private(key))
        catalog.add(dataset, machine, load_contract(terms, trust), demonstrations(world, episodes))
    return catalog


def one_run(folder: Path, catalog: Catalog, optimiser: str, lr: float, seed: int, o: argparse.Namespace) -> Path:
    """Train once; the metrics file."""
    config = TrainConfig(
        datasets=tuple(f"{name}-demo" for name in WORLDS),
        size=o.size,
        head="l1",
        seed=seed,
        samples_per_step=o.samples,
        step=StepConfig(steps=o.steps, lr=lr, optimiser=optimiser),  # type: ignore[arg-type]
        device="cpu",
        save_every=o.steps,
        keep=1,
        held_out_every=o.steps // 4,
        held_out_samples=512,
    )
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() or sum(1 for _ in read_lines(metrics)) < o.steps:
        train(folder, config, open_data(catalog, config))
    return metrics


def held_out(line: dict[str, float]) -> float:
    """Mean action loss over the machines."""
    values = [v for k, v in line.items() if k.startswith("held_out/")]
    return sum(values) / len(values)


def told(name: str, metrics: Path) -> float:
    """Print a run's row; its last held-out loss."""
    lines = list(read_lines(metrics))
    looks = [held_out(line) for line in lines if any(k.startswith("held_out/") for k in line)]
    seconds = [line["seconds"] for line in lines]
    each = statistics.median(b - a for a, b in pairwise(seconds))
    last = statistics.mean(line["loss"] for line in lines[-LAST:])
    last_look = lines[-1]
    machines = "  ".join(f"{w} {last_look[f'held_out/{w}']:.4f}" for w in WORLDS)
    print(
        f"{name:28}  {'  '.join(f'{x:.4f}' for x in looks)}  {machines}  train {last:.4f}  {1000 * each:.0f} ms a step"
    )
    return looks[-1]


def update_times(sizes: list[str]) -> None:
    """CPU time of the update alone, on gradients of random numbers."""
    machines = tuple(make(name).embodiment for name in WORLDS)
    for size in sizes:
        model = Generalist(make_config(size, machines, head="l1"))
        local = {n: torch.randn(p.shape) for n, p in model.named_parameters()}
        placed = {n: Placed(None, (), p.shape, 0) for n, p in local.items()}
        found = {}
        for name in ("adamw", "muon"):
            optimiser = make_optimiser(StepConfig(optimiser=name), local, placed)  # type: ignore[arg-type]
            times = []
            for _ in range(7):
                for p in local.values():
                    p.grad = torch.randn_like(p)
                began = time.process_time()
                optimiser.step(1e-3)
                times.append(time.process_time() - began)
            found[name] = statistics.median(times[2:])
        print(f"{size:5} update alone, CPU ms: " + ", ".join(f"{n} {1000 * s:.0f}" for n, s in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", default="1m")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--update", nargs="*", default=["1m", "4m", "40m"], help="sizes whose update alone is timed")
    o = parser.parse_args()
    torch.set_num_threads(1)
    catalog = make_catalog(o.out, o.episodes)
    print(
        f"held-out action loss at quarters of {o.steps} steps of {o.samples} samples, {o.episodes} episodes a machine"
    )
    scores: dict[str, dict[float, float]] = {"adamw": {}, "muon": {}}
    for lr in o.lr:
        for optimiser, by_lr in scores.items():
            name = f"{optimiser}-lr{lr:g}-seed0"
            by_lr[lr] = told(name, one_run(o.out / "runs" / name, catalog, optimiser, lr, 0, o))
    for seed in range(1, o.seeds):
        for optimiser, by_lr in scores.items():
            best = min(by_lr, key=lambda lr: by_lr[lr])
            name = f"{optimiser}-lr{best:g}-seed{seed}"
            told(name, one_run(o.out / "runs" / name, catalog, optimiser, best, seed, o))
    update_times(o.update)


if __name__ == "__main__":
    main()
