"""What a checkpoint costs training: steps with a save under way beside steps without, in turns, in one run.

    OMP_NUM_THREADS=1 python bench/checkpoint/stall.py [--size 1m] [--samples 192] [--rounds 7] [--out FILE.json]

A window of steps is timed with each kind of save begun at its first step, and without; kinds take turns and trade
places, so that a busy minute hits all. What a save costs is the median over rounds of the difference, and its share is
against training between two saves (--every steps, 200 by default). torch's own `async_save` writes the same tensors.
Also says how long `save` itself blocks, and how long a checkpoint takes to be whole. Exits 1 when ours stalls training
2% or more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.checkpoint_fixture import RECORD
from tests.model_fixture import engine_of, make_batch

from hagane.engine import Engine, Saver, StepConfig, balance_experts, train_step
from hagane.engine.checkpoint import by_table
from hagane.engine.pieces import parts_here, tables

LIMIT = 0.02
Save = Callable[[], Callable[[], None]]
"""Begins a save; gives what waits for it."""


def kinds(engine: Engine, folder: Path) -> dict[str, Save]:
    """The ways to save."""
    saver = Saver(folder / "ours", engine, keep=1)
    parts = parts_here(engine)

    def ours() -> Callable[[], None]:
        saver.save(RECORD, {})
        return lambda: (saver.wait(), None)[1]

    def blocking() -> Callable[[], None]:
        ours()()
        return lambda: None

    def torchs() -> Callable[[], None]:
        shutil.rmtree(folder / "torch", ignore_errors=True)
        chunks = by_table(parts, tables(engine))
        state = {f"{t}/{c.name}": c.local for t, held in chunks.items() for cs in held.values() for c in cs}
        done = async_save(state, storage_writer=HuggingFaceStorageWriter(str(folder / "torch"), save_distributed=True))
        return lambda: (done.result(), None)[1]

    return {"none": lambda: lambda: None, "ours": ours, "ours, waited for": blocking, "torch's async_save": torchs}


def window(engine: Engine, save: Save, steps: int, samples: int) -> tuple[float, float, float]:
    """Seconds of a window of steps, of them blocked in the call, and seconds until the save was whole (at least the
    window, unless it was waited for)."""
    batches = [make_batch(k, n=samples) for k in range(steps)]
    started = time.perf_counter()
    wait = save()
    blocked = time.perf_counter() - started
    for batch in batches:
        train_step(engine, batch)
        balance_experts(engine)
    spent = time.perf_counter() - started
    wait()
    return spent, blocked, time.perf_counter() - started


def measure(o: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds."""
    engine = engine_of(StepConfig(steps=10**6, warmup=2), size=o.size)
    ways = kinds(engine, folder)
    for save in ways.values():
        window(engine, save, 2, o.samples)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(o.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(window(engine, ways[name], o.window, o.samples))
            print(f"round {turn + 1}: {name:<20} {found[name][-1][0]:7.3f} s", flush=True)
    plain = statistics.median(w[0] for w in found["none"]) / o.window
    rows = {}
    for name in names[1:]:
        more = [a[0] - b[0] for a, b in zip(found[name], found["none"], strict=True)]
        cost = statistics.median(more)
        rows[name] = {
            "cost_s": cost,
            "low_s": sorted(more)[len(more) // 4],
            "high_s": sorted(more)[-1 - len(more) // 4],
            "blocked_s": statistics.median(w[1] for w in found[name]),
            "stall": cost / (plain * o.every),
        }
    part = sum(p.stat().st_size for p in (folder / "ours").rglob("*.safetensors"))
    return {"step_s": plain, "bytes": part, "rows": rows, "rounds": found}


def main() -> int:
    """Measure, print the table, keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1m")
    parser.add_argument("--samples", type=int, default=96, help="of each of two machines in a step")
    parser.add_argument("--window", type=int, default=10, help="steps timed at a time")
    parser.add_argument("--every", type=int, default=200, help="steps between two saves of a run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(o, Path(folder))
    dist.destroy_process_group()
    print(
        f"\n{o.size}, {2 * o.samples} samples a step: {result['step_s']:.3f} s a step, {result['bytes'] / 1e6:.1f} MB"
    )
    print(f"{'save':<20} {'costs':>9} {'quartiles':>19} {'blocks':>9} {f'share of {o.every} steps':>20}")
    for name, r in result["rows"].items():
        span = f"{r['low_s']:.3f} .. {r['high_s']:.3f} s"
        print(f"{name:<20} {r['cost_s']:7.3f} s {span:>19} {r['blocked_s']:7.3f} s {r['stall']:>20.2%}")
    where = {"date": date.today().isoformat(), "machine": platform.machine(), "cpus": os.cpu_count()}
    if o.out:
        o.out.write_text(json.dumps({**where, "torch": torch.__version__, **vars(o) | {"out": ""}, **result}, indent=1))
    missed = result["rows"]["ours"]["stall"] >= LIMIT
    print(f"limit {LIMIT:.0%}: {'MISSED' if missed else 'held'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
