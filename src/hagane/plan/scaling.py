"""A scaling law over runs that were really trained: held-out loss from parameters and data, fitted robustly.

    L(N, D, U) = E + A / N^alpha + B / T^beta + C / U^gamma

N parameters, D data tokens seen, U different ones. Two forms of what repeated data is worth:

    repeats     C = 0;  T = D up to one pass, then U (1 + R (1 - exp(-(D/U - 1) / R)))
    diversity   T = D;  what was not seen costs C / U^gamma, however long the rest is trained on

The first is that of text (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3; repeats: Muennighoff et al. 2023, arXiv
2305.16264). The second is ours, for logs: neighbouring samples of a machine are nearly the same, so that many tokens of
few episodes are worth little from the first pass on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagane.plan.scaling_runs import ScaledRun
from hagane.terms import ConfigError

F = NDArray[np.float64]
Form = Literal["repeats", "diversity"]
FORMS: tuple[Form, ...] = ("repeats", "diversity")
NUMBERS = ("floor", "a", "b", "c", "alpha", "beta", "gamma", "repeats")
"""Order of the optimiser's vector, all as logs; the terms are those at the centre of the data."""
NONE, ALWAYS = -80.0, math.log(1e9)
"""Logs of a term that is not there, and of repeats that are worth as much as fresh data."""
_EXPONENT = (math.log(0.02), math.log(3.0))
LIMITS: dict[Form, F] = {
    "repeats": np.array(
        [(-9, 3), (-9, 3), (-9, 3), (NONE, NONE), _EXPONENT, _EXPONENT, (0, 0), (math.log(0.05), math.log(200))]
    ).T,
    "diversity": np.array(
        [(-9, 3), (-9, 3), (-9, 3), (-9, 3), _EXPONENT, _EXPONENT, _EXPONENT, (ALWAYS, ALWAYS)]
    ).T,
}  # fmt: skip
"""[2, 8] lowest and highest of each number; equal where a form does not have it."""


@dataclass(frozen=True, eq=False)
class Points:
    """What a law is fitted to."""

    parameters_n: F
    """[n] N."""
    tokens_n: F
    """[n] D: data tokens seen."""
    unique_n: F
    """[n] U: different data tokens."""
    loss_n: F
    """[n] held-out loss."""

    def __len__(self) -> int:
        return len(self.loss_n)


@dataclass(frozen=True)
class Law:
    """One fitted law; all terms are in units of the loss."""

    floor: float
    """E: what neither parameters nor data take away."""
    a: float
    """A."""
    alpha: float
    """Exponent of parameters."""
    b: float
    """B."""
    beta: float
    """Exponent of data seen."""
    repeats: float = math.inf
    """R: repeats of the data after which further ones are worth little; infinite in the form "diversity"."""
    c: float = 0.0
    """C; 0 in the form "repeats"."""
    gamma: float = 1.0
    """Exponent of different data."""

    def worth(self, tokens: float | F, unique: float | F) -> F:
        """T: so many tokens seen of so many different ones are worth T fresh ones."""
        if math.isinf(self.repeats):
            return np.asarray(tokens, np.float64)
        again = np.maximum(np.asarray(tokens) / np.asarray(unique) - 1.0, 0.0)
        fresh = np.minimum(tokens, unique)
        return np.asarray(fresh + unique * self.repeats * -np.expm1(-again / self.repeats))

    def loss(self, parameters: float | F, tokens: float | F, unique: float | F | None = None) -> F:
        """Predicted loss; `unique` None means that nothing is repeated."""
        different = np.asarray(tokens if unique is None else unique, np.float64)
        by_data = self.b * self.worth(tokens, different) ** -self.beta + self.c * different**-self.gamma
        return np.asarray(self.floor + self.a * np.asarray(parameters, np.float64) ** -self.alpha + by_data)

    def balanced_tokens(self, parameters: float) -> float:
        """Fresh tokens at which the size gains as much from a little more data as from a little more parameters.

        There alpha A / N^alpha = beta B / D^beta + gamma C / D^gamma, which also is the best use of compute where that
        goes as N D (Hoffmann et al. 2022, section 3.3). Below it data is what the size lacks; beyond, the size is.
        """
        by_size = self.alpha * self.a * parameters**-self.alpha

        def by_data(log: float) -> float:
            return self.beta * self.b * math.exp(-self.beta * log) + self.gamma * self.c * math.exp(-self.gamma * log)

        low, high = 0.0, 200.0
        while high - low > 1e-9 * high:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if by_data(middle) > by_size else (low, middle)
        return math.exp(high)

    def gain_of_doubling(self, parameters: float, tokens: float) -> tuple[float, float]:
        """Share of the loss that twice the parameters, and twice the fresh tokens, would take away."""
        here = float(self.loss(parameters, tokens))
        return 1 - float(self.loss(2 * parameters, tokens)) / here, 1 - float(self.loss(parameters, 2 * tokens)) / here


