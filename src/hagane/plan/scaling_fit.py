"""The law of least robust error: a damped Gauss-Newton descent on many problems at once, and the choice of form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hagane.plan.scaling import (
    FORMS,
    LIMITS,
    F,
    Form,
    Law,
    Points,
    centre,
    check_points,
    has_diversity,
    law_at,
    start_grid,
)

HUBER = 0.02
"""Residuals of log loss beyond this count linearly: one run that went wrong does not bend the law."""
ROUNDS = 150
"""Steps of the descent at most."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted in one form."""

    form: Form
    """repeats or diversity."""
    law: Law
    """The best law."""
    theta_P: F
    """[8] the same as the optimiser's vector."""
    left_out: float
    """Typical difference, in log loss, of a run from a law that was fitted without it (root mean square)."""


def fit(points: Points, form: Form) -> Fit:
    """The law of least robust error over all starts.

    Raises:
        ConfigError: see `check_points`.
    """
    check_points(points)
    starts = start_grid(points, form)
    logs_Sn = np.broadcast_to(np.log(points.loss_n), (len(starts), len(points)))
    ends_SP, cost_S = descend(points, logs_Sn, starts, form)
    theta_P = ends_SP[int(cost_S.argmin())]
    logs_1n, slopes_1nP = predict_logs(points, theta_P[None])
    # what a law would say of a run without it, to first order: the residual over what the run does not decide itself
    alone_n = (np.log(points.loss_n) - logs_1n[0]) / np.maximum(1 - leverage(slopes_1nP[0], form), 0.05)
    return Fit(form, law_at(points, theta_P), theta_P, float(np.sqrt((alone_n**2).mean())))


def fit_forms(points: Points) -> tuple[Fit, ...]:
    """All forms that the runs can tell apart, the one that says most of runs it was fitted without first.

    Raises:
        ConfigError: see `check_points`.
    """
    forms = [form for form in FORMS if form == "repeats" or has_diversity(points)]
    return tuple(sorted((fit(points, form) for form in forms), key=lambda f: f.left_out))


def predict_logs(points: Points, theta_SP: F) -> tuple[F, F]:
    """Log losses [S, n] and their slopes [S, n, 8] in the optimiser's numbers."""
    log_n, log_d, log_u = centre(points)
    e, a, b, c, alpha, beta, gamma, repeats = (x[:, None] for x in np.exp(theta_SP).T)
    again = np.maximum(points.tokens_n / points.unique_n - 1.0, 0.0)
    gone = -np.expm1(-again / repeats)
    worth = np.minimum(points.tokens_n, points.unique_n) + points.unique_n * repeats * gone
    n, t, u = np.log(points.parameters_n) - log_n, np.log(worth) - log_d, np.log(points.unique_n) - log_u
    by_n, by_t, by_u = a * np.exp(-alpha * n), b * np.exp(-beta * t), c * np.exp(-gamma * u)
    total = e + by_n + by_t + by_u
    by_repeats = points.unique_n * repeats * (gone - (1 - gone) * again / repeats) / worth
    rows = (e + 0 * total, by_n, by_t, by_u, -alpha * n * by_n, -beta * t * by_t, -gamma * u * by_u)
    return np.log(total), np.stack((*rows, -beta * by_t * by_repeats), -1) / total[..., None]


def descend(points: Points, logs_Sn: F, theta_SP: F, form: Form) -> tuple[F, F]:
    """Levenberg's damped Gauss-Newton (Marquardt 1963) on Huber's loss (1964), many problems side by side.

    Args:
        points: N, D, U of every run.
        logs_Sn: [S, n] log losses of each problem.
        theta_SP: [S, 8] starts.
        form: whose limits hold.

    Returns:
        [S, 8] ends and [S] their costs.
    """
    lowest, highest = LIMITS[form]
    theta = np.clip(theta_SP, lowest, highest)
    cost = huber(predict_logs(points, theta)[0] - logs_Sn)
    damp, live = np.full(len(theta), 1e-2), np.arange(len(theta))
    for _ in range(ROUNDS):
        logs, slopes = predict_logs(points, theta[live])
        step = damped_step(theta[live], logs - logs_Sn[live], slopes, damp[live], form)
        tried = np.clip(theta[live] - step, lowest, highest)
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


def damped_step(theta_SP: F, wrong_Sn: F, slopes_SnP: F, damp_S: F, form: Form) -> F:
    """[S, 8] to be taken from theta, at most 1 in each number."""
    lowest, highest = LIMITS[form]
    weight = HUBER / np.maximum(np.abs(wrong_Sn), HUBER)
    gradient = np.einsum("snp,sn->sp", slopes_SnP, weight * wrong_Sn)
    curve = np.einsum("snp,snq->spq", slopes_SnP * weight[..., None], slopes_SnP)
    # a number at its limit that wants to go on does not hold the others back
    stuck = ((theta_SP <= lowest) & (gradient > 0)) | ((theta_SP >= highest) & (gradient < 0)) | (lowest == highest)
    gradient = np.where(stuck, 0.0, gradient)
    curve = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, curve)
    ridge = damp_S[:, None] * (1e-6 + np.einsum("spp->sp", curve)) + 1e-12
    step = np.linalg.solve(curve + ridge[:, :, None] * np.eye(theta_SP.shape[1]), gradient[..., None])[..., 0]
    return np.asarray(np.clip(step, -1.0, 1.0))


def huber(wrong_Sn: F) -> F:
    """[S] sums of Huber's loss."""
    size = np.abs(wrong_Sn)
    return np.asarray(np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(-1))


def leverage(slopes_nP: F, form: Form) -> F:
    """[n] how much each run decides the law's value at itself: the diagonal of the hat matrix of the form's numbers."""
    lowest, highest = LIMITS[form]
    left, size, _ = np.linalg.svd(slopes_nP[:, lowest < highest], full_matrices=False)
    return np.asarray((left[:, size > 1e-8 * size.max()] ** 2).sum(1))
