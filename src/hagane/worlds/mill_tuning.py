"""Search for the gains of the mill's PI and Smith predictor, and the table of the expert's margins.

    python -m hagane.worlds.mill_tuning

Random search over all three parameters, then a local one around the best, on `TUNING_SEEDS` only. The objective
is the score itself at delay 25, so no hand rule stands between a baseline and its best. What it finds is kept in
`mill_pilots.PI_GAINS` and `SMITH_GAINS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hagane.worlds.base import Pilot
from hagane.worlds.mill import MillWorld
from hagane.worlds.mill_pilots import Expert, Gains, Pi, Smith
from hagane.worlds.rollout import fly
from hagane.worlds.seeds import TUNING_SEEDS

LOW = Gains(0.0, 0.003, 0.0)
HIGH = Gains(1.2, 1.0, 0.15)
"""Box of the search; the integral gain is searched on a log scale."""


def mean_score(pilot: Pilot, seeds: Sequence[int], world: MillWorld | None = None) -> float:
    """Mean return of a pilot at the mill's first case."""
    world = world or MillWorld()
    return float(fly(world, world.cases[0], seeds, pilot, at_once=len(seeds)).scores_N.mean())


def search(
    make_pilot: Callable[[Gains], Pilot],
    *,
    trials: int = 200,
    lines: int = 100,
    seed: int = 0,
    start: Gains | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Gains, float]:
    """The best gains found and their mean return.

    Args:
        make_pilot: a controller from gains.
        trials: points tried; the first half over the whole box (none when `start` is given), the rest around the
            best so far, ever closer.
        lines: seeds from the start of `TUNING_SEEDS`; all trials meet the same ones.
        seed: of the search.
        start: where a local search begins.
        say: told about every improvement.
    """
    rng = np.random.default_rng(seed)
    seeds, world = TUNING_SEEDS[:lines], MillWorld()
    best = start or _point(rng.uniform(size=3))
    best_score = mean_score(make_pilot(best), seeds, world)
    for k in range(trials):
        wide = start is None and k < trials // 2
        width = 0.15 * (1 - k / trials) + 0.01
        unit = rng.uniform(size=3) if wide else np.clip(_unit(best) + width * rng.standard_normal(3), 0, 1)
        score = mean_score(make_pilot(_point(unit)), seeds, world)
        if score > best_score:
            best, best_score = _point(unit), score
            say(f"{k:4d}  {best_score:8.1f}  {best}")
    return best, best_score


def _point(unit: np.ndarray) -> Gains:
    """Gains of a point in the unit cube."""
    p = LOW.proportional + unit[0] * (HIGH.proportional - LOW.proportional)
    i = LOW.integral * (HIGH.integral / LOW.integral) ** unit[1]
    m = LOW.margin + unit[2] * (HIGH.margin - LOW.margin)
    return Gains(float(p), float(i), float(m))


def _unit(gains: Gains) -> np.ndarray:
    """Inverse of `_point`."""
    return np.array(
        [
            (gains.proportional - LOW.proportional) / (HIGH.proportional - LOW.proportional),
            np.log(gains.integral / LOW.integral) / np.log(HIGH.integral / LOW.integral),
            (gains.margin - LOW.margin) / (HIGH.margin - LOW.margin),
        ]
    )


def main() -> int:
    """Search both baselines, and print the expert at several margins."""
    for name, make_pilot in (("PI", Pi), ("Smith predictor", Smith)):
        print(name, flush=True)
        gains, score = search(make_pilot, say=lambda line: print(line, flush=True))
        print(f"{name}: {score:.1f} with {gains}\n", flush=True)
    for margin in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05):
        print(f"expert, margin {margin:.3f}: {mean_score(Expert(margin), TUNING_SEEDS[:100]):.1f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
