"""Which seeds are for what: demonstrations, tuning of baselines, evaluation. The three never meet."""

from __future__ import annotations

from collections.abc import Sequence

from hagane.terms import ConfigError

DATA_SEEDS = range(0, 500_000)
"""Demonstrations."""
TUNING_SEEDS = range(500_000, 1_000_000)
"""Search for the parameters of classical baselines and experts."""
EVALUATION_SEEDS = range(1_000_000, 100_000_000)
"""Score cards and replays."""


def check_seeds(seeds: Sequence[int], allowed: range, purpose: str) -> None:
    """Every seed lies in the range of that purpose.

    Raises:
        ConfigError: one does not; `purpose` names what they were meant for.
    """
    wrong = [seed for seed in seeds if seed not in allowed]
    if wrong:
        raise ConfigError(
            f"seed {wrong[0]} is not for {purpose}",
            where=f"{len(wrong)} of {len(seeds)} seeds",
            next_step=f"take seeds from {allowed.start} to {allowed.stop - 1}",
        )
