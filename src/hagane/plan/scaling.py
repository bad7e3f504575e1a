"""A scaling law over runs that were really trained: held-out loss from parameters and data, fitted robustly.

    L(N, D, U) = E + A / N^alpha + B / T^beta        T = D up to one pass over the data, then
                                                     T = U (1 + R (1 - exp(-(D/U - 1) / R)))

N parameters, D data tokens seen, U different ones, R how many repeats are worth having. Form and robust fit of log
losses: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3; worth of repeats: Muennighoff et al. 2023, arXiv
2305.16264. Both were found on text; whether they hold for machines is what the residuals show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.plan.scaling_runs import ScaledRun
from hagane.terms import ConfigError

F = NDArray[np.float64]
HUBER = 0.02
"""Residuals of log loss beyond this count linearly: one run that went wrong does not bend the law."""
ROUNDS = 150
"""Steps of the optimiser at most."""
LOWEST = np.array([-9.0, -9.0, -9.0, math.log(0.02), math.log(0.02), math.log(0.05)])
HIGHEST = np.array([3.0, 3.0, 3.0, math.log(3.0), math.log(3.0), math.log(200.0)])
"""Bounds of (log e, log a, log b, log alpha, log beta, log R); e, a, b are the terms at the centre of the data."""


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
    """Exponent of data."""
    repeats: float
    """R: repeats of the data after which further ones are worth little."""

    def worth(self, tokens: float | F, unique: float | F) -> F:
        """T: so many tokens seen of so many different ones are worth T fresh ones."""
        again = np.maximum(np.asarray(tokens) / np.asarray(unique) - 1.0, 0.0)
        fresh = np.minimum(tokens, unique)
        return np.asarray(fresh + unique * self.repeats * -np.expm1(-again / self.repeats))

    def loss(self, parameters: float | F, tokens: float | F, unique: float | F | None = None) -> F:
        """Predicted loss; `unique` None means that nothing is repeated."""
        worth = self.worth(tokens, tokens if unique is None else unique)
        return np.asarray(self.floor + self.a * np.asarray(parameters) ** -self.alpha + self.b * worth**-self.beta)

    def balanced_tokens(self, parameters: float) -> float:
        """Fresh tokens at which the size gains as much from a little more data as from a little more parameters.

        From alpha A / N^alpha = beta B / D^beta, which also is the best use of compute where that goes as N D (Hoffmann
        et al. 2022, section 3.3). Below it data is what the size lacks; beyond it the size is too small for the data.
        """
        if self.a <= 0:
            return 0.0
        log = math.log(self.beta * self.b / (self.alpha * self.a)) + self.alpha * math.log(parameters)
        return math.exp(min(log / self.beta, 700.0))

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
    """Enough variety for a law of six numbers.

    Raises:
        ConfigError: losses or counts that are not positive numbers, fewer than 3 sizes, fewer than 3 amounts of tokens,
            fewer than 8 runs, or sizes that share no amount of tokens.
    """
    for name in ("loss", "parameters", "tokens", "unique"):
        values = getattr(points, f"{name}_n")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ConfigError(f"{name} must be positive numbers in every run", where="the runs of a scaling law")
    sizes = np.unique(points.parameters_n)
    amounts = np.unique(points.tokens_n)
    for what, found, least in (("sizes", len(sizes), 3), ("amounts of tokens", len(amounts), 3)):
        if found < least:
            raise ConfigError(
                f"a law of parameters and data needs at least {least} {what}, not {found}",
                where="the runs of a scaling law",
                next_step="train the others with `make bench-scaling`",
            )
    if len(points) < 8:
        raise ConfigError(f"{len(points)} runs are too few for a law of six numbers", next_step="train at least 8")
    if not any(len(np.unique(points.parameters_n[points.tokens_n == t])) > 1 for t in amounts):
        raise ConfigError(
            "no two sizes were trained on the same tokens, so size and data cannot be told apart",
            where="the runs of a scaling law",
        )


def fit(points: Points) -> Law:
    """The law of least robust error over all starts.

    Raises:
        ConfigError: see `check_points`.
    """
    check_points(points)
    starts = start_grid(points)
    logs = np.broadcast_to(np.log(points.loss_n), (len(starts), len(points)))
    found_SP, cost_S = descend(points, logs, starts)
    return law_at(points, found_SP[int(cost_S.argmin())])


def start_grid(points: Points) -> F:
    """[S, 6] starts that cover shares of the loss, exponents and worth of repeats."""
    level = math.log(float(np.median(points.loss_n)))
    shares = ((0.2, 0.1, 0.7), (0.6, 0.2, 0.2), (0.05, 0.6, 0.35), (0.5, 0.01, 0.5))
    grid = itertools.product(shares, (0.1, 0.5), (0.15, 0.5), (1.0, 15.0))
    return np.array([[*(level + np.log(s)), math.log(a), math.log(b), math.log(r)] for s, a, b, r in grid])


def centre(points: Points) -> tuple[float, float]:
    """Geometric means of N and D: terms are measured there, so that exponents and sizes of terms hardly depend."""
    return float(np.log(points.parameters_n).mean()), float(np.log(points.tokens_n).mean())


def law_at(points: Points, theta_P: F) -> Law:
    """The law of one vector of the optimiser."""
    log_n, log_d = centre(points)
    e, a, b, alpha, beta, repeats = np.exp(theta_P)
    return Law(float(e), float(a * math.exp(alpha * log_n)), float(alpha), float(b * math.exp(beta * log_d)),
               float(beta), float(repeats))  # fmt: skip


def theta_of(points: Points, law: Law) -> F:
    """The inverse of `law_at`, inside the bounds."""
    log_n, log_d = centre(points)
    e, a, b = law.floor, law.a * math.exp(-law.alpha * log_n), law.b * math.exp(-law.beta * log_d)
    return np.clip(np.log([e, a, b, law.alpha, law.beta, law.repeats]), LOWEST, HIGHEST)


def predict_logs(points: Points, theta_SP: F) -> tuple[F, F]:
    """Log losses [S, n] and their slopes [S, n, 6] in the optimiser's numbers."""
    log_n, log_d = centre(points)
    e, a, b, alpha, beta, repeats = (x[:, None] for x in np.exp(theta_SP).T)
    again = np.maximum(points.tokens_n / points.unique_n - 1.0, 0.0)
    left = np.exp(-again / repeats)
    worth = np.minimum(points.tokens_n, points.unique_n) + points.unique_n * repeats * (1 - left)
    n, t = np.log(points.parameters_n) - log_n, np.log(worth) - log_d
    by_n, by_t = a * np.exp(-alpha * n), b * np.exp(-beta * t)
    total = e + by_n + by_t
    more_repeats = points.unique_n * repeats * (1 - left * (1 + again / repeats)) / worth
    slopes = (e + 0 * total, by_n, by_t, -alpha * n * by_n, -beta * t * by_t, -beta * by_t * more_repeats)
    return np.log(total), np.stack(slopes, -1) / total[..., None]


