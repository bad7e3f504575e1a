"""Every term of the driving score against cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hagane.worlds import road_score as score
from hagane.worlds.road_geometry import Boxes, overlap, paths_through, resample
from hagane.worlds.road_score import Actors


def ego(speed: float = 10.0) -> tuple[Boxes, np.ndarray, np.ndarray, np.ndarray]:
    """A car of 5 x 2 m with its centre at (0, 0), heading along x; its rear axle 1.5 m behind; its speed."""
    one = np.ones(1)
    return Boxes(0 * one, 0 * one, 0 * one, 5 * one, 2 * one), -1.5 * one, 0 * one, speed * one


def other(x: float, y: float, heading: float = 0.0, speed: float = 5.0, thing: bool = False) -> Actors:
    """One other of 5 x 2 m."""
    size, flag = np.ones((1, 1)), np.ones((1, 1), bool)
    return Actors(x * size, y * size, heading * size, speed * size, 5 * size, 2 * size, flag, flag & thing)


def fault(them: Actors, speed: float = 10.0, straddling: bool = False) -> bool:
    box, rear_x, rear_y, v = ego(speed)
    assert score.touching(box, them).all()
    return bool(score.at_fault(box, rear_x, rear_y, v, np.array([straddling]), them)[0, 0])


def clear(them: Actors, speed: float = 10.0, straddling: bool = False, ignore: bool = False) -> bool:
    box, rear_x, rear_y, v = ego(speed)
    return bool(score.ttc_clear(box, rear_x, rear_y, v, np.array([straddling]), them, np.array([[ignore]]))[0])


def test_boxes_meet_only_when_they_do() -> None:
    box, *_ = ego()
    for x, y, turn, meets in [(4.9, 0, 0, True), (5.1, 0, 0, False), (0, 2.1, 0, False), (0, 1.9, 0, True),
                              (3.4, 0, np.pi / 2, True), (3.6, 0, np.pi / 2, False),
                              (4.2, 2.8, np.pi / 4, True), (5.2, 2.6, np.pi / 4, False)]:  # fmt: skip
        them = other(x, y, turn)
        assert bool(overlap(box.column(), them.boxes())[0, 0]) is meets, (x, y, turn)


def test_front_hit_is_our_fault() -> None:
    assert fault(other(4.8, 0.3))


def test_being_hit_from_behind_is_not() -> None:
    assert not fault(other(-4.8, 0.2, speed=15.0))


def test_a_standing_track_is_our_fault_even_beside() -> None:
    assert fault(other(-1.0, 1.9, speed=0.0))
    assert not fault(other(-1.0, 1.9, speed=5.0))


def test_standing_ego_is_never_at_fault() -> None:
    assert not fault(other(4.8, 0.0), speed=0.0)


def test_lateral_contact_is_our_fault_only_when_straddling() -> None:
    assert not fault(other(-1.0, 1.9))
    assert fault(other(-1.0, 1.9), straddling=True)


def test_objects_cost_half() -> None:
    hit, guilty = np.array([[True, False], [True, True], [True, True]]), np.array([[True] * 2, [True] * 2, [False] * 2])
    thing = np.array([[True, False], [True, False], [False, False]])
    assert score.collision_term(hit, guilty, thing).tolist() == [0.5, 0.0, 1.0]


def test_one_corner_off_the_road_is_off_the_road() -> None:
    inside = np.array([[True, True, True, True], [True, False, True, True]])
    assert score.drivable_term(inside).tolist() == [1.0, 0.0]


def test_corners_lie_where_they_should() -> None:
    corners = Boxes(*(np.array(v) for v in (1.0, 2.0, np.pi / 2, 4.0, 2.0))).corners()
    np.testing.assert_allclose(corners, [[0, 4], [2, 4], [2, 0], [0, 0]], atol=1e-12)


def test_ttc_sees_a_slower_leader_within_nine_tenths_of_a_second() -> None:
    # bumpers 4 m apart: closing at 5 m/s leaves 0.8 s, at 4 m/s a whole second
    assert not clear(other(9.0, 0.0, speed=5.0))
    assert clear(other(9.0, 0.0, speed=6.0))
    assert clear(other(9.0, 0.0, speed=12.0))


def test_ttc_leaves_out_those_behind_beside_and_already_touched() -> None:
    assert clear(other(-8.0, 0.0, speed=30.0))
    assert clear(other(0.5, 2.6, heading=-0.3, speed=10.0))
    assert not clear(other(0.5, 2.6, heading=-0.3, speed=10.0), straddling=True)
    assert not clear(other(6.0, 0.0, speed=0.0))
    assert clear(other(6.0, 0.0, speed=0.0), ignore=True)
    assert clear(other(5.5, 0.0, heading=np.pi, speed=0.0), speed=0.0)


@pytest.mark.parametrize(
    ("lon", "lat", "yaw", "fine"),
    [(2.3, 0, 0, True), (2.5, 0, 0, False), (-4.0, 0, 0, True), (-4.1, 0, 0, False), (0, 4.8, 0, True),
     (0, -5.0, 0, False), (0, 0, 0.9, True), (0, 0, -1.0, False)],
)  # fmt: skip
def test_comfort_bounds(lon: float, lat: float, yaw: float, fine: bool) -> None:
    same = np.ones((1, score.SMOOTH_STEPS))
    assert bool(score.comfortable(lon * same, lat * same, yaw * same, 0.1)[0]) is fine


@pytest.mark.parametrize(
    ("lon", "lat", "yaw", "fine"),
    [(4.0, 0, 0, True), (4.3, 0, 0, False), (0, 8.2, 0, True), (0, 8.5, 0, False), (4.0, 7.6, 0, False),
     (0, 0, 1.8, True), (0, 0, 2.0, False)],
)  # fmt: skip
def test_comfort_rates(lon: float, lat: float, yaw: float, fine: bool) -> None:
    """Ramps with a slope a second that keep within the bounds on the values themselves."""
    ramp = (np.arange(score.SMOOTH_STEPS) - 14.0)[None] * 0.1 * 1.0
    tame = ramp + 0.7  # -0.7 .. 0.7 s around the middle sample
    assert bool(score.comfortable(lon * (tame - 0.7), lat * (tame - 0.7), yaw * (tame - 0.7), 0.1)[0]) is fine


def test_slope_is_exact_on_a_line_and_calm_on_a_step() -> None:
    line = 3.0 * 0.1 * np.arange(15.0)[None]
    np.testing.assert_allclose(score.slope(line, 0.1), [3.0])
    step = np.where(np.arange(15) > 7, 1.0, 0.0)[None]
    assert 0.9 < score.slope(step, 0.1)[0] < 1.1


def test_progress_has_a_floor_of_five_metres() -> None:
    made, bar = np.array([30.0, 70.0, 1.0, 4.0, 5.2]), np.array([60.0, 60.0, 4.9, 5.0, 5.2])
    np.testing.assert_allclose(score.progress_term(made, bar), [0.5, 1.0, 1.0, 1.0, 1.0])


def test_the_terms_join_as_published() -> None:
    one, zero, half = np.ones(1), np.zeros(1), np.full(1, 0.5)
    assert score.pdm_score(one, one, one, one, one)[0] == 1.0
    assert score.pdm_score(one, one, half, one, zero)[0] == pytest.approx((2.5 + 5) / 12)
    assert score.pdm_score(half, one, one, one, one)[0] == 0.5
    assert score.pdm_score(one, zero, one, one, one)[0] == 0.0


def test_projection_inverts_position_on_a_bend() -> None:
    turn = np.linspace(0, np.pi, 300)
    arc = resample(40 * np.stack([np.sin(turn), 1 - np.cos(turn)], -1), 1.0, 140)
    path = paths_through(arc[None], -5.0)
    s, d = np.array([[0.0, 20.3, 77.7, 110.0]]), np.array([[0.0, 3.5, -3.5, 1.0]])
    x, y, _, bend = path.at(s, d)
    back_s, back_d = path.project(np.stack([x, y], -1))
    np.testing.assert_allclose(back_s, s, atol=0.05)
    np.testing.assert_allclose(back_d, d, atol=0.01)
    np.testing.assert_allclose(bend[0, :3], 1 / 40, rtol=0.02)
