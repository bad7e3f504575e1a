"""The grid of a scaling measurement: which sizes are trained on how much data for how long, by one recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hagane.engine import StepConfig
from hagane.model.sizes import size_named
from hagane.train import TrainConfig

WORLDS = {"mill": 400, "road": 80}
"""Machines, with the control steps of one of their episodes."""
AMOUNTS = (800, 3200, 12800)
"""Different samples of each machine in the training data, nested: the first episodes of the next larger set."""
JUDGE = 2400
"""Samples of each machine that no run trains on and every run is judged on."""
SAMPLES_PER_STEP = 30
"""Half of each machine; 30 samples of the largest size fill one packed row of 1,024 tokens."""
LR_AT_128 = 2e-3
"""Peak learning rate at width 128; it falls with the width (Yang et al. 2022, arXiv 2203.03466)."""


@dataclass(frozen=True)
class Cell:
    """One run to be made."""

    size: str
    amount: int
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.size}-u{self.amount:05d}-s{self.steps:05d}-r{self.seed}"

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dataset(world, self.amount) for world in WORLDS)


def dataset(world: str, amount: int | str) -> str:
    """Name of a machine's data set of so many samples, or of its "judge" set."""
    return f"{world}-{amount}"


def episodes(world: str, amount: int) -> int:
    """Episodes that hold so many samples."""
    return amount // WORLDS[world]


GRID: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "1m": ((12800, (60, 120, 240, 480, 960, 1920)), (800, (60, 240, 480, 960)), (3200, (240, 960))),
    "4m": ((12800, (60, 120, 240, 480, 960)), (800, (240, 480)), (3200, (480,))),
    "40m": ((12800, (60, 120, 240)), (800, (120,))),
}
"""By size, steps on each amount of data: the largest size, at 40 times the cost, gets few but real points."""
REPEATED = {"1m": (12800, 240), "4m": (12800, 120)}
"""Cells that are trained with three seeds."""


def cells() -> Iterator[Cell]:
    """All cells, small sizes first."""
    for size, amounts in GRID.items():
        yield from (Cell(size, amount, steps) for amount, many in amounts for steps in many)
        if size in REPEATED:
            yield from (Cell(size, *REPEATED[size], seed=seed) for seed in (1, 2))


def config(cell: Cell, lr_factor: float = 1.0) -> TrainConfig:
    """The fixed recipe: only the width moves the learning rate, only the steps move the schedule."""
    lr = LR_AT_128 * 128 / size_named(cell.size).d_model * lr_factor
    return TrainConfig(
        datasets=cell.datasets,
        head="l1",
        size=cell.size,
        seed=cell.seed,
        samples_per_step=SAMPLES_PER_STEP,
        step=StepConfig(steps=cell.steps, lr=lr, warmup=max(10, cell.steps // 10)),
        device="cpu",
        save_every=cell.steps,
        keep=1,
        held_out_every=cell.steps,
        held_out_samples=SAMPLES_PER_STEP,
    )
