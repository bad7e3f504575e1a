"""Our mixture-of-experts layer beside the peers': forward + backward at the same weights and tokens, on one core.

    make bench-moe                  (or: python bench/moe/run.py --help)

Every implementation runs in this one process, on the same torch. Rounds alternate over all of them in turning order,
so that a slow minute of the machine falls on all; a ratio is taken inside a round and its median over the rounds is
reported. The metric is CPU time; wall time is kept beside it. Before anything is timed, outputs and all gradients
are compared with the definition in float64, and a wrong block is not timed. See `blocks.py` for the peers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
from blocks import Block, Shape, Weights, draw, ours, torchtitan_block, transformers_block
from reference import clear_tokens, errors, loads, reference
from torch import Tensor

from hagane.model import SIZES

ROOT = Path(__file__).parents[2]
TOKENS = {"1m": 2048, "40m": 2048, "400m": 1024, "4b": 512}
"""Tokens of a pass: what one core can do in a second."""
SKEWS = {"balanced": 0.0, "skewed": 0.4}
MARGIN = {"float32": 1e-4, "bfloat16": 4e-3}
ALLOWED = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest ||a - b|| / ||b|| of a block that is timed, by the type it computes in."""
LIMITS = {"eager": 2**32, "batched_mm": 2**30}
"""Most bytes that an experts implementation of transformers may copy in a pass; one that needs more is left out."""


def main() -> int:
    args = arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="In CPU autocast")
    began, load = time.monotonic(), os.getloadavg()
    result: dict[str, Any] = {
        "what": "one MoE layer, forward + backward, ms of CPU time a pass on one thread; ratio = peer / hagane",
        "date": date.today().isoformat(),
        "machine": machine(),
        "rounds": args.rounds,
        "cases": [],
    }
    for size in args.sizes:
        for dtype in args.dtypes:
            for skew in SKEWS:
                result["cases"].append(case(shape_of(size, args.tokens), dtype, skew, args))
                print(text(result["cases"][-1]), flush=True)
                result["load_average"] = {"before": load, "after": os.getloadavg()}
                result["seconds"] = round(time.monotonic() - began, 1)
                write(args.out, result)
                gc.collect()
    print(f"bench-moe: {args.out}")
    return 1 if any(row["wrong"] for c in result["cases"] for row in c["rows"].values()) else 0


def write(path: Path, result: dict[str, Any]) -> None:
    """After every case, so that a run that is stopped leaves what it measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(TOKENS), choices=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=list(MARGIN), choices=list(MARGIN))
    parser.add_argument("--tokens", type=int, default=0, help="tokens of a pass (0: what suits the size)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU seconds of one timed turn, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=["transformers", "torchtitan"], help="peers to measure")
    default = ROOT / "bench" / "results" / f"moe-{date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    return parser.parse_args()


def shape_of(size: str, tokens: int) -> Shape:
    """The layer of one of our sizes."""
    s = SIZES[size]
    return Shape(size, s.d_model, s.experts, s.top_k, s.expert_ffn, tokens or TOKENS.get(size, 256))


def make_blocks(shape: Shape, w: Weights, peers: list[str]) -> tuple[list[Block], dict[str, str]]:
    """Every implementation that can run here, and why others cannot."""
    blocks, absent = [ours(shape, w)], {}
    if "transformers" in peers:
        kinds = ["grouped_mm"]
        one = 3 * shape.d_model * shape.ffn * w.up.element_size()
        # eager: the gradient of all experts anew for each of them; batched_mm: an expert's weights for every pair
        needs = {"eager": shape.experts**2 * one, "batched_mm": shape.tokens * shape.top_k * one}
        for kind, copies in needs.items():
            if copies <= LIMITS[kind]:
                kinds.append(kind)
            else:
                absent[f"transformers {kind}"] = f"would copy {copies / 2**30:.1f} GiB a pass"
        blocks += [transformers_block(shape, w, kind) for kind in kinds]
    if "torchtitan" in peers:
        blocks += [torchtitan_block(shape, w, casts=casts) for casts in casts_of(w)]
    return blocks, absent


def casts_of(w: Weights) -> list[bool]:
    """With float32 weights torchtitan is measured as it is (in bfloat16) and with its casts taken out."""
    return [True] if w.router.dtype == torch.bfloat16 else [False, True]


def case(shape: Shape, dtype: str, skew: str, args: argparse.Namespace) -> dict[str, Any]:
    """Check and time all blocks on one shape."""
    kind: torch.dtype = getattr(torch, dtype)
    drawn = draw(shape, SKEWS[skew], args.seed)
    tokens = clear_tokens(shape, drawn.to(kind), MARGIN[dtype], args.seed)
    w, x = drawn.to(kind), tokens.to(kind)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(args.seed + 2)).to(kind)
    load = loads(shape, w, tokens)
    blocks, absent = make_blocks(shape, w, args.peers)
    rows: dict[str, dict[str, Any]] = {b.name: {"computes": b.computes} for b in blocks}
    truth = reference(shape, w, x, grad)
    for b in blocks:
        found = errors(b, x, grad, truth)
        rows[b.name].update(error=found, wrong=not max(found.values()) <= ALLOWED[b.computes])
    del truth
    blocks = [b for b in blocks if not rows[b.name]["wrong"]]
    for name, passes in alternate(blocks, x, grad, args).items():
        rows[name]["passes"] = passes
    summarise(rows, blocks[0])
    return {
        "size": shape.name,
        "shape": {k: v for k, v in vars(shape).items() if k != "name"},
        "dtype": dtype,
        "routing": skew,
        "load": {"busiest_over_mean": float(load.max() / load.mean()), "empty_experts": int((load == 0).sum())},
        "gflop": shape.flops / 1e9,
        "rows": rows,
        "left_out": absent,
        "best_peer": best_peer(rows, dtype),
    }


def alternate(
    blocks: list[Block], x: Tensor, grad: Tensor, args: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Timed turns of all blocks, `rounds` times; every second round backwards, the start moved on each time."""
    warm = {b.name: turn(b, x, grad, 1)["cpu_ms"] for b in blocks}
    repeats = {b.name: max(1, round(args.seconds * 1e3 / turn(b, x, grad, 1)["cpu_ms"])) for b in blocks}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in warm}
    for k in range(args.rounds):
        order = blocks[k % len(blocks) :] + blocks[: k % len(blocks)]
        for b in order[:: -1 if k % 2 else 1]:
            passes[b.name].append(turn(b, x, grad, repeats[b.name]))
    return passes


