"""The driving score and each of its terms, as pure functions over N copies and M others.

PDMS = NC * DAC * (5 EP + 5 TTC + 2 C) / 12 after Dauner et al., "NAVSIM" (NeurIPS 2024) and the nuPlan
devkit; here the terms are taken over the whole closed-loop drive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hagane.worlds.road_geometry import B, Boxes, F, overlap, wrap

STOPPED_MPS = 0.05
"""Slower counts as standing (nuPlan)."""
AHEAD_RAD = np.deg2rad(30.0)
BEHIND_RAD = np.deg2rad(150.0)
TTC_TIMES_S = (0.0, 0.3, 0.6, 0.9)
PROGRESS_FLOOR_M = 5.0

# comfort bounds (nuPlan): m/s^2, m/s^3, rad/s, rad/s^2
LON_ACCEL_MPS2 = (-4.05, 2.40)
LAT_ACCEL_MPS2 = 4.89
JERK_MPS3 = 8.37
LON_JERK_MPS3 = 4.13
YAW_RATE_RADPS = 0.95
YAW_ACCEL_RADPS2 = 1.93
SMOOTH_STEPS = 15
"""Samples of the fit behind a derivative, as in nuPlan (Savitzky-Golay, order 2, window 15)."""


@dataclass(frozen=True, eq=False)
class Actors:
    """Others on the road, [N, M] each: centre poses, speed along the heading, size, and what they are."""

    x_m: F
    y_m: F
    heading_rad: F
    speed_mps: F
    length_m: F
    width_m: F
    present: B
    """False where the place is empty."""
    is_object: B
    """True for cones and the like, False for road users."""

    def boxes(self) -> Boxes:
        """Their outlines."""
        return Boxes(self.x_m, self.y_m, self.heading_rad, self.length_m, self.width_m)


def bearing(x_N: F, y_N: F, heading_N: F, actors: Actors) -> F:
    """[N, M] absolute angle in radians between the ego's heading and the line from (x, y) to each actor."""
    to = np.arctan2(actors.y_m - y_N[:, None], actors.x_m - x_N[:, None])
    return np.asarray(np.abs(wrap(to - heading_N[:, None])))


def touching(ego: Boxes, actors: Actors) -> B:
    """[N, M] whether the ego's outline meets each present actor."""
    return overlap(ego.column(), actors.boxes()) & actors.present


def at_fault(ego: Boxes, rear_x_N: F, rear_y_N: F, speed_N: F, straddling_N: B, actors: Actors) -> B:
    """[N, M] whether a contact with each actor would be the ego's fault (nuPlan's collision types).

    Not at fault: a standing ego, or hit from behind (actor more than 150 degrees off the heading, seen from
    the rear axle). At fault: a standing actor, the front bumper in the actor, or else (lateral) only while
    the ego straddles lanes or leaves the road.
    """
    standing_N = np.abs(speed_N) <= STOPPED_MPS
    track_stopped = np.abs(actors.speed_mps) <= STOPPED_MPS
    behind = bearing(rear_x_N, rear_y_N, ego.heading_rad, actors) > BEHIND_RAD
    front = overlap(ego.front_edge().column(), actors.boxes())
    active = track_stopped | (~behind & (front | straddling_N[:, None]))
    return np.asarray(active & ~standing_N[:, None])


def collision_term(hit_NM: B, fault_NM: B, is_object_NM: B) -> F:
    """NC, [N]: 0 for an at-fault hit on a road user, 1/2 on an object, else 1."""
    guilty = hit_NM & fault_NM
    user = (guilty & ~is_object_NM).any(1)
    thing = (guilty & is_object_NM).any(1)
    return np.where(user, 0.0, np.where(thing, 0.5, 1.0))


def drivable_term(inside_N4: B) -> F:
    """DAC, [N]: 1 while all four corners lie on the drivable area, else 0."""
    return np.asarray(inside_N4.all(1), np.float64)


def ttc_clear(ego: Boxes, rear_x_N: F, rear_y_N: F, speed_N: F, straddling_N: B, actors: Actors, ignore_NM: B) -> B:
    """[N] whether constant-velocity projections to 0.9 s stay free of the actors that count.

    Actors within 30 degrees ahead of the rear axle count; while the ego straddles lanes, all that are not
    behind. `ignore_NM` marks actors already touched. A standing ego is always clear.
    """
    angle = bearing(rear_x_N, rear_y_N, ego.heading_rad, actors)
    counts = (angle < AHEAD_RAD) | (straddling_N[:, None] & (angle < BEHIND_RAD))
    counts &= actors.present & ~ignore_NM
    met = np.zeros(actors.present.shape, bool)
    for t in TTC_TIMES_S:
        met |= overlap(ego.moved(speed_N * t).column(), actors.boxes().moved(actors.speed_mps * t))
    return np.asarray(~(met & counts).any(1) | (np.abs(speed_N) <= STOPPED_MPS))


def slope(samples_NW: F, dt_s: float) -> F:
    """[N] derivative at the middle of W evenly spaced samples: least squares over an odd window.

    Equal to a Savitzky-Golay first derivative of order 1 or 2 (Savitzky and Golay, Anal. Chem. 36, 1964).
    """
    half = samples_NW.shape[1] // 2
    k = np.arange(-half, half + 1)
    return np.asarray((samples_NW * k).sum(1) / (k**2).sum() / dt_s)


def comfortable(lon_accel_NW: F, lat_accel_NW: F, yaw_rate_NW: F, dt_s: float) -> B:
    """[N] whether the newest samples and the derivatives over the window keep nuPlan's comfort bounds.

    Args:
        lon_accel_NW: longitudinal acceleration, m/s^2; W = `SMOOTH_STEPS` samples, newest last.
        lat_accel_NW: lateral acceleration, m/s^2.
        yaw_rate_NW: rad/s.
        dt_s: seconds between samples.
    """
    lon, lat, yaw = lon_accel_NW[:, -1], lat_accel_NW[:, -1], yaw_rate_NW[:, -1]
    lon_jerk = slope(lon_accel_NW, dt_s)
    jerk = np.hypot(lon_jerk, slope(lat_accel_NW, dt_s))
    ok = (lon >= LON_ACCEL_MPS2[0]) & (lon <= LON_ACCEL_MPS2[1]) & (np.abs(lat) <= LAT_ACCEL_MPS2)
    ok &= (np.abs(lon_jerk) <= LON_JERK_MPS3) & (jerk <= JERK_MPS3)
    ok &= (np.abs(yaw) <= YAW_RATE_RADPS) & (np.abs(slope(yaw_rate_NW, dt_s)) <= YAW_ACCEL_RADPS2)
    return np.asarray(ok)


def progress_term(progress_m: F, best_m: F) -> F:
    """EP, [N]: route progress over that of the best safe proposal, 0..1; 1 where even that is at most 5 m."""
    ratio = np.clip(progress_m / np.maximum(best_m, PROGRESS_FLOOR_M), 0.0, 1.0)
    return np.where(best_m > PROGRESS_FLOOR_M, ratio, 1.0)


def pdm_score(nc: F, dac: F, ep: F, ttc: F, comfort: F) -> F:
    """PDMS, [N], 0..1."""
    return np.asarray(nc * dac * (5 * ep + 5 * ttc + 2 * comfort) / 12)
