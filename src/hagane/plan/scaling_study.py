"""What a scaling measurement says: by machine the law and its trial on runs it did not see, by size what it can use,
and which of all that is a claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hagane.plan.scaling import LIMITS, NUMBERS, Form, Law, Points, points_of
from hagane.plan.scaling_band import DRAWS, Band, Interval, backtest, bootstrap_band, seed_spread
from hagane.plan.scaling_fit import Fit, fit_forms
from hagane.plan.scaling_runs import ScaledRun
from hagane.plan.scaling_score import ScoreBand, score_band

Claim = Literal["trained", "within reach", "no claim"]
MEAN = "mean of machines"
"""Name of the study over all machines."""


@dataclass(frozen=True, eq=False)
class Study:
    """One machine's law, or that of the mean loss over machines."""

    machine: str
    """Name, or `MEAN`."""
    band: Band
    """The law of the loss and its bootstrap."""
    seed_spread: float
    """Standard deviation of log loss over seeds; 0 when no cell was repeated."""
    tried: tuple[Points, tuple[Interval, ...]] | None
    """The longest run of each size and what the others foretold of it; None when they are too few."""
    forms: tuple[Fit, ...]
    """The law in every form that the runs can tell apart, the best first."""
    score: ScoreBand | None
    """Closed loop from loss; None for the mean, and where nothing was flown."""

    @property
    def noise(self) -> float:
        """Smallest share of the loss that counts as a gain: the spread of seeds, or else of runs about the law."""
        return self.seed_spread or self.band.residual


@dataclass(frozen=True)
class SizeRow:
    """What the law says of one size."""

    size: str
    """1m ... 1t."""
    parameters: int
    """Counted as in the fit: all, or those that are active."""
    claim: Claim
    """trained, within reach, or no claim: then the numbers only show how wide the band is."""
    loss: Interval
    """At the tokens that were asked for, each seen once."""
    score: Mapping[str, Interval]
    """Closed loop at those tokens, by machine."""
    can_use: Interval
    """Fresh tokens at which more data and more parameters are worth the same (`Law.balanced_tokens`)."""
    grows: Interval
    """Share of the loss that twice the parameters would take away at those tokens."""


def studies(
    runs: Sequence[ScaledRun], *, form: Form | None = None, active: bool = False, draws: int = DRAWS
) -> tuple[Study, ...]:
    """The mean over machines first, then each machine that all runs were judged on, in the form that fits the mean.

    Raises:
        ConfigError: too little variety for a law; see `scaling.check_points`.
    """
    shared = sorted(set.intersection(*(set(r.held_out) for r in runs))) if runs else []
    names = ["", *shared] if len(shared) != 1 else shared
    out = []
    for name in names:
        points, spread = points_of(runs, name, active=active), seed_spread(runs, name)
        band = bootstrap_band(points, form=form, seed_spread=spread, draws=draws)
        form = band.fit.form
        tried = backtest(points, form, draws)
        flown = bool(name) and sum(name in r.scores for r in runs) >= 4
        score = score_band(runs, name, draws=draws) if flown else None
        out.append(
            Study(name or MEAN, band, spread, (tried[0], tuple(tried[1])) if tried else None, fit_forms(points), score)
        )
    return tuple(out)


def size_rows(found: Sequence[Study], sizes: Mapping[str, int], tokens: float) -> tuple[SizeRow, ...]:
    """Every size at so many fresh tokens, by the first study; scores by those that have one.

    Args:
        found: from `studies`.
        sizes: parameters by size name, counted as in the fit.
        tokens: data tokens, each seen once.
    """
    return tuple(size_row(found, name, n, tokens) for name, n in sizes.items())


def size_row(found: Sequence[Study], size: str, parameters: int, tokens: float) -> SizeRow:
    """One size; see `size_rows`."""
    band = found[0].band
    return SizeRow(
        size,
        parameters,
        claim_of(band, parameters, tokens),
        band.loss(parameters, tokens),
        {s.machine: s.score.predict(s.band, parameters, tokens) for s in found if s.score},
        band.of(lambda law: law.balanced_tokens(parameters)),
        band.of(lambda law: law.gain_of_doubling(parameters, tokens)[0]),
    )


def free_within(found: Interval, field: str, form: Form) -> bool:
    """Whether runs bound an exponent, or the worth of repeats, from both sides; else the fit ran into its limits."""
    low, high = np.exp(LIMITS[form][:, NUMBERS.index(field)])
    return bool(found.low > 1.01 * low and found.high < high / 1.01)


def claim_of(band: Band, parameters: float, tokens: float) -> Claim:
    """Whether a size on so many tokens was trained, lies within reach of what was, or lies beyond."""
    most_parameters, most_tokens = band.reach()
    if parameters > most_parameters or tokens > most_tokens:
        return "no claim"
    trained = tokens <= band.points.tokens_n.max() and parameters in band.points.parameters_n
    return "trained" if trained else "within reach"


def enough_parameters(study: Study, tokens: float) -> Interval:
    """Parameters from which twice as many would take less of the loss away than one seed differs from another.

    Below the smallest size that was trained (0) or beyond all claims (infinity) it is given as such.
    """
    low, high = float(study.band.points.parameters_n.min()), study.band.reach()[0]

    def first(law: Law) -> float:
        grid = np.geomspace(low, high, 200)
        here, twice = law.loss(grid, tokens), law.loss(2 * grid, tokens)
        still = np.flatnonzero(1 - twice / here >= study.noise)
        if not len(still):
            return 0.0
        return float(grid[still[-1] + 1]) if still[-1] + 1 < len(grid) else math.inf

    return ordered(study.band, first)


def ordered(band: Band, what: Callable[[Law], float]) -> Interval:
    """The interval of a number that may be infinite: ranks, not interpolation."""
    drawn = sorted(float(what(law)) for law in band.laws)
    last = len(drawn) - 1
    return Interval(float(what(band.law)), drawn[round(0.025 * last)], drawn[round(0.975 * last)])
