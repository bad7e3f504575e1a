"""The stored gains of the mill's baselines are the best that a search finds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from hagane.terms import ConfigError
from hagane.worlds import Pilot, fly
from hagane.worlds.mill import MillWorld
from hagane.worlds.mill_pilots import PI_GAINS, SMITH_GAINS, Gains, Pi, Smith
from hagane.worlds.mill_tuning import HIGH, LOW, search
from hagane.worlds.seeds import DATA_SEEDS, EVALUATION_SEEDS, TUNING_SEEDS, check_seeds

BASELINES = [(Pi, PI_GAINS), (Smith, SMITH_GAINS)]


def scores(pilot: Pilot, seeds: range) -> np.ndarray:
    return fly(MillWorld(), "delay-25", seeds, pilot, at_once=len(seeds)).scores_N


@pytest.mark.parametrize(("make_pilot", "stored"), BASELINES)
def test_a_search_around_the_stored_gains_finds_nothing_better(
    make_pilot: Callable[[Gains], Pilot], stored: Gains
) -> None:
    found, _ = search(make_pilot, trials=10, lines=60, seed=3, start=stored)
    fresh = TUNING_SEEDS[5000:5200]
    gain = scores(make_pilot(found), fresh) - scores(make_pilot(stored), fresh)
    noise = gain.std() / np.sqrt(len(gain))
    assert gain.mean() < 2 * noise + 2, (found, gain.mean(), noise)


@pytest.mark.parametrize(("make_pilot", "stored"), BASELINES)
def test_stored_gains_lie_inside_the_box(make_pilot: Callable[[Gains], Pilot], stored: Gains) -> None:
    # at an edge the box would have been too small to find the best
    assert LOW.proportional < stored.proportional < 0.9 * HIGH.proportional
    assert 1.5 * LOW.integral < stored.integral < 0.9 * HIGH.integral
    assert LOW.margin < stored.margin < 0.9 * HIGH.margin


def test_search_leaves_a_planted_bad_start() -> None:
    bad = Gains(0.0, 0.004, 0.0)
    found, score = search(Pi, trials=12, lines=30, seed=1, start=bad)
    assert found != bad and score > scores(Pi(bad), TUNING_SEEDS[:30]).mean() + 20


def test_seed_ranges_do_not_meet_and_are_checked() -> None:
    ranges = sorted([DATA_SEEDS, TUNING_SEEDS, EVALUATION_SEEDS], key=lambda r: r.start)
    assert all(a.stop <= b.start for a, b in pairwise(ranges))
    check_seeds(EVALUATION_SEEDS[:10], EVALUATION_SEEDS, "evaluation")
    with pytest.raises(ConfigError, match="seed 7 is not for evaluation"):
        check_seeds([EVALUATION_SEEDS.start, 7], EVALUATION_SEEDS, "evaluation")
