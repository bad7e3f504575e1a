"""How far a scaling law can be trusted: a bootstrap over runs, the spread of seeds, and where extrapolation ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.plan.scaling import Form, Law, Points, law_at, start_grid
from hagane.plan.scaling_fit import Fit, descend, fit, fit_forms, leverage, predict_logs
from hagane.plan.scaling_runs import ScaledRun
from hagane.terms import ConfigError

F = NDArray[np.float64]
REACH = 10.0
"""No claim is made beyond so many times the largest size, or the most tokens, that was trained."""
SHARE = 0.95
"""Share of repeats inside a band."""
DRAWS = 300
"""Bootstrap repeats."""


@dataclass(frozen=True)
class Interval:
    """A number with its band."""

    middle: float
    """From the law fitted to all runs."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @property
    def fold(self) -> float:
        """Upper end over lower end; 1 is a point."""
        return self.high / self.low if self.low > 0 else math.inf


@dataclass(frozen=True, eq=False)
class Band:
    """A law, and the laws that the same measurement could as well have given."""

    points: Points
    """What was fitted."""
    fit: Fit
    """The best law and its form."""
    laws: tuple[Law, ...]
    """One law a bootstrap repeat."""
    residual: float
    """Typical difference of a run from the law, in log loss (root mean square, degrees of freedom counted)."""
    noise_draws: F
    """[draws] a difference of a further run from the law, in log loss, one a repeat."""

    @property
    def law(self) -> Law:
        """The best law."""
        return self.fit.law

    def of(self, what: Callable[[Law], float]) -> Interval:
        """The interval of anything that a law says."""
        low, high = np.quantile([what(law) for law in self.laws], [(1 - SHARE) / 2, (1 + SHARE) / 2])
        return Interval(what(self.law), float(low), float(high))

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> Interval:
        """Expected loss over seeds, with the band of the law."""
        return self.of(lambda law: float(law.loss(parameters, tokens, unique)))

    def next_run(self, parameters: float, tokens: float, unique: float | None = None) -> Interval:
        """Loss of one further run: the band of the law and the difference of a run from it."""
        drawn = [float(law.loss(parameters, tokens, unique)) for law in self.laws]
        low, high = np.quantile(drawn * np.exp(self.noise_draws), [(1 - SHARE) / 2, (1 + SHARE) / 2])
        return Interval(float(self.law.loss(parameters, tokens, unique)), float(low), float(high))

    def reach(self) -> tuple[float, float]:
        """Most parameters and most tokens that a claim is made for."""
        return REACH * float(self.points.parameters_n.max()), REACH * float(self.points.tokens_n.max())


def bootstrap_band(
    points: Points, *, form: Form | None = None, seed_spread: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> Band:
    """Fit the law (in the better form, or the one asked for), then fit it again to repeats of the measurement.

    A repeat is the law's losses with differences drawn from all runs' own (residual bootstrap; Efron and Tibshirani
    1993, section 9.4), each corrected for how much its run pulls the law to itself (its leverage), and made at least as
    wide as the spread of seeds. Runs stay at their sizes and amounts: few runs of the largest size cannot all be lost.

    Raises:
        ConfigError: see `check_points`.
    """
    best = fit(points, form) if form else fit_forms(points)[0]
    logs_1n, slopes_1nP = predict_logs(points, best.theta_P[None])
    wrong_n = np.log(points.loss_n) - logs_1n[0]
    loose_n = np.sqrt(np.maximum(1 - leverage(slopes_1nP[0], best.form), 0.1))
    differences_n = wrong_n / loose_n
    differences_n -= differences_n.mean()
    typical = float(np.sqrt((differences_n**2).mean()))
    if typical < seed_spread:
        differences_n = np.random.default_rng(seed).normal(0.0, seed_spread, len(points))
        typical = seed_spread
    rng = np.random.default_rng(seed)
    repeats_Sn = logs_1n + differences_n[rng.integers(0, len(points), (draws, len(points)))]
    thetas = refit(points, repeats_Sn, best)
    noise = differences_n[rng.integers(0, len(points), draws)]
    return Band(points, best, tuple(law_at(points, t) for t in thetas), typical, noise)


def refit(points: Points, logs_Sn: F, found: Fit) -> F:
    """[S, 8] best laws of many repeats, each from the law of the measurement and from four starts far from it."""
    best, cost = descend(points, logs_Sn, np.broadcast_to(found.theta_P, (len(logs_Sn), 8)), found.form)
    starts = start_grid(points, found.form)
    for start_P in starts[:: len(starts) // 4]:
        other, other_cost = descend(points, logs_Sn, np.broadcast_to(start_P, best.shape), found.form)
        better = other_cost < cost
        best, cost = np.where(better[:, None], other, best), np.where(better, other_cost, cost)
    return best


def seed_spread(runs: Sequence[ScaledRun], machine: str = "") -> float:
    """Standard deviation of log loss over seeds, pooled over cells that were repeated; 0 where none was."""
    cells: dict[tuple[str, int, int], list[float]] = {}
    for r in runs:
        loss = r.held_out[machine] if machine else r.loss
        cells.setdefault((r.size, r.steps, r.unique_tokens), []).append(math.log(loss))
    groups = [np.array(c) for c in cells.values() if len(c) > 1]
    freedom = sum(len(g) - 1 for g in groups)
    return math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / freedom) if freedom else 0.0


def backtest(points: Points, form: Form, draws: int = DRAWS) -> tuple[Points, list[Interval]] | None:
    """What the law would have said of the longest runs before they were made: fitted without each size's most tokens.

    Returns:
        the runs left out and the interval of each (`Band.next_run`); None where too few runs remain.
    """
    most = {n: points.tokens_n[points.parameters_n == n].max() for n in np.unique(points.parameters_n)}
    out_n = np.array([d == most[n] for n, d in zip(points.parameters_n, points.tokens_n, strict=True)])
    known, left_out = take(points, ~out_n), take(points, out_n)
    try:
        band = bootstrap_band(known, form=form, draws=draws)
    except ConfigError:
        return None
    rows = zip(left_out.parameters_n, left_out.tokens_n, left_out.unique_n, strict=True)
    return left_out, [band.next_run(float(n), float(d), float(u)) for n, d, u in rows]


def take(points: Points, keep_n: NDArray[np.bool_]) -> Points:
    """Some of the points."""
    return Points(points.parameters_n[keep_n], points.tokens_n[keep_n], points.unique_n[keep_n], points.loss_n[keep_n])
