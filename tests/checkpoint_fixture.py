"""A small engine in training, and damage to its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from hagane.engine import Engine, StepConfig, balance_experts, train_step
from hagane.terms import RunRecord
from tests.model_fixture import engine_of, make_batch

RECORD = RunRecord("r", "c", "d", {"arm-demo": "1"}, {"arm-demo": "2"}, {"arm-demo": "member-robots"}, 0, 0)


def fresh(**kwargs: object) -> Engine:
    return engine_of(StepConfig(steps=20, warmup=2), **kwargs)  # type: ignore[arg-type]


def go_on(engine: Engine, steps: int) -> list[dict[str, float]]:
    """Losses of the next steps."""
    lines = []
    for _ in range(steps):
        lines.append(train_step(engine, make_batch(engine.step)))
        balance_experts(engine)
    return lines


def trained(steps: int = 3) -> Engine:
    engine = fresh()
    go_on(engine, steps)
    return engine


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of everything that a checkpoint must bring back."""
    moments = {f"{kind}/{n}": t for kind, table in engine.moments().items() for n, t in table.items()}
    averages = {f"ema/{n}": t for n, t in engine.ema.items()}
    return {n: t.detach().clone() for n, t in {**engine.model.state_dict(), **averages, **moments}.items()}


def flip(path: Path, at: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())
