"""TFLOP/s of our mixture-of-experts layer against the matmul ceiling of the same device in the same run.

    python bench/moe/throughput.py --device cuda --size 4b --tokens 16384 --dtype bfloat16

Forward + backward of `hagane.model.moe.MoE`, grouped and (for comparison) one expert at a time, eager and compiled.
The ceiling is the best of several dense matmuls measured on the device between the layer's rounds, so that clocks
and heat are those of the layer. Tested on a CPU with tiny sizes; the figure is meant for a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from blocks import Block, Shape, draw, ours

from hagane.model import SIZES
from hagane.model.moe import experts_loop

Run = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="4b", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--square", type=int, default=8192, help="side of the largest ceiling matmul")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    s, kind = SIZES[args.size], getattr(torch, args.dtype)
    results = []
    for tokens in args.tokens:
        shape = Shape(args.size, s.d_model, s.experts, s.top_k, s.expert_ffn, tokens)
        results.append(measure(shape, torch.device(args.device), kind, args.rounds, args.square, args.kinds))
        print(text(results[-1]), flush=True)
    if args.out:
        told = {"date": date.today().isoformat(), "machine": machine(args.device), "results": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        print(f"throughput: {args.out}")
    return 0


KINDS = ("eager", "compiled", "loop")


def measure(
    shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int, square: int, kinds: list[str]
) -> dict[str, Any]:
    """Forward + backward of the layer in several ways, and the ceiling, in alternating rounds.

    Args:
        shape: the layer and its tokens.
        device: where it runs.
        dtype: of weights and activations.
        rounds: alternations.
        square: side of the largest matmul of the ceiling.
        kinds: of `KINDS`.

    Returns:
        TFLOP/s of the ceiling and of each way (median over rounds), the median share of the ceiling inside a round,
        and on an accelerator the peak of allocated memory of each way.
    """
    x = torch.randn(shape.tokens, shape.d_model, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    w, grad = draw(shape, 0.0, 0).to(dtype, device), torch.randn_like(x)
    runs: dict[str, Run] = {kind: partial(step, block_of(kind, ours(shape, w)), x, grad) for kind in kinds}
    tops = ceilings(shape, device, dtype, square)
    memory = {name: peak_bytes(run, device) for name, run in runs.items()}
    repeats = {name: repeats_of(run, device) for name, run in {**runs, **tops_runs(tops)}.items()}
    seen: dict[str, list[float]] = {name: [] for name in [*runs, "ceiling"]}
    for _ in range(rounds):
        top = [flops / seconds(run, device, repeats[name]) for name, (run, flops) in tops.items()]
        seen["ceiling"].append(max(top) / 1e12)
        for name, run in runs.items():
            seen[name].append(shape.flops / seconds(run, device, repeats[name]) / 1e12)
    ways = {
        name: {
            "tflops": statistics.median(seen[name]),
            "share_of_ceiling": statistics.median(a / b for a, b in zip(seen[name], seen["ceiling"], strict=True)),
            "peak_bytes": memory[name],
        }
        for name in runs
    }
    return {
        "size": shape.name,
        "shape": {k: v for k, v in vars(shape).items() if k != "name"},
        "dtype": str(dtype).removeprefix("torch."),
        "flop": shape.flops,
        "ceiling_tflops": statistics.median(seen["ceiling"]),
        "ceiling_matmuls": list(tops),
        "ways": ways,
        "rounds": seen,
    }


def block_of(kind: str, block: Block) -> Block:
    """The block run eagerly, compiled, or with its experts one at a time."""
    if kind == "compiled":
        return Block(kind, block.module, torch.compile(block.forward), block.grads)
    if kind == "loop":
        moe = block.module
        moe.experts.forward = partial(experts_loop, moe.experts)  # type: ignore[union-attr, method-assign]
    return block


def step(block: Block, x: torch.Tensor, grad: torch.Tensor) -> None:
    """One forward and backward pass; gradients are made anew."""
    leaf = x.detach().requires_grad_()
    block.forward(leaf).backward(grad)
    block.module.zero_grad(set_to_none=True)


def ceilings(shape: Shape, device: torch.device, dtype: torch.dtype, square: int) -> dict[str, tuple[Run, float]]:
    """Dense matmuls and their FLOPs: two squares, and the layer's own widths with all rows in one matmul."""
    rows = shape.tokens * shape.top_k
    sizes = [(square, square, square), (square // 2, square // 2, square // 2), (rows, shape.d_model, 2 * shape.ffn)]
    found: dict[str, tuple[Run, float]] = {}
    for m, k, n in sizes:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
        found[f"{m}x{k}x{n}"] = (partial(torch.mm, a, b), 2.0 * m * k * n)
    return found


def tops_runs(tops: dict[str, tuple[Run, float]]) -> dict[str, Run]:
    """The calls without their FLOPs."""
    return {name: run for name, (run, _) in tops.items()}


def seconds(run: Run, device: torch.device, repeats: int) -> float:
    """Seconds of one call, the device waited for at both ends."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - started) / repeats


def repeats_of(run: Run, device: torch.device, least_s: float = 0.1) -> int:
    """Calls that fill a timed turn, after two that warm up."""
    for _ in range(2):
        run()
    return max(1, round(least_s / seconds(run, device, 1)))


def peak_bytes(run: Run, device: torch.device) -> int:
    """Most bytes allocated on an accelerator in one call, weights included; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    told = {"torch": torch.__version__, "python": platform.python_version(), "device": device}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        told |= {"name": properties.name, "memory_bytes": str(properties.total_memory), "cuda": str(torch.version.cuda)}
    return told


def text(r: dict[str, Any]) -> str:
    """One result as a table."""
    s = r["shape"]
    lines = [
        f"\n{r['size']}: {s['tokens']} tokens x {s['d_model']}, {s['experts']} experts top {s['top_k']} of ffn"
        f" {s['ffn']}, {r['dtype']}; ceiling {r['ceiling_tflops']:.3g} TFLOP/s"
    ]
    for name, way in r["ways"].items():
        memory = f", peak {way['peak_bytes'] / 2**30:.2f} GiB" if way["peak_bytes"] else ""
        lines.append(f"  {name:9} {way['tflops']:8.3g} TFLOP/s = {way['share_of_ceiling']:.1%} of the ceiling{memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
