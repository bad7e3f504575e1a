"""The mill world as a user meets it: reset, observe, step, score; copies, delay and pilots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hagane.terms import APPLIED, ConfigError
from hagane.worlds import collect, fly, make
from hagane.worlds.mill import MillWorld, second_return
from hagane.worlds.mill_line import (
    DISTANCE_EXP,
    PAST,
    PRESSURE_EXP,
    SPEED_EXP,
    draw_lines,
    nominal_log_coating,
    nominal_pressure,
)
from hagane.worlds.mill_pilots import Constant, Expert, Pi, Smith

CASE = "delay-25"


def run(world: MillWorld, seeds: list[int], steps: int, pilot_name: str = "expert") -> MillWorld:
    world.reset(CASE, seeds)
    pilot = world.pilots[pilot_name]()
    pilot.reset(world)
    for _ in range(steps):
        world.step(pilot.act(world))
    return world


def test_the_entry_point_gives_the_mill() -> None:
    world = make("mill")
    assert isinstance(world, MillWorld) and world.cases == (CASE,)
    assert world.embodiment.horizon == 16 and world.embodiment.execute_steps == 4


def test_readings_are_finite_and_in_range() -> None:
    world = MillWorld()
    world.reset(CASE, range(50))
    rng = np.random.default_rng(0)
    for _ in range(60):
        for name, reading in world.observe().items():
            channel = world.embodiment.channel(name)
            assert reading.values.shape == (50, *channel.shape) and reading.values.dtype == np.float32
            assert np.isfinite(reading.values).all() and reading.valid.all()
            assert (reading.values >= channel.low).all() and (reading.values <= channel.high).all()
        world.step(rng.uniform([0, 0], [150, 30], (50, 2)).astype(np.float32))


def test_set_points_are_limited_and_not_finite_ones_are_held() -> None:
    world = MillWorld()
    world.reset(CASE, [1, 2, 3])
    before = world.applied_NA.copy()
    applied = world.step(np.float32([[500, 1], [np.nan, 12], [30, np.inf]]))
    np.testing.assert_allclose(applied, [[110, 7], [before[1, 0], 12], [30, before[2, 1]]], rtol=1e-6)


@pytest.mark.parametrize("seeds", [[-1], [3, -7]])
def test_bad_seeds_and_cases_are_refused(seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="negative"):
        MillWorld().reset(CASE, seeds)
    with pytest.raises(ConfigError, match="no case 'delay-7'"):
        MillWorld().reset("delay-7", [1])
    with pytest.raises(ConfigError, match="delays"):
        MillWorld([1000])


def test_a_copy_does_not_depend_on_the_others() -> None:
    many = run(MillWorld(), list(range(40, 60)), 120)
    one = run(MillWorld(), [47], 120)
    assert many.scores()[7] == one.scores()[0]
    for name, reading in many.observe().items():
        np.testing.assert_array_equal(reading.values[7], one.observe()[name].values[0])


@pytest.mark.parametrize("delay", [1, 10, 25])
def test_the_gauge_shows_a_change_after_the_delay(delay: int) -> None:
    moved, still = MillWorld([delay]), MillWorld([delay])
    for world in (moved, still):
        world.reset(world.cases[0], [5])
    hold = still.applied_NA.copy()
    first = 0
    for t in range(delay + 3):
        shown = [w.observe()["pv"].values[0, 0] for w in (moved, still)]
        if shown[0] != shown[1] and not first:
            first = t
        moved.step(hold + np.float32([20, 0]))
        still.step(hold)
    # the first command is felt at the knives one step later
    assert first == delay + 1


def test_nominal_model_is_the_power_law_and_its_inverse() -> None:
    speed, distance, pressure = np.array([2.2]), np.array([11.0]), np.array([31.0])
    base = nominal_log_coating(speed, pressure, distance)
    assert nominal_log_coating(2 * speed, pressure, distance) - base == pytest.approx(SPEED_EXP * np.log(2))
    assert nominal_log_coating(speed, pressure, 2 * distance) - base == pytest.approx(DISTANCE_EXP * np.log(2))
    assert nominal_log_coating(speed, 2 * pressure, distance) - base == pytest.approx(-PRESSURE_EXP * np.log(2))
    np.testing.assert_allclose(nominal_pressure(speed, distance, base), pressure)


def test_return_is_highest_at_the_minimum_and_bounded() -> None:
    excess = np.linspace(-1, 1, 2001)
    paid = second_return(excess)
    assert paid.max() == pytest.approx(1) and excess[paid.argmax()] == pytest.approx(0, abs=1e-9)
    assert paid.min() == -3
    assert second_return(np.array([-0.01]))[0] < second_return(np.array([0.05]))[0]


def test_schedule_starts_steady_and_welds_change_the_grade() -> None:
    lines = draw_lines(range(100))
    assert (lines.minimum_TN[: PAST + 15] == lines.minimum_TN[0]).all()
    coils = (np.diff(lines.minimum_TN, axis=0) != 0).sum(0)
    assert coils.min() >= 3
    assert np.abs(np.diff(lines.speed_TN, axis=0)).max() < 0.04
    assert lines.speed_TN.min() >= 1.4 and lines.speed_TN.max() <= 2.7


def test_the_order_of_the_pilots() -> None:
    world = MillWorld()
    seeds = range(500_000, 500_100)
    mean = {k: fly(world, CASE, seeds, p(), at_once=100).scores_N.mean() for k, p in world.pilots.items()}
    constant, pi, smith, expert = mean.values()
    assert constant < 0 < pi < smith < expert < 400, mean


def test_a_longer_delay_costs_the_classical_pilots_only() -> None:
    world, seeds = MillWorld([5, 40]), range(500_000, 500_060)
    short, long = (
        [fly(world, case, seeds, pilot(), at_once=60).scores_N.mean() for pilot in (Pi, Smith, Expert)]
        for case in world.cases
    )
    assert short[0] > long[0] and short[1] > long[1]
    assert short[2] == pytest.approx(long[2])


def test_pilots_other_than_the_expert_see_only_what_is_observed() -> None:
    for pilot in (Constant(), Pi(), Smith()):
        world = MillWorld()
        world.reset(CASE, [1, 2])
        pilot.reset(world)
        seen = world.observe()
        del world.lines, world.coating_TN
        world.observe = lambda seen=seen: seen  # type: ignore[method-assign]
        assert np.isfinite(pilot.act(world)).all()


def test_demonstrations_keep_clean_labels_beside_noisy_actions() -> None:
    world = MillWorld()
    (episode,) = collect(world, CASE, [3], Expert(), first_id=7)
    assert episode.id == "mill/delay-25/000007" and "gauge is 25 s" in episode.task
    label, applied = episode.streams["knife"].values, episode.streams["knife" + APPLIED].values
    assert label.shape == applied.shape == (400, 2)
    noise = (applied - label).std(0)
    assert 1.5 < noise[0] < 8 and 0.15 < noise[1] < 0.8


def test_recorded_actions_replay_to_the_same_return() -> None:
    world = MillWorld()
    (episode,) = collect(world, CASE, [11], Expert())
    score = world.scores()[0]
    world.reset(CASE, [11])
    for applied in episode.streams["knife" + APPLIED].values:
        world.step(applied[None])
    assert world.scores()[0] == score


def test_frames_are_plain_and_small() -> None:
    world = run(MillWorld(), [4], 0)
    first = world.draw(0).values
    assert first["static"]["delay"] == 25
    world.step(world.applied_NA)
    text = json.dumps(dict(world.draw(0).values))
    assert "static" not in text and len(text) < 200


def test_a_thousand_lines_are_quick() -> None:
    import time

    world = MillWorld()
    began = time.process_time()
    fly(world, CASE, range(1000), Constant(), at_once=1000)
    assert time.process_time() - began < 10
