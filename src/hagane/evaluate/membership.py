"""Membership inference: can one tell from a policy's errors which episodes it was trained on?

An episode's loss is the squared error of the policy's chunks against what was recorded, in units of the commands'
spread: what anyone who has a candidate episode and may ask the policy can compute. Two attacks:
- loss (Yeom et al. 2018, arXiv 1709.01604): a low loss means a member.
- calibrated (Watson et al. 2022, arXiv 2111.08440): a loss lower than that of a reference which never saw the
  episode, so that easy episodes do not count as members. An untrained or earlier checkpoint is the reference.

Both are cheap lower bounds: an attack with shadow models (LiRA, Carlini et al. 2022, arXiv 2112.03570) finds more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.columns import Columns
from hagane.catalog.samples import gather, make_source
from hagane.terms import Policy, StoreError

Attack = Literal["loss", "calibrated"]
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Membership:
    """How well an attack tells members from others."""

    dataset: str
    """Data set."""
    attack: Attack
    """Which attack."""
    members: int
    """Episodes that were trained on."""
    others: int
    """Episodes that were held out."""
    auc: float
    """Chance that a random member scores above a random other; 0.5 tells nothing."""
    low: float
    """Lower end of its 95% interval: bootstrap over episodes."""
    high: float
    """Upper end."""
    tpr_at_1_percent: float
    """Share of members found when at most 1% of the others are taken for members; with fewer than 100, none is."""


def measure_membership(
    policy: Policy,
    reference: Policy,
    columns: Columns,
    member_E: NDArray[np.bool_],
    *,
    most: int = 200,
    samples: int = 8,
) -> list[Membership]:
    """Run both attacks on a data set.

    Args:
        policy: under test.
        reference: saw neither side, or less of the members.
        columns: the data set.
        member_E: [E] True for episodes that the policy was trained on; the others were held out.
        most: episodes of each side, drawn by a fixed seed.
        samples: control steps of an episode, evenly spread.

    Raises:
        StoreError: a side has fewer than two episodes with commands.
    """
    sides = []
    for side_E in (member_E, ~member_E):
        picked = np.flatnonzero(side_E)
        if len(picked) > most:
            picked = np.sort(np.random.default_rng(0).choice(picked, most, replace=False))
        losses = [episode_losses(p, columns, picked, samples) for p in (policy, reference)]
        has_N = np.isfinite(losses[0])
        if has_N.sum() < 2:
            raise StoreError("too few episodes with commands to tell members from others", where=columns.name)
        sides.append((losses[0][has_N], losses[1][has_N]))
    (ours_M, theirs_M), (ours_N, theirs_N) = sides
    return [
        figures(columns.name, "loss", -ours_M, -ours_N),
        figures(columns.name, "calibrated", theirs_M - ours_M, theirs_N - ours_N),
    ]


def episode_losses(
    policy: Policy, columns: Columns, episodes_N: NDArray[np.int64], samples: int
) -> NDArray[np.float64]:
    """[N] mean squared error of the policy's chunks on each episode, in commands' variances; NaN without commands."""
    spread_A = columns.commands_TA[columns.command_valid_T].std(0) + 1e-6
    policy.reset(columns.embodiment, "")
    losses_N = np.full(len(episodes_N), np.nan)
    for k, e in enumerate(episodes_N):
        keep_E = np.zeros(len(columns.episode_ids), bool)
        keep_E[e] = True
        source = make_source(columns, keep_E, 0, "train")
        steps = source.usable[columns.command_valid_T[source.usable]]
        if not len(steps):
            continue
        at = np.unique(np.linspace(0, len(steps) - 1, samples).round().astype(int))
        part = gather(columns, source, steps[at], next_pictures=False)
        error = (policy.act(part.observation).actions_NHA - part.actions_NHA) / spread_A
        losses_N[k] = np.square(error)[part.action_valid_NH].mean()
    return losses_N


def figures(dataset: str, attack: Attack, members_M: NDArray[np.float64], others_N: NDArray[np.float64]) -> Membership:
    """The figures of an attack from scores: higher means rather a member."""
    rng = np.random.default_rng(0)
    draws = [auc(rng.choice(members_M, len(members_M)), rng.choice(others_N, len(others_N))) for _ in range(BOOTSTRAP)]
    low, high = np.quantile(draws, [0.025, 0.975])
    allowed = len(others_N) // 100
    found = float((members_M > np.sort(others_N)[::-1][allowed]).mean())
    shares = (round(float(x), 4) for x in (auc(members_M, others_N), low, high, found))
    return Membership(dataset, attack, len(members_M), len(others_N), *shares)


def auc(members_M: NDArray[np.float64], others_N: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic over M x N, ties one half."""
    sorted_N = np.sort(others_N)
    below = np.searchsorted(sorted_N, members_M, "left") + np.searchsorted(sorted_N, members_M, "right")
    return float(below.sum() / (2 * len(members_M) * len(others_N)))