def descend(points: Points, logs_Sn: F, theta_SP: F) -> tuple[F, F]:
    """Levenberg's damped Gauss-Newton (Marquardt 1963) on Huber's loss (1964), many problems side by side.

    Args:
        points: N, D, U of every run.
        logs_Sn: [S, n] log losses of each problem.
        theta_SP: [S, 6] starts.

    Returns:
        [S, 6] ends and [S] their costs.
    """
    theta = np.clip(theta_SP, LOWEST, HIGHEST)
    cost = huber(predict_logs(points, theta)[0] - logs_Sn)
    damp, live = np.full(len(theta), 1e-2), np.arange(len(theta))
    for _ in range(ROUNDS):
        logs, slopes = predict_logs(points, theta[live])
        tried = np.clip(
            theta[live] - damped_step(theta[live], logs - logs_Sn[live], slopes, damp[live]), LOWEST, HIGHEST
        )
        new_cost = huber(predict_logs(points, tried)[0] - logs_Sn[live])
        better = new_cost < cost[live]
        gain = np.where(better, cost[live] - new_cost, np.inf)
        still = (gain > 1e-9 * (cost[live] + 1e-12)) & ~(~better & (damp[live] > 1e6))
        theta[live[better]], cost[live[better]] = tried[better], new_cost[better]
        damp[live] = np.clip(np.where(better, damp[live] / 3, damp[live] * 4), 1e-9, 1e9)
        live = live[still]
        if not len(live):
            break
    return theta, cost


def damped_step(theta_SP: F, wrong_Sn: F, slopes_SnP: F, damp_S: F) -> F:
    """[S, 6] to be taken from theta, at most 1 in each number."""
    weight = HUBER / np.maximum(np.abs(wrong_Sn), HUBER)
    gradient = np.einsum("snp,sn->sp", slopes_SnP, weight * wrong_Sn)
    curve = np.einsum("snp,snq->spq", slopes_SnP * weight[..., None], slopes_SnP)
    # a number at its bound that wants to go on does not hold the others back
    stuck = ((theta_SP <= LOWEST) & (gradient > 0)) | ((theta_SP >= HIGHEST) & (gradient < 0))
    gradient = np.where(stuck, 0.0, gradient)
    curve = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, curve)
    ridge = damp_S[:, None] * (1e-6 + np.einsum("spp->sp", curve)) + 1e-12
    step = np.linalg.solve(curve + ridge[:, :, None] * np.eye(theta_SP.shape[1]), gradient[..., None])[..., 0]
    return np.asarray(np.clip(step, -1.0, 1.0))


def huber(wrong_Sn: F) -> F:
    """[S] sums of Huber's loss."""
    size = np.abs(wrong_Sn)
    return np.asarray(np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(-1))
