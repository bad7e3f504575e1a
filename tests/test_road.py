"""The road world as a user meets it: reset, observe, step, score; copies, mirrors and pilots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hagane.terms import ConfigError
from hagane.worlds.road import LEFT, MIRROR_SEEDS, RIGHT, RoadWorld, make


def drive(world: RoadWorld, case: str, seeds: list[int], who: str, steps: int = 80) -> RoadWorld:
    """Let a pilot drive to the end, or for some steps."""
    world.reset(case, seeds)
    pilot = world.pilots[who]()
    pilot.reset(world)
    for _ in range(steps):
        if not world.alive().any():
            break
        world.step(pilot.act(world))
    return world


def test_readings_are_finite_and_in_range() -> None:
    world = make()
    world.reset(RIGHT, range(20))
    for _ in range(30):
        for name, reading in world.observe().items():
            channel = world.embodiment.channel(name)
            assert reading.values.shape == (20, *channel.shape) and np.isfinite(reading.values).all()
            rows = reading.values[reading.valid]
            assert (rows >= np.float32(channel.low)).all() and (rows <= np.float32(channel.high)).all()
        world.step(np.tile(np.float32([0.5, 0.001]), (20, 1)))


def test_unknown_case_is_refused() -> None:
    with pytest.raises(ConfigError, match="no case 'middle'"):
        make().reset("middle", [1])


@pytest.mark.parametrize("case", [RIGHT, LEFT])
def test_a_copy_does_not_depend_on_the_others(case: str) -> None:
    many = drive(make(), case, list(range(43, 54)), "expert", 40)
    one = drive(make(), case, [47], "expert", 40)
    assert many.drive.x[4] == one.drive.x[0] and many.drive.speed[4] == one.drive.speed[0]
    assert np.array_equal(many.observe()["agents"].values[4], one.observe()["agents"].values[0])
    assert many.scores()[4] == one.scores()[0]


def test_left_hand_is_the_mirror_of_right_hand() -> None:
    seeds = list(range(12))
    right = drive(make(), RIGHT, [s + MIRROR_SEEDS for s in seeds], "classical: IDM")
    left = drive(make(), LEFT, seeds, "classical: IDM")
    np.testing.assert_allclose(left.drive.x, right.drive.x, atol=1e-6)
    np.testing.assert_allclose(left.drive.y, -right.drive.y, atol=1e-6)
    np.testing.assert_allclose(left.scores(), right.scores(), atol=1e-9)
    assert np.abs(right.drive.y).max() > 1


def test_the_next_pilot_on_the_same_seeds_meets_the_same_scene() -> None:
    world = drive(make(), RIGHT, [8, 9], "simplest: constant velocity")
    drive(world, RIGHT, [8, 9], "classical: IDM")
    fresh = drive(make(), RIGHT, [8, 9], "classical: IDM")
    assert np.array_equal(world.drive.x, fresh.drive.x) and np.array_equal(world.scores(), fresh.scores())


def test_drawing_is_small_and_plain() -> None:
    world = make()
    world.reset(LEFT, [3])
    first = json.dumps(world.draw(0).values)
    world.step(np.zeros((1, 2), np.float32))
    later = json.dumps(world.draw(0).values)
    assert "static" in first and "static" not in later
    assert len(first) < 12_000 and len(later) < 1_200