def points_of(runs: Sequence[ScaledRun], machine: str = "", *, active: bool = False) -> Points:
    """Points of one machine's loss, or of the mean over machines.

    Args:
        runs: the measurement.
        machine: empty for the mean.
        active: count the parameters that one token uses, instead of all.

    Raises:
        ConfigError: a run was not judged on that machine.
    """
    lacking = [r.name for r in runs if machine and machine not in r.held_out]
    if lacking:
        known = ", ".join(sorted({m for r in runs for m in r.held_out}))
        raise ConfigError(f"run {lacking[0]!r} has no loss of {machine!r}", next_step=f"machines with one: {known}")
    return Points(
        np.array([r.active if active else r.parameters for r in runs], np.float64),
        np.array([r.tokens for r in runs], np.float64),
        np.array([r.unique_tokens for r in runs], np.float64),
        np.array([r.held_out[machine] if machine else r.loss for r in runs], np.float64),
    )


def check_points(points: Points) -> None:
    """Enough variety for a law.

    Raises:
        ConfigError: losses or counts that are not positive numbers, fewer than 3 sizes, fewer than 3 amounts of tokens,
            fewer than 8 runs, or sizes that share no amount of tokens.
    """
    where = "the runs of a scaling law"
    for name in ("loss", "parameters", "tokens", "unique"):
        values = getattr(points, f"{name}_n")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ConfigError(f"{name} must be positive numbers in every run", where=where)
    sizes, amounts = np.unique(points.parameters_n), np.unique(points.tokens_n)
    for what, found in (("sizes", len(sizes)), ("amounts of tokens", len(amounts))):
        if found < 3:
            raise ConfigError(
                f"a law of parameters and data needs at least 3 {what}, not {found}",
                where=where,
                next_step="train the others with `make bench-scaling`",
            )
    if len(points) < 8:
        raise ConfigError(f"{len(points)} runs are too few for a law", where=where, next_step="train at least 8")
    if not any(len(np.unique(points.parameters_n[points.tokens_n == t])) > 1 for t in amounts):
        what = "no two sizes were trained on the same tokens, so size and data cannot be told apart"
        raise ConfigError(what, where=where, next_step="train two sizes for equally long")


def has_diversity(points: Points) -> bool:
    """Whether the form "diversity" can be told: at least 3 amounts of different data."""
    return len(np.unique(points.unique_n)) >= 3


def start_grid(points: Points, form: Form) -> F:
    """[S, 8] starts that cover shares of the loss, exponents and worth of repeats."""
    level = math.log(float(np.median(points.loss_n)))
    shares = ((0.2, 0.1, 0.5, 0.2), (0.6, 0.2, 0.1, 0.1), (0.05, 0.6, 0.3, 0.05), (0.4, 0.01, 0.2, 0.4))
    last = ((1.0, 1.0), (1.0, 15.0)) if form == "repeats" else ((0.3, 1e9), (1.0, 1e9))
    grid = itertools.product(shares, (0.1, 0.5), (0.15, 0.5), last)
    starts = [[*(level + np.log(s)), *np.log([alpha, beta, *rest])] for s, alpha, beta, rest in grid]
    return np.asarray(np.clip(np.array(starts), *LIMITS[form]))


def centre(points: Points) -> tuple[float, float, float]:
    """Geometric means of N, D and U: there terms are measured, so that exponents and terms hardly depend."""
    n, d, u = (float(np.log(x).mean()) for x in (points.parameters_n, points.tokens_n, points.unique_n))
    return n, d, u


def law_at(points: Points, theta_P: F) -> Law:
    """The law of one vector of the optimiser."""
    log_n, log_d, log_u = centre(points)
    e, a, b, c, alpha, beta, gamma, repeats = (float(x) for x in np.exp(theta_P))
    return Law(
        floor=e,
        a=a * math.exp(alpha * log_n),
        alpha=alpha,
        b=b * math.exp(beta * log_d),
        beta=beta,
        repeats=math.inf if theta_P[7] >= ALWAYS else repeats,
        c=0.0 if theta_P[3] <= NONE else c * math.exp(gamma * log_u),
        gamma=gamma,
    )


def theta_of(points: Points, law: Law, form: Form) -> F:
    """The inverse of `law_at`, inside the form's limits."""
    log_n, log_d, log_u = centre(points)
    a, b = law.a * math.exp(-law.alpha * log_n), law.b * math.exp(-law.beta * log_d)
    c = max(law.c * math.exp(-law.gamma * log_u), math.exp(NONE))
    logs = np.log([law.floor, a, b, c, law.alpha, law.beta, law.gamma, min(law.repeats, math.exp(ALWAYS))])
    return np.asarray(np.clip(logs, *LIMITS[form]))
