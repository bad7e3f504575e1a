"""How smooth a demonstration is: spectral arc length (SPARC) and log dimensionless jerk (LDLJ).

Both are 0 at best and fall with every hesitation, correction and tremor. They do not depend on how large or how
long a movement is, so the demonstrations of one task can be ranked by them and the jerky ones left out.

Sources: Balasubramanian, Melendez-Calderon, Burdet, "A robust and sensitive metric for quantifying movement
smoothness", IEEE Trans. Biomed. Eng. 59(8), 2012; Balasubramanian, Melendez-Calderon, Roby-Brami, Burdet, "On the
analysis of movement smoothness", J. NeuroEng. Rehabil. 12:112, 2015 (padding, thresholds and LDLJ as there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.catalog import Catalog
from hagane.catalog.motion import Motion, motion_of, scales
from hagane.terms import Embodiment

_PAD_LEVELS = 4
_CUTOFF_HZ = 10.0
_AMPLITUDE = 0.05
_FEWEST_STEPS = 8
_FEWEST_EPISODES = 5
_FAR = 3.5


@dataclass(frozen=True)
class Smoothness:
    """Scores of one episode; NaN where nothing moves, or it is shorter than 8 control steps."""

    state_sparc: float
    """Spectral arc length of the speed at which the machine's states move."""
    action_sparc: float
    """The same of its commands."""
    state_ldlj: float
    """Log dimensionless jerk of the states."""
    action_ldlj: float
    """The same of its commands."""


def smoothness(motion: Motion, embodiment: Embodiment, scale_D: NDArray[np.float64]) -> Smoothness:
    """Score an episode.

    Args:
        motion: from `motion_of`.
        embodiment: its machine; commands that are differences or rates are speeds already.
        scale_D: [D] from `scales`, which makes radians and metres one; columns of scale 0 are left out.
    """
    scores = []
    for which, is_speed in ((motion.state_D, False), (motion.action_D, embodiment.convention != "absolute")):
        use = which & (scale_D > 0)
        rows_KC = motion.values_KD[:, use] / scale_D[use]
        speed_KC = rows_KC if is_speed else np.diff(rows_KC, axis=0) / motion.step_s
        scores.append((sparc(speed_KC, 1 / motion.step_s), log_jerk(speed_KC, 1 / motion.step_s)))
    return Smoothness(scores[0][0], scores[1][0], scores[0][1], scores[1][1])


def set_smoothness(catalog: Catalog, name: str, purpose: str) -> list[Smoothness]:
    """Score every episode of a data set, in order; columns are scaled by their spread over the whole set.

    Raises:
        Refused: the contract does not permit it.
        StoreError: no such data set; CorruptError: damaged.
    """
    machine = catalog.embodiment(name)
    scale_D = scales(machine, catalog.stats(name, purpose))
    return [smoothness(motion_of(e, machine), machine, scale_D) for e in catalog.episodes(name, purpose)]


def sparc(velocity_KC: NDArray[np.float64], rate_hz: float) -> float:
    """Spectral arc length of a movement; -1.40 for a minimum-jerk reach, -5 and less for a trembling one.

    The arc length of the speed's normalised amplitude spectrum, up to the frequency beyond which it stays below
    5%, at most 10 Hz (or half the rate).

    Args:
        velocity_KC: [K, C] velocity of C columns.
        rate_hz: rows a second.
    """
    speed_K = np.linalg.norm(velocity_KC, axis=1) if velocity_KC.shape[1] else np.zeros(len(velocity_KC))
    if len(speed_K) < _FEWEST_STEPS or not speed_K.max() > 1e-9:
        return float("nan")
    size = 2 ** (int(np.ceil(np.log2(len(speed_K)))) + _PAD_LEVELS)
    spectrum = np.abs(np.fft.rfft(speed_K, size))
    frequency_hz = np.fft.rfftfreq(size, 1 / rate_hz)
    spectrum = spectrum[frequency_hz <= _CUTOFF_HZ] / spectrum.max()
    last = int(np.flatnonzero(spectrum >= _AMPLITUDE)[-1])
    spectrum = spectrum[: last + 1]
    if last < 1:
        return 0.0
    return float(-np.hypot(1 / last, np.diff(spectrum)).sum())


def log_jerk(velocity_KC: NDArray[np.float64], rate_hz: float) -> float:
    """Log dimensionless jerk: -ln(T^3 / peak speed^2 * integral of squared jerk); -5.32 for a minimum-jerk reach.

    Args:
        velocity_KC: [K, C] velocity of C columns.
        rate_hz: rows a second.
    """
    if len(velocity_KC) < _FEWEST_STEPS or not velocity_KC.shape[1]:
        return float("nan")
    peak = np.linalg.norm(velocity_KC, axis=1).max()
    jerk_KC = np.diff(velocity_KC, n=2, axis=0) * rate_hz**2
    integral = (jerk_KC**2).sum() / rate_hz
    if not peak > 1e-9 or not integral > 0:
        return float("nan")
    return float(-np.log((len(velocity_KC) / rate_hz) ** 3 / peak**2 * integral))


def jerky(scores_E: Sequence[float], tasks_E: Sequence[str]) -> NDArray[np.bool_]:
    """[E] True for episodes far less smooth than the others of their task: 3.5 robust deviations below the median.

    Tasks of fewer than five scored episodes mark nothing.
    """
    scores, tasks = np.asarray(scores_E, np.float64), np.asarray(tasks_E, object)
    out = np.zeros(len(scores), np.bool_)
    for task in set(tasks_E):
        group = (tasks == task) & np.isfinite(scores)
        if group.sum() < _FEWEST_EPISODES:
            continue
        middle = np.median(scores[group])
        spread = 1.4826 * np.median(np.abs(scores[group] - middle))
        out |= group & (scores < middle - max(_FAR * spread, 1e-9))
    return out
