"""Recorded traffic: broken files are refused in words; the real recording drives as measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hagane.terms import LogError
from hagane.worlds.road import RoadWorld, make_recorded
from tests.conftest import shared_data


def write(path: Path, tracks: dict[str, list[object]], lanelets: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(tracks), path / "tracks.parquet")
    pq.write_table(pa.table(lanelets), path / "lanelets.parquet")
    return path


def small_recording(path: Path, steps: int = 81) -> Path:
    """Two cars on one straight lane, 20 m apart, both at 10 m/s, in scene A; and the same again as scene B."""
    tracks: dict[str, list[object]] = {k: [] for k in ("scene", "track_id", "length_m", "width_m", "step", "x_m",
                                                       "y_m", "heading_rad", "speed_mps")}  # fmt: skip
    for scene in "AB":
        for car in (1, 2):
            for t in range(steps):
                row = (scene, car, 4.5, 1.8, t, 20.0 * car + t, 0.0, 0.0, 10.0)
                for column, value in zip(tracks.values(), row, strict=True):
                    column.append(value)
    lanelets: dict[str, list[object]] = {
        "scene": ["A", "B"],
        "lanelet_id": [7, 7],
        "left_xy_m": [[0.0, 1.75, 300.0, 1.75]] * 2,
        "right_xy_m": [[0.0, -1.75, 300.0, -1.75]] * 2,
        "successors": [[], []],
        "speed_limit": ["13.4", "13.4"],
    }
    return write(path, tracks, lanelets)


def score(world: RoadWorld, who: str, seeds: range) -> dict[str, float]:
    world.reset("recorded", seeds)
    pilot = world.pilots[who]()
    pilot.reset(world)
    while world.alive().any():
        world.step(pilot.act(world))
    return {"score": float(world.scores().mean()), **{k: float(v.mean()) for k, v in world.details().items()}}


def test_a_small_recording_drives(tmp_path: Path) -> None:
    kept = score(make_recorded(small_recording(tmp_path)), "simplest: lane + constant speed", range(2))
    assert kept["progress_m"] == pytest.approx(80.0, abs=0.5)
    assert kept["nc"] == kept["dac"] == kept["ttc"] == kept["comfort"] == 1.0


def test_the_others_do_not_react_and_the_ego_is_not_its_own_traffic(tmp_path: Path) -> None:
    world = make_recorded(small_recording(tmp_path))
    world.reset("recorded", [0, 1, 2])
    assert world.drive.actors.present.sum(1).tolist() == [1, 1, 1]
    before = world.drive.actors.x_m[world.drive.actors.present]
    for _ in range(30):
        world.step(np.tile(np.float32([-4.0, 0.0]), (3, 1)))
    np.testing.assert_allclose(world.drive.actors.x_m[world.drive.actors.present], before + 30.0)


def test_a_standing_car_in_the_way_is_hit_and_scores_nothing(tmp_path: Path) -> None:
    world = make_recorded(small_recording(tmp_path))
    world.reset("recorded", [0, 1])
    behind = int(np.argmin(world.drive.x))
    while world.alive().any():
        world.step(np.tile(np.float32([3.0, 0.0]), (2, 1)))
    assert world.details()["nc"][behind] == 0.0 and world.scores()[behind] == 0.0


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"tracks\.parquet"):
        make_recorded(tmp_path)
    (tmp_path / "tracks.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(LogError, match="cannot be read as Parquet"):
        make_recorded(tmp_path)
    small_recording(tmp_path)
    pq.write_table(pq.read_table(tmp_path / "tracks.parquet").drop_columns(["speed_mps"]), tmp_path / "tracks.parquet")
    with pytest.raises(LogError, match="lacks the columns speed_mps"):
        make_recorded(tmp_path)


def test_short_tracks_give_no_ego(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no car is recorded for the whole drive"):
        make_recorded(small_recording(tmp_path, steps=40))


def test_real_recording_scores_as_measured() -> None:
    """60 recorded egos: IDM well above lane + constant speed, that above constant velocity."""
    world = make_recorded(shared_data("road", "ngsim"))
    rows = ("simplest: constant velocity", "simplest: lane + constant speed", "classical: IDM", "expert")
    velocity, lane, classical, expert = (score(world, who, range(60))["score"] for who in rows)
    assert 0.45 < velocity < lane < classical - 0.05
    assert classical > 0.85 and expert > 0.85
