"""TrainConfig: everything that decides a run, resolved; written to runs/<id>/config.toml before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hagane.engine import Compute, Layout, StepConfig
from hagane.model.config import Head
from hagane.terms import ConfigError, Purpose
from hagane.train.spike_config import SpikeConfig


@dataclass(frozen=True)
class TrainConfig:
    """A run, in full. Two runs with equal configs on equal data give equal weights on the same machine kind.

    Raises:
        ConfigError: no data set, weights for data sets that are not there, a count below 1.
    """

    datasets: tuple[str, ...]
    """Data sets of the catalog to train on."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of each data set; empty means equal shares."""
    temperature: float = 1.0
    """Flattens the shares above 1."""
    purpose: Purpose = "anchor"
    """What the contracts are asked for: "anchor" or "member-training"."""
    size: str = "1m"
    """1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    head: Head = "flow"
    """flow or l1."""
    experts: Mapping[str, int] = field(default_factory=dict)
    """Experts of each owner in every layer; empty means the even split."""
    seed: int = 0
    """Seed of weights, order and noise."""
    samples_per_step: int = 192
    """Samples in one optimiser step, over all embodiments."""
    step: StepConfig = field(default_factory=StepConfig)
    """Optimiser and losses."""
    layout: Layout = field(default_factory=Layout)
    """Ranks along each axis of parallelism."""
    compute: Compute = field(default_factory=Compute)
    """How a step is carried out on them."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    """When a step is not taken, and when the run goes back to a checkpoint."""
    device: str = "auto"
    """auto, cpu, or a torch device name."""
    save_every: int = 200
    """Optimiser steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoints whose step this divides; 0 keeps none of them."""
    held_out_every: int = 100
    """Steps between looks at episodes that training never sees."""
    held_out_samples: int = 384
    """Samples of each such look."""
    pictures: Literal["jpeg", "video"] = "jpeg"
    """How the training cache keeps pictures: "video" takes a tenth of the disk and draws from pools of episodes."""
    watch_s: float = 600.0
    """Seconds without a step or a collective on any rank after which a run that hangs is ended; 0 never."""
    loader_workers: int = 0
    """Threads that make batches ahead of time; 0 makes each when it is needed."""
    split: str = ""
    """A file of `hagane catalog split` that says which episodes or sites are held out; empty holds out a twentieth of
    the episodes of each data set."""
    init_vision: str = ""
    """A safetensors file whose patch embedding starts the image path; empty for none."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("a run needs at least one data set", next_step="list them with `hagane catalog ls`")
        stray = sorted(set(self.weights) - set(self.datasets))
        if stray:
            raise ConfigError(f"weights for data sets that are not trained on: {', '.join(stray)}")
        if min(self.samples_per_step, self.save_every, self.keep, self.held_out_every, self.step.steps) < 1:
            raise ConfigError("samples_per_step, save_every, keep, held_out_every and steps must be at least 1")
        if min(self.loader_workers, self.keep_every, self.watch_s) < 0:
            raise ConfigError("loader_workers, keep_every and watch_s cannot be negative")
        if self.purpose not in ("anchor", "member-training", "finetune", "distil"):
            raise ConfigError(f"purpose {self.purpose!r} trains nothing", next_step='use "anchor" or "member-training"')

    @property
    def shares(self) -> dict[str, float]:
        """Weight of every data set."""
        return {name: float(self.weights.get(name, 1.0 if not self.weights else 0.0)) for name in self.datasets}


def vision_file(config: TrainConfig) -> Path | None:
    """The file that starts the image path, if any."""
    return Path(config.init_vision) if config.init_vision else None
