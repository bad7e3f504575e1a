"""The benchmark of training data: it runs, and rows that are wrong cannot win. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench" / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny source, and rows 3, 17 and 30 of it as a loader would give them."""
    sys.path.insert(0, str(BENCH))
    try:
        import source as sources
        import worker
    finally:
        sys.path.remove(str(BENCH))
    source = sources.make_source(tmp_path_factory.mktemp("source"), sources.Spec(2, 20))
    rows = np.array([3, 17, 30])
    pictures = np.stack([[source.picture(r, c) for c in range(2)] for r in rows])
    actions = np.stack([source.chunk(r)[0] for r in rows])
    return source, worker, worker.Loaded(rows, pictures, source.state[rows], actions)


def test_right_samples_pass(made: Any) -> None:
    source, worker, loaded = made
    assert [worker.compare(source, loaded, k, 40.0) for k in range(3)] == [99.0] * 3


def test_the_source_is_a_function_of_its_seed(made: Any, tmp_path: Path) -> None:
    source, _, _ = made
    again = sys.modules["source"].make_source(tmp_path, source.spec)
    assert again.jpegs.tobytes() == source.jpegs.tobytes() and (again.action == source.action).all()
    sizes = np.diff(source.offsets)
    assert 8_000 < np.median(sizes) < 16_000


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("state", "wrong state"),
        ("action", "wrong actions"),
        ("neighbour", "the picture is that of row"),
        ("other camera", "row 3, cam0: "),
        ("row", "wrong state"),
    ],
)
def test_wrong_samples_are_refused(made: Any, fault: str, told: str) -> None:
    source, worker, loaded = made
    pictures, action, state, rows = loaded.pictures, loaded.action, loaded.state, loaded.rows
    if fault == "state":
        state = state + np.float32(1e-6)
    elif fault == "action":
        action = np.roll(action, 1, axis=1)
    elif fault == "neighbour":
        pictures = np.stack([[source.picture(r + 1, c) for c in range(2)] for r in rows])
    elif fault == "other camera":
        pictures = pictures[:, ::-1]
    else:
        rows = rows + 1
    wrong = replace(loaded, rows=rows, pictures=pictures, action=action, state=state)
    with pytest.raises(ValueError, match=told):
        worker.compare(source, wrong, 0, 28.0)


def test_commands_past_the_end_are_not_compared(made: Any) -> None:
    """Loaders pad in their own ways."""
    source, worker, loaded = made
    chunk, inside = source.chunk(17)
    assert inside == 3 and (chunk[3:] == chunk[2]).all()
    action = loaded.action.copy()
    action[1, inside:] = 0
    worker.compare(source, replace(loaded, action=action), 1, 40.0)


def test_one_run_from_source_to_table(tmp_path: Path) -> None:
    out = tmp_path / "data.json"
    options = "--episodes 4 --steps 24 --rounds 1 --seconds 0.02 --one-python --rows hagane hdf5 webdataset"
    command = [sys.executable, BENCH / "run.py", *options.split(), "--work", tmp_path / "work", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    told = json.loads(out.read_text("utf-8"))
    # a peer that is not installed is named, its row is empty, and the exit code says that the run is not whole
    assert done.returncode == 1 and "webdataset: NOT measured" in done.stdout, done.stdout + done.stderr
    assert "problem" in told["rows"]["webdataset"]
    for name in ("hagane", "hdf5"):
        row = told["rows"][name]
        assert row["samples_per_cpu_s"]["median"] > 0 and row["check"]["worst_psnr_db"] >= 40, row
        assert 16_000 < row["bytes_per_sample"] < 64_000
    assert told["rows"]["hagane"]["facts"]["pictures_per_sample"] == 2
    assert told["decode_settings"] and told["ceiling"]["median"] > 0
    assert set(told["ratios"]) == {"over hdf5", "share of the decode ceiling"}
    assert "what decoding alone allows" in done.stdout and told["load_average"]
