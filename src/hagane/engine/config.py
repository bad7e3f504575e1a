"""StepConfig: optimiser and loss settings of a run; they decide what is learnt, whatever the layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hagane.terms import ConfigError


@dataclass(frozen=True)
class StepConfig:
    """Optimiser and loss settings.

    Raises:
        ConfigError: an unknown precision or optimiser.
    """

    steps: int = 1200
    """Optimiser steps in all; fixes the learning-rate schedule."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    warmup: int = 50
    """Steps of linear warm-up before the cosine decay."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW moment decays."""
    weight_decay: float = 0.01
    """AdamW weight decay on matrices."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.995
    """Decay of the averaged weights that are served."""
    next_weight: float = 0.1
    """Weight of the second loss (next observation)."""
    mask_rate: float = 0.05
    """Share of samples with one channel hidden; they serve the second loss only."""
    balance_rate: float = 0.01
    """Step of the experts' balancing bias."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside layers and adamw for the rest, at the same rate and decay."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers of the forward and backward; weights, averages, moments and gradient sums are fp32 in any case."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"unknown precision {self.precision!r}", next_step='use "fp32" or "bf16"')
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError(f"unknown optimiser {self.optimiser!r}", next_step='use "adamw" or "muon"')


def learning_rate(config: StepConfig, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))
