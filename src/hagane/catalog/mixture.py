"""Mixture: how much of each data set a training step holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hagane.terms import ConfigError


@dataclass(frozen=True)
class Mixture:
    """Weights of data sets.

    A data set's share of a step is proportional to weight ** (1 / temperature): 1 keeps the weights, higher
    temperatures even them out.

    Raises:
        ConfigError: a weight that is not positive, a temperature that is not positive, a negative seed.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """By data set name; empty gives every data set the same."""
    temperature: float = 1.0
    """Above 1 evens the weights out."""
    seed: int = 0
    """Of the order of samples."""

    def __post_init__(self) -> None:
        if bad := [n for n, w in self.weights.items() if not 0 < w < float("inf")]:
            raise ConfigError(f"mixture weights must be positive: {', '.join(bad)}")
        if not 0 < self.temperature < float("inf") or self.seed < 0:
            raise ConfigError("a mixture needs a positive temperature and a seed of at least 0")

    def shares(self, names: Sequence[str]) -> dict[str, float]:
        """Share of each data set, summing to 1.

        Raises:
            ConfigError: weights of data sets that are not there, or data sets without a weight.
        """
        if self.weights and set(self.weights) != set(names):
            odd = sorted(set(self.weights) ^ set(names))
            raise ConfigError(
                f"mixture weights and data sets differ: {', '.join(odd)}",
                next_step="give every data set of the run a weight, or none",
            )
        raw = {n: self.weights.get(n, 1.0) ** (1 / self.temperature) for n in names}
        total = sum(raw.values())
        return {n: w / total for n, w in raw.items()}

    def counts(self, names: Sequence[str], samples: int) -> dict[str, int]:
        """Samples of each data set in every step: fixed, so that shapes never change; each has at least one.

        Largest remainders are rounded up, ties go to the first name.

        Raises:
            ConfigError: fewer samples than data sets; weights as in `shares`.
        """
        if samples < len(names):
            raise ConfigError(f"{samples} samples a step are too few for {len(names)} data sets")
        shares = self.shares(names)
        exact = {n: shares[n] * samples for n in names}
        out = {n: max(1, int(exact[n])) for n in names}
        while (short := samples - sum(out.values())) != 0:
            step = 1 if short > 0 else -1
            movable = [n for n in sorted(names) if step > 0 or out[n] > 1]
            most = max(movable, key=lambda n: step * (exact[n] - out[n]))
            out[most] += step
        return out
