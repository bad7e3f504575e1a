"""Real training steps of one rank on a real device: tokens/s, TFLOP/s, MFU, and memory beside what the dry run said.

    make bench-gpu                  (or: python bench/gpu/steps.py --help)

The 400m and the 4b model whole on one GPU, and one rank's slice of the 1t model (its layers, its experts, its shard of
the optimiser) among 1,023 ranks that do not exist (`loopback.py`): real memory and arithmetic, no links. MFU is against
the best dense matmul measured on the device between the steps. Every number goes to JSON; a case that fails is named
there with its error and the others are measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from loopback import loopback

sys.path.insert(0, str(Path(__file__).parents[1] / "moe"))

from blocks import Shape
from throughput import ceilings, machine, repeats_of, seconds, wait

from hagane.engine.checkpoint import Saver
from hagane.engine.config import StepConfig
from hagane.engine.engine import Engine, cut_model, give_memory
from hagane.engine.layout import Compute, Layout
from hagane.engine.step import train_step
from hagane.model import SIZES
from hagane.plan.consortium import consortium_config, deal
from hagane.plan.dry import Question, RankReport, dry_run, fullest_rank, rank_batch, rank_routing
from hagane.terms import Batch, RunRecord

ROOT = Path(__file__).parents[2]
RECORD = RunRecord("bench-gpu", "", "", {}, {}, {}, 0, 0)


@dataclass(frozen=True)
class Case:
    """A step to be measured."""

    name: str
    size: str
    layout: Layout
    compute: Compute
    tokens: int
    stage: int = 0
    members: int = 0

    @property
    def question(self) -> Question:
        return Question(
            consortium_config(self.size, self.members),
            self.layout,
            self.compute,
            StepConfig(precision="bf16", mask_rate=0.0),
            self.tokens,
        )


ONE = Layout()
SLICE = Layout(pp=16, dp_shard=64, ep=32)
CASES = [
    Case("400m", "400m", ONE, Compute(microbatches=2), 16384),
    Case("400m compiled", "400m", ONE, Compute(microbatches=2, compile=True), 16384),
    Case("4b", "4b", ONE, Compute(microbatches=2, recompute=True), 16384),
    Case("4b compiled", "4b", ONE, Compute(microbatches=2, recompute=True, compile=True), 16384),
    Case("1t slice, first", "1t", SLICE, Compute(microbatches=32, recompute=True), 4096, 0),
    Case("1t slice, middle", "1t", SLICE, Compute(microbatches=16, recompute=True), 4096, 8),
    Case("1t slice, last", "1t", SLICE, Compute(microbatches=16, recompute=True), 4096, 15),
]
TINY = [
    Case("1m", "1m", ONE, Compute(microbatches=2), 1700, members=2),
    Case("1m slice", "1m", Layout(pp=2, dp_shard=4, ep=2), Compute(microbatches=2, recompute=True), 1700, 1, 2),
]
"""What a CPU can do in seconds: for the bench's own test."""


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    device = torch.device(args.device)
    cases = [c for c in (TINY if args.tiny else CASES) if not args.only or any(o in c.name for o in args.only)]
    result: dict[str, Any] = {
        "what": "training steps of one rank; memory beside the dry run's",
        "date": date.today().isoformat(),
        "machine": machine(args.device),
        "cases": [],
    }
    for case in cases:
        try:
            told = measure(case, device, args.rounds, args.square, args.checkpoint)
        except Exception as e:
            traceback.print_exc()
            told = {"error": f"{type(e).__name__}: {e}"}
        told = {"name": case.name, "layout": str(case.layout), **told}
        result["cases"].append(told)
        print(text(told), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        clear(device)
    print(f"bench-gpu: {args.out}")
    return 1 if any("error" in c for c in result["cases"]) else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of a case")
    parser.add_argument("--square", type=int, default=8192, help="side of the largest ceiling matmul")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name holds one of these")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU can do")
    parser.add_argument("--checkpoint", action="store_true", help="also save one, to a folder that is removed")
    default = ROOT / "bench" / "results" / f"gpu-{date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    return parser.parse_args(argv)


def measure(case: Case, device: torch.device, rounds: int, square: int, save: bool) -> dict[str, Any]:
    """One case: the dry run, then the same rank's steps with real tensors."""
    question = case.question
    rank = fullest_rank(question, case.stage)
    said = dry_run(question, rank)
    with loopback(rank, case.layout.ranks):
        engine, batch = real_rank(question, rank, device)
        for _ in range(2):
            train_step(engine, batch)
        reset_peak(device)
        train_step(engine, batch)
        memory = peak(device)
        top = ceilings(shape_of(case), device, torch.bfloat16, square)
        repeats = {name: repeats_of(run, device) for name, (run, _) in top.items()}
        steps, ceiling = [], []
        for _ in range(rounds):
            ceiling.append(max(flops / seconds(run, device, repeats[name]) for name, (run, flops) in top.items()))
            steps.append(timed(lambda: train_step(engine, batch), device))
        # ranks agree on who writes what: a slice has nobody to ask, and would wait for them
        alone = case.layout.ranks == 1
        stall = checkpoint_stall(engine, batch, device, rounds) if save and alone else {}
        engine.drop_gradients()
    return {**figures(case, said, steps, ceiling), "memory": beside(memory, said), "checkpoint": stall}


