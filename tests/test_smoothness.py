"""Smoothness: closed forms, the authors' own figure, tremor, and the list that a person sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.catalog.motion import motion_of, scales
from hagane.catalog.smoothness import jerky, log_jerk, smoothness, sparc
from hagane.terms import Channel, Embodiment
from tests.curation_fixture import reach, stats_of

ARM = Embodiment("arm", "robot", "m", 50.0, 8, (Channel("q", shape=(3,)),), (Channel("u", shape=(3,)),))


def minimum_jerk(rate_hz: float) -> np.ndarray:
    """Speed of a reach of length 1 in 1 s: 30 t^2 (1 - t)^2 (Flash and Hogan 1985)."""
    t = np.arange(0, 1, 1 / rate_hz)
    return (30 * t**2 * (1 - t) ** 2)[:, None]


def test_sparc_of_the_minimum_jerk_reach_is_its_integral() -> None:
    """The spectrum of 30 t^2 (1 - t)^2 in closed form, its arc length by fine sums: an independent computation."""
    x = np.pi * np.linspace(1e-3, 10, 400_001)
    # 30 (1/4 - s^2)^2 about its middle is a Bessel transform: 15 j2(x) / x^2 with x = pi f
    amplitude = np.abs(15 * ((3 / x**3 - 1 / x) * np.sin(x) - 3 / x**2 * np.cos(x)) / x**2)
    last = np.flatnonzero(amplitude >= 0.05)[-1]
    arc = -np.hypot(np.diff(x[: last + 1]) / x[last], np.diff(amplitude[: last + 1])).sum()
    assert arc == pytest.approx(-1.4, abs=0.02)
    assert sparc(minimum_jerk(1000), 1000) == pytest.approx(arc, abs=0.01)  # the cut-off falls between two bins
    assert sparc(minimum_jerk(100), 100) == pytest.approx(arc, abs=0.01)


def test_sparc_gives_the_figure_of_its_authors() -> None:
    """Their code's documentation: a Gaussian bump exp(-5 t^2), t in -1..1 at 100 Hz, gives -1.41403."""
    t = np.arange(-1, 1, 0.01)
    assert sparc(np.exp(-5 * t**2)[:, None], 100) == pytest.approx(-1.41403, abs=1e-5)


def test_log_jerk_of_the_minimum_jerk_reach_is_its_closed_form() -> None:
    """v'' = 60 (1 - 6t + 6t^2), so the integral is 720; peak 15/8: -ln(720 / (15/8)^2) = -5.322."""
    want = -np.log(720 / (15 / 8) ** 2)
    assert log_jerk(minimum_jerk(10_000), 10_000) == pytest.approx(want, abs=2e-3)
    assert log_jerk(minimum_jerk(100), 100) == pytest.approx(want, abs=0.11)


@given(size=st.floats(1e-3, 1e3), stretch=st.sampled_from([50.0, 100.0, 200.0]))
def test_neither_depends_on_size_nor_log_jerk_on_duration(size: float, stretch: float) -> None:
    v = minimum_jerk(100)
    assert sparc(size * v, 100) == pytest.approx(sparc(v, 100), rel=1e-9)
    assert log_jerk(size * v, stretch) == pytest.approx(log_jerk(v, 100), rel=1e-9)


def test_every_more_tremor_scores_lower() -> None:
    t = np.arange(0, 1, 1e-3)[:, None]
    v = minimum_jerk(1000)
    shaken = [v + a * np.sin(2 * np.pi * 8 * t) for a in (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)]
    arcs, jerks = [sparc(x, 1000) for x in shaken], [log_jerk(x, 1000) for x in shaken]
    # a tremor below 5% of the spectrum's top is below SPARC's threshold, by design; LDLJ sees it
    assert arcs[1] == pytest.approx(arcs[0], abs=0.005)
    assert all(b < a for a, b in pairwise(arcs[1:]))
    assert all(b < a for a, b in pairwise(jerks))


def test_episodes_are_scored_in_units_that_do_not_matter() -> None:
    smooth = reach(ARM, 0, steps=100)
    rows = []
    for e in (smooth, reach(ARM, 0, steps=100, tremor=0.02), reach(ARM, 0, steps=100, tremor=0.1)):
        scale = scales(ARM, stats_of(ARM, (smooth,)))
        rows.append(smoothness(motion_of(e, ARM), ARM, scale))
    assert rows[0].state_sparc == pytest.approx(-1.4, abs=0.05) and rows[0].action_sparc == pytest.approx(
        -1.4, abs=0.05
    )
    for worse, better in ((rows[1], rows[0]), (rows[2], rows[1])):
        assert worse.state_sparc < better.state_sparc and worse.action_ldlj < better.action_ldlj
    metres = replace(smooth, streams={n: replace(s, values=s.values * 1000) for n, s in smooth.streams.items()})
    again = smoothness(motion_of(metres, ARM), ARM, scales(ARM, stats_of(ARM, (metres,))))
    assert again.state_sparc == pytest.approx(rows[0].state_sparc, rel=1e-4)


def test_commands_that_are_differences_are_speeds_already() -> None:
    delta = replace(ARM, convention="delta")
    e = reach(ARM, 1, steps=100)
    speed = np.gradient(e.streams["u"].values, axis=0).astype(np.float32)
    e = replace(e, streams={**e.streams, "u": replace(e.streams["u"], values=speed)})
    got = smoothness(motion_of(e, delta), delta, scales(delta, stats_of(delta, (e,))))
    assert got.action_sparc == pytest.approx(-1.4, abs=0.05)


def test_what_does_not_move_or_is_short_has_no_score() -> None:
    assert np.isnan(sparc(np.zeros((50, 2)), 50)) and np.isnan(log_jerk(np.zeros((50, 2)), 50))
    assert np.isnan(sparc(np.ones((5, 1)), 50)) and np.isnan(log_jerk(np.ones((50, 0)), 50))


def test_jerky_marks_outliers_of_their_own_task_only() -> None:
    scores = [-1.4, -1.5, -1.45, -1.42, -1.48, -6.0, -20.0, -20.1, -20.2, -19.9, -20.05, float("nan")]
    tasks = ["reach"] * 6 + ["polish"] * 6
    assert np.flatnonzero(jerky(scores, tasks)).tolist() == [5]
    assert not jerky([-1.0, -9.0], ["a", "a"]).any()
