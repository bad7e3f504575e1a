"""Closed-loop score from held-out loss: what a lower error of the actions is worth on the machine.

    score(L) = expert - drop * L^power

A policy that imitates without error scores as its expert does, whatever its size: the law is pinned there, and never
promises more than the demonstrations hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.plan.scaling_band import SHARE, Band, Interval
from hagane.plan.scaling_runs import ScaledRun
from hagane.terms import ConfigError

F = NDArray[np.float64]
POWERS: F = np.geomspace(0.25, 8.0, 61)
"""Powers that are tried."""
Z95 = 1.96
"""Half of a 95% interval in standard deviations."""


@dataclass(frozen=True)
class ScoreLaw:
    """Score of one machine as a function of its loss."""

    expert: float
    """Score at no error."""
    drop: float
    """Score lost at a loss of 1."""
    power: float
    """How the loss of score grows with the error."""

    def score(self, loss: float | F) -> F:
        """Predicted mean score."""
        return np.asarray(self.expert - self.drop * np.asarray(loss) ** self.power)


@dataclass(frozen=True, eq=False)
class ScoreBand:
    """A score law, and those that repeats of the measurement could have given."""

    measure: str
    """What the score means."""
    law: ScoreLaw
    """The best."""
    laws: tuple[ScoreLaw, ...]
    """One a bootstrap repeat."""
    residual: float
    """Typical difference of a run's score from the law (root mean square)."""
    explained: float
    """Share of the scores' variance that the loss explains, 0 to 1 (below 0: worse than their mean)."""

    def predict(self, band: Band, parameters: float, tokens: float, unique: float | None = None) -> Interval:
        """Score of a size on so many tokens; each repeat of the loss law meets a repeat of the score law."""
        pairs = zip(band.laws, self.laws, strict=False)
        drawn = [float(score.score(law.loss(parameters, tokens, unique))) for law, score in pairs]
        low, high = np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2])
        return Interval(float(self.law.score(band.law.loss(parameters, tokens, unique))), float(low), float(high))


def fit_score(loss_n: F, score_n: F, weight_n: F, expert: float) -> ScoreLaw:
    """The law of least weighted squared error: the power by search, the drop in closed form, never below 0."""
    by_power = loss_n[None] ** POWERS[:, None]
    drops = np.maximum((weight_n * by_power * (expert - score_n)).sum(1) / (weight_n * by_power**2).sum(1), 0.0)
    errors = (weight_n * (expert - drops[:, None] * by_power - score_n) ** 2).sum(1)
    best = int(errors.argmin())
    return ScoreLaw(expert, float(drops[best]), float(POWERS[best]))


def score_band(runs: Sequence[ScaledRun], machine: str, *, draws: int, seed: int = 0) -> ScoreBand:
    """Fit the score of a machine to its loss, and again to resampled runs.

    Runs weigh by the inverse variance of their trials, with the scatter between runs added to it, so that a run with a
    lucky narrow interval does not outvote the others. Repeats draw whole runs (pairs bootstrap).

    Raises:
        ConfigError: fewer than 4 runs were flown on that machine, or by different experts' scores.
    """
    flown = [r for r in runs if machine in r.scores and machine in r.held_out]
    experts = {r.scores[machine].expert for r in flown}
    if len(flown) < 4 or len(experts) > 1:
        what = f"{len(flown)} runs were flown" if len(flown) < 4 else "runs were judged against different experts"
        raise ConfigError(f"no law of the score of {machine!r}: {what}", next_step="fly all runs on the same seeds")
    (expert,) = experts
    loss_n = np.array([r.held_out[machine] for r in flown])
    score_n = np.array([r.scores[machine].mean for r in flown])
    trial_n = np.array([(r.scores[machine].high - r.scores[machine].low) / (2 * Z95) for r in flown])
    plain = fit_score(loss_n, score_n, np.ones(len(flown)), expert)
    scatter = float(np.mean((plain.score(loss_n) - score_n) ** 2))
    weight_n = 1 / (trial_n**2 + max(scatter, 1e-12))
    law, rng = fit_score(loss_n, score_n, weight_n, expert), np.random.default_rng(seed)
    picks = rng.integers(0, len(flown), (draws, len(flown)))
    laws = tuple(fit_score(loss_n[p], score_n[p], weight_n[p], expert) for p in picks)
    wrong_n = law.score(loss_n) - score_n
    explained = 1 - float((wrong_n**2).mean() / max(float(score_n.var()), 1e-12))
    return ScoreBand(flown[0].scores[machine].measure, law, laws, math.sqrt(float((wrong_n**2).mean())), explained)
