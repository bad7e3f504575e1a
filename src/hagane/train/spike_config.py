"""SpikeConfig: when a step is not taken and when a run goes back; see `hagane.train.spike`."""

from __future__ import annotations

from dataclasses import dataclass

from hagane.terms import ConfigError

LEAST = 32
"""Newest steps whose median a new one is compared with; before so many only numbers that are not finite are judged."""


@dataclass(frozen=True)
class SpikeConfig:
    """When a step is not taken and when a run goes back; changing these changes no step that was taken.

    Raises:
        ConfigError: a number that makes no sense.
    """

    window: int = 128
    """Newest steps that the noise is taken from."""
    z: float = 6.0
    """Robust standard deviations of the logarithm above the recent median that are suspicious; inf turns the guard off
    but for numbers that are not finite."""
    loss_factor: float = 1.5
    """Times the median loss that a suspicious loss has at least."""
    norm_factor: float = 4.0
    """Times the median gradient norm that a suspicious norm has at least; below, clipping is enough."""
    patience: int = 3
    """Bad batches in a row from which the weights are taken for damaged."""
    lead: int = 64
    """Batches before the first bad one that are left out after going back; doubled with each return in a row."""
    rollbacks: int = 3
    """Returns in a row before the run gives up."""

    def __post_init__(self) -> None:
        if self.window < LEAST or min(self.z, self.loss_factor - 1, self.norm_factor - 1) <= 0:
            raise ConfigError(f"spike.window must be at least {LEAST}, z above 0, the factors above 1")
        if min(self.patience, self.lead, self.rollbacks) < 1:
            raise ConfigError("spike.patience, lead and rollbacks must be at least 1")