def turn(block: Block, x: Tensor, grad: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of one forward and backward pass, gradients made anew each time as in training."""
    leaf = x.clone().requires_grad_()
    with block.around():
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            block.forward(leaf).backward(grad)
            block.module.zero_grad(set_to_none=True)
            leaf.grad = None
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_ms": cpu / repeats * 1e3, "wall_ms": wall / repeats * 1e3}


def summarise(rows: dict[str, dict[str, Any]], first: Block) -> None:
    """Medians, and the median over rounds of each row's time over ours."""
    base = rows[first.name]["passes"]
    for row in rows.values():
        if passes := row.get("passes"):
            for unit in ("cpu", "wall"):
                row[f"{unit}_ms"] = statistics.median(p[f"{unit}_ms"] for p in passes)
                ratios = [p[f"{unit}_ms"] / q[f"{unit}_ms"] for p, q in zip(passes, base, strict=True)]
                row[f"{unit}_ratio"] = statistics.median(ratios)
            row["cpu_ratio_quartiles"] = statistics.quantiles(
                [p["cpu_ms"] / q["cpu_ms"] for p, q in zip(passes, base, strict=True)], n=4
            )


def best_peer(rows: dict[str, dict[str, Any]], dtype: str) -> dict[str, Any]:
    """The fastest peer that computes in the same type."""
    peers = {k: r for k, r in rows.items() if k != "hagane" and r["computes"] == dtype and "cpu_ratio" in r}
    if not peers:
        return {}
    name = min(peers, key=lambda k: peers[k]["cpu_ratio"])
    return {"name": name, "cpu_ratio": peers[name]["cpu_ratio"], "wall_ratio": peers[name]["wall_ratio"]}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    packages = {}
    for name in ("torch", "transformers", "torchtitan", "triton", "numpy"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "THP_MEM_ALLOC_ENABLE", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": packages,
        "environment": {n: os.environ[n] for n in names if n in os.environ},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []


def text(c: dict[str, Any]) -> str:
    """One case as a table."""
    s, load = c["shape"], c["load"]
    head = (
        f"\n{c['size']}: {s['tokens']} tokens x {s['d_model']}, {s['experts']} experts top {s['top_k']} of ffn"
        f" {s['ffn']}, {c['dtype']}, {c['routing']} (busiest {load['busiest_over_mean']:.1f} x mean,"
        f" {load['empty_experts']} empty), {c['gflop']:.1f} GFLOP"
    )
    lines = [head, f"  {'':28} {'CPU ms':>8} {'wall ms':>8} {'/ hagane':>9} {'GFLOP/s':>8} {'error':>8}"]
    for name, r in sorted(c["rows"].items(), key=lambda item: item[1].get("cpu_ms", 1e9)):
        error = max(r["error"].values())
        if "cpu_ms" not in r:
            lines.append(f"  {name:28} wrong: error {error:.1e}")
            continue
        note = "" if r["computes"] == c["dtype"] else f"  computes in {r['computes']}"
        rate = c["gflop"] / r["cpu_ms"] * 1e3
        ms = f"{r['cpu_ms']:8.2f} {r['wall_ms']:8.2f} {r['cpu_ratio']:9.3f}"
        lines.append(f"  {name:28} {ms} {rate:8.1f} {error:8.1e}{note}")
    return "\n".join(lines + [f"  {name:28} left out: {why}" for name, why in c["left_out"].items()])


if __name__ == "__main__":
    sys.exit(main())
