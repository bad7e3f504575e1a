"""Who drives how well: IDM keeps its distance, the rows stand in the order they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.worlds.road import LEFT, RIGHT, make
from hagane.worlds.road_map import draw_scene
from hagane.worlds.road_pilots import track
from hagane.worlds.road_traffic import idm
from hagane.worlds.road_view import Tracker


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 30), st.floats(0, 30), st.floats(0.5, 5.0), st.floats(0, 6), st.floats(0, 20), st.integers(0, 99))
def test_idm_never_rear_ends_a_leader_from_a_safe_start(
    speed: float, lead: float, brake: float, start_s: float, last: float, seed: int
) -> None:
    """A gap of one second and the braking distance's difference at 5 m/s^2, or more, is safe."""
    rng = np.random.default_rng(seed)
    v, u = np.array([speed]), np.array([lead])
    gap = np.array([3.0 + speed + max(0.0, speed**2 - lead**2) / 10 + rng.uniform(0, 10)])
    for k in range(200):
        accel = np.clip(idm(v, 33.0, gap, v - u), -8.0, None)
        after = np.maximum(0, v + 0.1 * accel)
        ahead = np.maximum(0, u + 0.1 * np.where(k * 0.1 < start_s or u <= last, 0.0, -brake))
        gap = gap + 0.05 * (u + ahead - v - after)
        v, u = after, ahead
        assert gap[0] > 0


def test_rows_stand_in_order() -> None:
    """60 seeds: lane + constant speed well below IDM, the expert not below IDM."""
    means: dict[str, float] = {}
    worlds = [make(), make()]
    for who in ("simplest: constant velocity", "simplest: lane + constant speed", "classical: IDM", "expert"):
        scores = []
        for world, case, seeds in zip(worlds, (RIGHT, LEFT), (range(500, 530), range(530, 560)), strict=True):
            world.reset(case, seeds)
            pilot = world.pilots[who]()
            pilot.reset(world)
            while world.alive().any():
                world.step(pilot.act(world))
            scores.append(world.scores())
        means[who] = float(np.mean(scores))
    velocity, lane, classical, expert = means.values()
    assert velocity < lane < classical - 0.15 and expert >= classical - 0.01
    assert expert > 0.9


def test_ego_under_idm_never_hits_its_leader() -> None:
    seeds = [s for s in range(700, 860) if draw_scene(s).situation in ("slow leader", "braking leader", "queue")]
    world = make()
    world.reset(RIGHT, seeds)
    pilot = world.pilots["classical: IDM"]()
    pilot.reset(world)
    while world.alive().any():
        world.step(pilot.act(world))
    assert len(seeds) > 40 and (world.details()["nc"] == 1).all()


def test_traffic_without_the_ego_in_its_way_has_no_accidents() -> None:
    """Cars never overlap each other over whole drives (the ego is steered by the expert)."""
    from hagane.worlds.road_geometry import Boxes, overlap

    world = make()
    world.reset(RIGHT, range(900, 960))
    pilot = world.pilots["expert"]()
    pilot.reset(world)
    clashes = np.zeros(60, bool)
    while world.alive().any():
        world.step(pilot.act(world))
        a = world.drive.actors
        parts = (a.x_m, a.y_m, a.heading_rad, a.length_m, a.width_m)
        one, two = (Boxes(*(np.expand_dims(p, k) for p in parts)) for k in (2, 1))
        pair = overlap(one, two) & a.present[:, :, None] & a.present[:, None]
        clashes |= (pair & ~np.eye(a.x_m.shape[1], dtype=bool)).any((1, 2))
    assert clashes.mean() < 0.04


def test_tracking_brings_the_car_back_without_overshoot() -> None:
    e, psi, v, worst = np.array([1.0]), np.array([0.0]), np.array([12.0]), 0.0
    for _ in range(80):
        k = track(v, e, psi, np.zeros(1))
        e, psi = e + 1.2 * np.sin(psi), psi + 1.2 * k
        worst = min(worst, float(e[0]))
    assert abs(e[0]) < 0.02 and worst > -0.05


def test_an_actor_keeps_its_place_while_in_view() -> None:
    tracker, rng = Tracker(3), np.random.default_rng(4)
    far = rng.uniform(5, 100, (3, 30))
    before = None
    for _ in range(50):
        far = np.clip(far + rng.normal(0, 3, far.shape), 1, 120)
        seen = np.where(far < 80, far, np.inf)
        tracker.assign(seen)
        for row, places in zip(seen, tracker.who_NK, strict=True):
            held = places[places >= 0]
            nearest = set(np.argsort(row)[: min(12, int(np.isfinite(row).sum()))].tolist())
            assert set(held.tolist()) == nearest and len(held) == len(nearest)
        if before is not None:
            for old, new in zip(before, tracker.who_NK, strict=True):
                stay = [p for p in range(12) if old[p] >= 0 and old[p] in new]
                assert all(new[p] == old[p] for p in stay)
        before = tracker.who_NK.copy()


@pytest.mark.parametrize("who", ["classical: IDM", "simplest: lane + constant speed"])
def test_baselines_read_only_the_channels(who: str) -> None:
    """With everything but `observe` and `alive` hidden they still drive."""
    world = make()
    world.reset(LEFT, [1, 2])

    class Shown:
        observe, alive = world.observe, world.alive

    pilot = world.pilots[who]()
    pilot.reset(Shown())  # type: ignore[arg-type]
    assert pilot.act(Shown()).shape == (2, 2)  # type: ignore[arg-type]
