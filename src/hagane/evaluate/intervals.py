"""95% intervals: Wilson's for rates, a seeded bootstrap for means."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""
DRAWS = 4000
"""Bootstrap resamples."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927, JASA 22:209); (0, 1) without trials."""
    if trials < 1:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # at the ends the formula gives the end itself, up to rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def bootstrap(values_N: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over seeds (Efron 1979); the value twice for one trial."""
    if len(values_N) < 2:
        only = float(values_N[0]) if len(values_N) else math.nan
        return only, only
    rng = np.random.default_rng(seed)
    means = values_N[rng.integers(0, len(values_N), (DRAWS, len(values_N)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired(ours_N: NDArray[np.float64], theirs_N: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean difference over equal seeds and its bootstrap interval: (mean, low, high)."""
    difference_N = np.asarray(ours_N, np.float64) - np.asarray(theirs_N, np.float64)
    return (float(difference_N.mean()), *bootstrap(difference_N, seed))
