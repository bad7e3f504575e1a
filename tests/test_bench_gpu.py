"""The GPU bench's own code, on sizes that a CPU can do; its figures are for a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the root, with this interpreter's package."""
    env = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **environment}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_steps_of_a_whole_model_and_of_a_slice_among_ranks_that_do_not_exist(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ("--tiny", "--device", "cpu", "--rounds", "1", "--square", "128", "--checkpoint", "--out", str(out))
    done = run(sys.executable, "bench/gpu/steps.py", *words)
    assert done.returncode == 0, done.stderr
    whole, part = json.loads(out.read_text())["cases"]
    for case in (whole, part):
        assert case["tokens_a_second"] > 0
        assert case["counted_tflops"] >= case["model_tflops"] > 0
        assert case["memory"]["dry_run"] > 0
    assert len(part["layers"]) < len(whole["layers"])
    # a slice cannot save: its neighbours do not exist
    assert whole["checkpoint"]["whole_after_s"] > 0
    assert part["checkpoint"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_script_says_what_to_do() -> None:
    done = run("sh", "scripts/bench_gpu.sh", sys.executable)
    assert done.returncode == 1
    assert "finds a GPU" in done.stderr
    assert "next:" in done.stderr
