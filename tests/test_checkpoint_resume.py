"""A run that goes on with other ranks: the real engine's losses after a checkpoint, on every layout.

`python -m tests.test_checkpoint_resume` prints the table: largest difference over the next 50 steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hagane.engine import Engine, Layout, StepConfig, load_engine, save_checkpoint
from tests.checkpoint_fixture import RECORD, go_on
from tests.model_fixture import engine_of
from tests.rank_fixture import on_ranks

BEFORE = 2
"""Steps before the checkpoint: moments, averages and balance are not what they started as."""
SAVED = {"EP4": Layout(dp_shard=4, ep=4), "PP2 x EP2": Layout(pp=2, dp_shard=2, ep=2)}
RESUMED = {
    **SAVED,
    "EP2 x FSDP2": Layout(dp_shard=4, ep=2),
    "PP2 x FSDP2": Layout(pp=2, dp_shard=2),
    "TP2 x EP4": Layout(dp_shard=2, tp=2, ep=4),
    "CP2 x FSDP2": Layout(dp_shard=2, cp=2),
    "HSDP2 x EP2": Layout(dp_replicate=2, dp_shard=2, ep=2),
}
ALONE = "one process"


def made(layout: Layout | None = None) -> Engine:
    return engine_of(StepConfig(steps=200, warmup=2), layout=layout)


def losses(engine: Engine, steps: int) -> list[float]:
    return [line["loss"] for line in go_on(engine, steps)]


def resumed(folder: str, pairs: list[tuple[str, str]], steps: int) -> None:
    """On every rank: save on some layouts, go on on others; rank 0 writes the losses by (saved, resumed)."""
    place = Path(folder)
    found: list[tuple[str, str, list[float]]] = []
    for saved, layout in SAVED.items():
        if any(saved == one for one, _ in pairs):
            go_on(engine := made(layout), BEFORE)
            save_checkpoint(place / saved, engine, RECORD, {})
            found.append((saved, "never stopped", losses(engine, steps)))
    for saved, name in pairs:
        if name != ALONE:
            load_engine(place / saved / f"step-{BEFORE:06d}", engine := made(RESUMED[name]))
            found.append((saved, name, losses(engine, steps)))
    if dist.get_rank() == 0:
        (place / "losses.json").write_text(json.dumps(found))


def table(folder: Path, pairs: list[tuple[str, str]], steps: int) -> dict[tuple[str, str], float]:
    """Largest relative difference of a loss from the run that never stopped, by (saved, resumed)."""
    go_on(engine := made(), BEFORE)
    save_checkpoint(folder / ALONE, engine, RECORD, {})
    runs = {(ALONE, "never stopped"): losses(engine, steps)}
    on_ranks(4, resumed, str(folder), pairs, steps)
    runs |= {(saved, name): run for saved, name, run in json.loads((folder / "losses.json").read_text())}
    for saved, name in pairs:
        if name == ALONE:
            load_engine(folder / saved / f"step-{BEFORE:06d}", engine := made())
            runs[saved, name] = losses(engine, steps)
    never = {saved: runs[saved, "never stopped"] for saved, _ in pairs}
    return {
        (saved, name): max(abs(a / b - 1) for a, b in zip(runs[saved, name], never[saved], strict=True))
        for saved, name in pairs
    }


EVERY = [(saved, name) for saved in (*SAVED, ALONE) for name in (*RESUMED, ALONE)]


def test_a_run_goes_on_with_its_losses_on_another_layout(tmp_path: Path) -> None:
    pairs = [("EP4", name) for name in ("EP4", "EP2 x FSDP2", "PP2 x EP2", ALONE)]
    pairs += [("PP2 x EP2", "HSDP2 x EP2"), (ALONE, "TP2 x EP4")]
    rows = table(tmp_path, pairs, 3)
    assert max(rows.values()) <= 1e-6, rows
    assert rows["EP4", "EP4"] == 0.0, "not bit by bit"


@pytest.mark.slow
def test_the_next_fifty_losses_on_any_layout(tmp_path: Path) -> None:
    rows = table(tmp_path, EVERY, 50)
    assert max(rows.values()) <= 1e-6, rows
    assert all(error == 0.0 for (saved, name), error in rows.items() if saved == name), "not bit by bit"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
        for (saved, name), error in table(Path(where), EVERY, steps).items():
            print(f"saved at {saved:<12} resumed at {name:<12} {steps} losses, largest relative difference {error:.1e}")
