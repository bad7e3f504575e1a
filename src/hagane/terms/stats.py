"""Statistics of one channel, as the model's normaliser needs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """Per column, over valid samples only. Arrays are [columns] float64 in the channel's unit."""

    count: int
    """Valid samples."""
    mean: NDArray[np.float64]
    """Mean."""
    std: NDArray[np.float64]
    """Standard deviation (population)."""
    low: NDArray[np.float64]
    """Minimum."""
    high: NDArray[np.float64]
    """Maximum."""
    q01: NDArray[np.float64]
    """1% quantile, from a mergeable sketch."""
    q99: NDArray[np.float64]
    """99% quantile, from a mergeable sketch."""
