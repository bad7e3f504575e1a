"""The benchmark of the expert layer: it runs, and a block that is wrong is not timed. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench" / "moe"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The modules of bench/moe."""
    sys.path.insert(0, str(BENCH))
    try:
        import blocks
        import reference
        import throughput
    finally:
        sys.path.remove(str(BENCH))
    return blocks, reference, throughput


def tiny(blocks: Any) -> Any:
    return blocks.Shape("tiny", d_model=16, experts=6, top_k=2, ffn=8, tokens=40)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, BENCH / words[0], *words[1:]]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("skew", [0.0, 0.6])
def test_our_block_is_the_reference_in_float64(bench: Any, skew: float) -> None:
    blocks, reference, _ = bench
    shape = tiny(blocks)
    w = blocks.draw(shape, skew, 0)
    x = reference.clear_tokens(shape, w, 1e-4, 0)
    grad = torch.randn(x.shape)
    found = reference.errors(blocks.ours(shape, w), x, grad, reference.reference(shape, w, x, grad))
    assert set(found) == {"out", "x", "router", "up", "down", "shared_up", "shared_down"}
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("fault", ["router", "up", "down", "shared_up", "shared_down", "bias"])
def test_a_block_with_other_weights_is_found(bench: Any, fault: str) -> None:
    blocks, reference, _ = bench
    shape = tiny(blocks)
    w = blocks.draw(shape, 0.6, 0)  # a bias without skew moves nothing
    x = reference.clear_tokens(shape, w, 1e-4, 0)
    grad = torch.randn(x.shape)
    truth = reference.reference(shape, w, x, grad)
    other = blocks.Weights(**{**vars(w), fault: getattr(w, fault).flip(0) + 0.01})
    assert max(reference.errors(blocks.ours(shape, other), x, grad, truth).values()) > 1e-3


def test_a_dropped_gradient_is_found(bench: Any) -> None:
    blocks, reference, _ = bench
    shape = tiny(blocks)
    w = blocks.draw(shape, 0.0, 0)
    x = reference.clear_tokens(shape, w, 1e-4, 0)
    grad = torch.randn(x.shape)
    truth = reference.reference(shape, w, x, grad)
    block = blocks.ours(shape, w)
    inner = block.module.experts.forward
    block.module.experts.forward = lambda rows, ends: inner(rows.detach(), ends)
    found = reference.errors(block, x, grad, truth)
    assert found["x"] > 1e-2 > 1e-5 > found["out"]


def test_tokens_are_clear_and_skew_is_skewed(bench: Any) -> None:
    blocks, reference, _ = bench
    shape = tiny(blocks)
    even, skewed = blocks.draw(shape, 0.0, 0), blocks.draw(shape, 2.0, 0)
    x = reference.clear_tokens(shape, even, 0.01, 0)
    assert len(x) == shape.tokens and float(reference.choose(shape, even, x)[2].min()) > 0.009
    a, b = reference.loads(shape, even, x), reference.loads(shape, skewed, x)
    assert a.sum() == b.sum() == shape.tokens * shape.top_k and b.max() > a.max()


def test_the_benchmark_runs_without_peers(tmp_path: Path) -> None:
    out = tmp_path / "moe.json"
    words = ("--sizes", "1m", "--tokens", "32", "--rounds", "2", "--seconds", "0.001", "--peers", "--out", str(out))
    done = run("run.py", *words)
    assert done.returncode == 0, done.stderr
    cases = json.loads(out.read_text())["cases"]
    assert {(c["dtype"], c["routing"]) for c in cases} == {
        (d, r) for d in ("float32", "bfloat16") for r in ("balanced", "skewed")
    }
    assert all(c["rows"]["hagane"]["cpu_ms"] > 0 and not c["rows"]["hagane"]["wrong"] for c in cases)


def test_throughput_is_flops_over_time(bench: Any) -> None:
    blocks, _, throughput = bench
    told = throughput.measure(tiny(blocks), torch.device("cpu"), torch.float32, 2, 32, ["eager", "loop"])
    assert told["flop"] == 3 * 2 * 40 * ((2 + 1) * 3 * 16 * 8 + 16 * 6)
    for way in told["ways"].values():
        assert way["tflops"] > 0 and way["share_of_ceiling"] > 0
    assert told["ceiling_tflops"] == pytest.approx(sum(told["rounds"]["ceiling"]) / 2)


def test_flops_are_those_that_torch_counts(bench: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    blocks, _, throughput = bench
    shape = tiny(blocks)
    block = throughput.block_of("loop", blocks.ours(shape, blocks.draw(shape, 0.0, 0)))
    x = torch.randn(shape.tokens, shape.d_model)
    with FlopCounterMode(display=False) as counter:
        throughput.step(block, x, torch.ones_like(x))
    assert counter.get_total_flops() == shape.flops