def real_rank(question: Question, rank: int, device: torch.device) -> tuple[Engine, Batch]:
    """The rank's engine with weights of noise, and what it reads."""
    reading = deal(question.config, question.layout.data_ranks, question.tokens)
    splits = rank_routing(question, reading, rank).planned(rank % question.layout.ep)
    cut = cut_model(question.config, question.step, question.layout, question.compute, device.type, splits)
    engine = give_memory(cut, question.step, 0, question.compute, device)
    with torch.no_grad():
        for name, t in engine.local.items():
            t.fill_(1.0) if name.endswith(".gain") else t.normal_(std=0.02)
            engine.ema[name].copy_(t)
    return engine, rank_batch(question, reading, engine.mesh, seed=0)


def figures(case: Case, said: RankReport, steps: list[float], ceiling: list[float]) -> dict[str, Any]:
    """Speed: model operations leave recomputation out, hardware operations are those that were counted."""
    model = sum(forward + backward for forward, backward, _ in said.parts.values())
    counted, tokens = sum(said.flops.values()), said.tokens * said.microbatches
    shares = [model / s / c for s, c in zip(steps, ceiling, strict=True)]
    return {
        "layers": list(said.layers),
        "tokens_a_step": tokens,
        "step_s": statistics.median(steps),
        "tokens_a_second": tokens / statistics.median(steps),
        "model_tflops": model / statistics.median(steps) / 1e12,
        "counted_tflops": counted / statistics.median(steps) / 1e12,
        "ceiling_tflops": statistics.median(ceiling) / 1e12,
        "mfu_of_ceiling": statistics.median(shares),
        "rounds": {"step_s": steps, "ceiling_tflops": [c / 1e12 for c in ceiling]},
    }


def beside(memory: dict[str, int], said: RankReport) -> dict[str, Any]:
    """What the device held, beside what the dry run said; the ratio is what the dry run is judged by (5%)."""
    told: dict[str, Any] = {**memory, "dry_run": said.peak.nbytes, "dry_run_kinds": dict(said.peak.kinds)}
    if memory["allocated"]:
        told["dry_run_over_allocated"] = said.peak.nbytes / memory["allocated"]
    return told


def checkpoint_stall(engine: Engine, batch: Batch, device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds that a save takes from training: in the call itself, and in the steps beside it."""
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), engine)
        plain = [timed(lambda: train_step(engine, batch), device) for _ in range(rounds)]
        began = time.perf_counter()
        blocked = timed(lambda: saver.save(RECORD, {}), device)
        beside = []
        while saver.thread is not None and saver.thread.is_alive():
            beside.append(timed(lambda: train_step(engine, batch), device))
        saver.wait()
        whole = time.perf_counter() - began
        saver.close()
    slower = sum(beside) - len(beside) * statistics.median(plain)
    return {"blocked_s": blocked, "slower_s": slower, "steps_beside": len(beside), "whole_after_s": whole}


def shape_of(case: Case) -> Shape:
    """The model's expert layer: its products are among the ceiling's."""
    s = SIZES[case.size]
    return Shape(case.size, s.d_model, s.experts, s.top_k, s.expert_ffn, case.tokens)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device waited for at both ends."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def reset_peak(device: torch.device) -> None:
    """Forget the highest marks of memory."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> dict[str, int]:
    """Bytes allocated and reserved at most since the reset; 0 on a CPU, which keeps no such marks."""
    if device.type != "cuda":
        return {"allocated": 0, "reserved": 0}
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


def clear(device: torch.device) -> None:
    """Let go of a case's memory before the next."""
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def text(c: dict[str, Any]) -> str:
    """One case in a few lines."""
    if "error" in c:
        return f"\n{c['name']}: {c['error']}"
    m, gib = c["memory"], 2**30
    said = f"{m['dry_run'] / gib:.2f} GiB by the dry run"
    if m["allocated"]:
        ratio = m["dry_run_over_allocated"]
        said += f" = {ratio:.1%} of {m['allocated'] / gib:.2f} allocated ({m['reserved'] / gib:.2f} reserved)"
    lines = [
        f"\n{c['name']} ({c['layout']}): {c['tokens_a_second']:,.0f} tokens/s, {c['step_s']:.3f} s a step",
        f"  {c['model_tflops']:.3g} TFLOP/s of the model, {c['counted_tflops']:.3g} with recomputation; "
        f"{c['mfu_of_ceiling']:.1%} of the ceiling's {c['ceiling_tflops']:.3g}",
        f"  memory: {said}",
    ]
    if s := c["checkpoint"]:
        lines.append(
            f"  checkpoint: {s['blocked_s']:.2f} s blocked, {s['slower_s']:.2f} s lost over {s['steps_beside']} steps "
            f"beside it, whole after {s['whole_after_s']:.1f} s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
