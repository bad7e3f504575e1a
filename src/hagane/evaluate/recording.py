"""A recorded drive played again: the log's applied actions, open loop, in the world and from the seed it came from.

What the world shows then must be what the log says it showed. A log whose action columns are swapped, turned or in
another unit trains a policy without a word and scores nothing; here it differs within seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hagane.evaluate.conventions import Check
from hagane.terms import APPLIED, ConfigError, Embodiment, Episode, Stream
from hagane.worlds import World

NEAR = 0.05
"""Largest median difference of a column between log and world, as a share of how much the column moves."""


def check_recording(world: World, case: str, seed: int, episode: Episode) -> tuple[Check, ...]:
    """Play an episode's applied actions again and compare every observed vector, and the outcome where it is told.

    Sets are left out (their places may be ordered anew by a log), and so are images and text.

    Args:
        world: where the episode was recorded; reset here.
        case: its case.
        seed: its seed.
        episode: as intake read it, actions on the control grid.

    Raises:
        ConfigError: the episode has no usable actions.
    """
    actions_TA, start_ns = recorded_actions(world.embodiment, episode)
    shown = play(world, case, seed, actions_TA)
    checks = []
    for channel in world.embodiment.observe:
        if channel.kind != "vector" or channel.name not in episode.streams:
            continue
        times_ns, values = shown[channel.name]
        error = difference(episode.streams[channel.name], times_ns + start_ns, values, world.embodiment.step_ns)
        worst = int(np.argmax(error))
        detail = f"column {worst} differs by {error[worst]:.1%} of its movement"
        checks.append(Check(f"replay of {channel.name}", bool(error[worst] <= NEAR), detail))
    if episode.outcome:
        now = "success" if world.scores()[0] >= 0.5 else "failure"
        checks.append(Check("outcome of the replay", now == episode.outcome, f"log: {episode.outcome}, replay: {now}"))
    return tuple(checks)


def recorded_actions(embodiment: Embodiment, episode: Episode) -> tuple[NDArray[np.float32], int]:
    """[T, A] actions as applied (commands where the log has no applied ones), and the time of the first.

    Raises:
        ConfigError: an action channel is missing, or channels of different length.
    """
    streams = []
    for channel in embodiment.act:
        stream = episode.streams.get(channel.name + APPLIED, episode.streams.get(channel.name))
        if stream is None or not len(stream):
            raise ConfigError(f"no actions under {channel.name!r}", where=f"episode {episode.id!r}")
        streams.append(stream)
    if len({len(s) for s in streams}) > 1:
        lengths = ", ".join(str(len(s)) for s in streams)
        raise ConfigError(f"action channels of different length: {lengths}", where=f"episode {episode.id!r}")
    joined = np.concatenate([s.values for s in streams], 1).astype(np.float32)
    return joined, int(streams[0].times_ns[0])


def play(
    world: World, case: str, seed: int, actions_TA: NDArray[np.float32]
) -> Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """By vector channel, when each sample was taken (ns from the start) and what the world showed, [T, d]."""
    world.reset(case, [seed])
    names = [c.name for c in world.embodiment.observe if c.kind == "vector"]
    times: dict[str, list[int]] = {name: [] for name in names}
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for t, action_A in enumerate(actions_TA):
        seen = world.observe()
        for name in names:
            late_s = float(seen[name].age_s[0]) - world.embodiment.channel(name).delay_s
            times[name].append(t * world.embodiment.step_ns - round(max(late_s, 0.0) * 1e9))
            values[name].append(np.asarray(seen[name].values[0], np.float64))
        world.step(action_A[None])
    return {name: (np.array(times[name], np.int64), np.stack(values[name])) for name in names}


def difference(
    stream: Stream, times_T: NDArray[np.int64], values_TD: NDArray[np.float64], step_ns: int
) -> NDArray[np.float64]:
    """[d] median difference of each column at equal times, as a share of the column's own standard deviation.

    A column that does not move is compared on the scale of its value. Infinite where no sample of the log is
    within half a control step of one of the world's.
    """
    at = np.abs(stream.times_ns[:, None] - times_T[None, :]).argmin(1)
    usable = stream.valid & (np.abs(stream.times_ns - times_T[at]) <= step_ns // 2)
    if not usable.any():
        return np.full(values_TD.shape[1], np.inf)
    gap_ND = np.abs(np.asarray(stream.values[usable], np.float64) - values_TD[at[usable]])
    scale_D = np.maximum(values_TD.std(0), 1e-3 * np.abs(values_TD).max(0) + 1e-6)
    # the later half: a wrong action needs time to show
    return np.asarray(np.median(gap_ND[len(gap_ND) // 2 :], 0) / scale_D)
