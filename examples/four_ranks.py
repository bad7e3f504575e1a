"""A recipe for four ranks that share one copy of the weights, and two of them each expert.

    hagane train --recipe examples/four_ranks.py:recipe --run runs/four

The same file on another number of ranks: `--resume --nproc 2` fits the layout; on a cluster torchrun starts the ranks
(examples/slurm).
"""

from dataclasses import replace

from hagane.engine import Compute, Layout, StepConfig
from hagane.train import TrainConfig
from hagane.train.recipes import demo


def recipe(datasets: tuple[str, ...]) -> TrainConfig:
    """The demo's run, shorter, sharded over four ranks."""
    return replace(
        demo(datasets),
        samples_per_step=96,
        step=StepConfig(steps=60, warmup=10, lr=2e-3),
        layout=Layout(dp_shard=4, ep=2),
        compute=Compute(recompute=True),
        save_every=5,
        held_out_every=30,
        held_out_samples=96,
    )
