"""A run that goes on with other ranks: the real engine's losses after a checkpoint, on every layout.

`python -m tests.test_checkpoint_resume` prints the table of the next 50 steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hagane.engine import Engine, Layout, StepConfig, load_engine, save_checkpoint
from hagane.model.moe import MoE
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
TIE = 5e-7
"""Scores of two experts that differ by no more are a tie: a few roundings of float32."""


def made(layout: Layout | None = None) -> Engine:
    return engine_of(StepConfig(steps=200, warmup=2), layout=layout)


def losses(engine: Engine, steps: int) -> list[float]:
    return [line["loss"] for line in go_on(engine, steps)]


def saved_and_on(folder: str, saved: str, steps: int) -> None:
    """On every rank: train, save, go on without stopping; rank 0 writes the losses."""
    go_on(engine := made(SAVED[saved]), BEFORE)
    save_checkpoint(Path(folder) / saved, engine, RECORD, {})
    write(Path(folder) / f"{saved}.json", losses(engine, steps))


def resumed(folder: str, saved: str, name: str, steps: int) -> None:
    """On every rank: go on with a checkpoint on another layout; rank 0 writes the losses."""
    load_engine(Path(folder) / saved / f"step-{BEFORE:06d}", engine := made(RESUMED[name]))
    write(Path(folder) / f"{saved} {name}.json", losses(engine, steps))


def write(path: Path, found: list[float]) -> None:
    if dist.get_rank() == 0:
        path.write_text(json.dumps(found))


@dataclass(frozen=True)
class Pair:
    """One run that went on, beside the one that never stopped."""

    error: float
    """Largest relative difference of a loss, up to where they part."""
    parts_at: int
    """First step that differs by more than 1e-6, counted from the checkpoint; the number of steps if none does."""
    after: float
    """Largest relative difference from there on; 0 if they never part."""


def table(folder: Path, pairs: list[tuple[str, str]], steps: int) -> dict[tuple[str, str], Pair]:
    """How each pair (saved, resumed) agrees with the run that never stopped."""
    go_on(engine := made(), BEFORE)
    save_checkpoint(folder / ALONE, engine, RECORD, {})
    never = {ALONE: losses(engine, steps)}
    # processes of their own each time: a thread of every group that a process ever made keeps asking for work
    for saved in SAVED:
        if any(saved == one for one, _ in pairs):
            on_ranks(4, saved_and_on, str(folder), saved, steps)
            never[saved] = json.loads((folder / f"{saved}.json").read_text())
    runs: dict[tuple[str, str], list[float]] = {}
    for saved, name in pairs:
        if name == ALONE:
            load_engine(folder / saved / f"step-{BEFORE:06d}", engine := made())
            runs[saved, name] = losses(engine, steps)
        else:
            on_ranks(4, resumed, str(folder), saved, name, steps)
            runs[saved, name] = json.loads((folder / f"{saved} {name}.json").read_text())
    out = {}
    for saved, name in pairs:
        errors = [abs(a / b - 1) for a, b in zip(runs[saved, name], never[saved], strict=True)]
        at = parted(runs[saved, name], never[saved])
        out[saved, name] = Pair(max(errors[:at], default=0.0), at, max(errors[at:], default=0.0))
    return out


def margins(checkpoint: Path, steps: int) -> list[float]:
    """By step, how far the last expert that a token chose is from the first that it did not; the smallest of all.

    Where that is one rounding (6e-8 of a score near 1), two orders of a sum choose differently, and from there on
    two runs are equally right and no longer the same: no layout can keep that from happening to another.
    """
    found: list[float] = []
    route = MoE.route

    def seen(moe: MoE, x: Tensor, gate_M: Tensor) -> tuple[Tensor, Tensor]:
        score = torch.sigmoid((x @ moe.router.t()).float()).detach() + moe.bias_GE[gate_M]
        best = score.masked_fill(~moe.permitted_GE[gate_M], -1.0).topk(moe.top_k + 1, -1).values
        found[-1] = min(found[-1], float((best[:, -2] - best[:, -1]).min()))
        return route(moe, x, gate_M)

    load_engine(checkpoint, engine := made())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MoE, "route", seen)
        for _ in range(steps):
            found.append(float("inf"))
            go_on(engine, 1)
    return found


def parted(run: list[float], never: list[float]) -> int:
    """The first step whose loss differs by more than 1e-6; the number of steps where there is none."""
    return next((i for i, (a, b) in enumerate(zip(run, never, strict=True)) if abs(a / b - 1) > 1e-6), len(run))


EVERY = [(saved, name) for saved in (*SAVED, ALONE) for name in (*RESUMED, ALONE)]


def test_a_run_goes_on_with_its_losses_on_another_layout(tmp_path: Path) -> None:
    pairs = [("EP4", name) for name in ("EP4", "EP2 x FSDP2", "PP2 x EP2", ALONE)]
    pairs += [("PP2 x EP2", "HSDP2 x EP2"), (ALONE, "TP2 x EP4")]
    rows = table(tmp_path, pairs, 3)
    assert all(row.parts_at == 3 for row in rows.values()), rows
    assert rows["EP4", "EP4"].error == 0.0, "not bit by bit"


@pytest.mark.slow
def test_the_next_fifty_losses_on_any_layout(tmp_path: Path) -> None:
    rows = table(tmp_path, EVERY, 50)
    assert all(row.error == 0.0 and row.parts_at == 50 for (saved, name), row in rows.items() if saved == name)
    near = {saved: margins(tmp_path / saved / f"step-{BEFORE:06d}", 50) for saved in (*SAVED, ALONE)}
    for (saved, name), row in rows.items():
        assert row.parts_at == 50 or near[saved][row.parts_at] <= TIE, (saved, name, row)
    assert sum(row.parts_at < 50 for row in rows.values()) <= 2, "ties are rare"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
        rows = table(Path(where), EVERY, steps)
        near = {saved: margins(Path(where) / saved / f"step-{BEFORE:06d}", steps) for saved in (*SAVED, ALONE)}
        for (saved, name), row in rows.items():
            print(f"saved at {saved:<12} resumed at {name:<12} {row.parts_at} losses, at most {row.error:.1e} apart")
            if row.parts_at < steps:
                margin = near[saved][row.parts_at]
                print(f"    then two experts tie within {margin:.1e}, and the losses are up to {row.after:.1e} apart")
