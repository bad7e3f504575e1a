"""Samples out of columns: windows of history, commands ahead, and the next observation, gathered in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.columns import Columns, PictureSource
from hagane.catalog.order import PoolOrder, mix, positions, word
from hagane.catalog.rows import COMMANDED, SEEN
from hagane.catalog.video import POOL_EPISODES
from hagane.terms import Channel, Observation, Part, Reading, Window, gather_window, lags


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader needs to know about a data set beyond its columns."""

    keep_E: NDArray[np.bool_]
    """[E] episodes of this split."""
    usable: NDArray[np.int64]
    """Indices of control steps that are samples."""
    order: Callable[[int, int], NDArray[np.int64]]
    """(first, count) to [count] places in `usable`: a pure function of the position."""
    id_word_E: NDArray[np.uint64]
    """[E] hash of data set and episode."""


def make_source(columns: Columns, keep_E: NDArray[np.bool_], seed: int, split: str) -> Source:
    """The samples of the episodes that are kept: steps with a command, or with a next observation to predict."""
    episode_T = np.repeat(np.arange(len(columns.length_E), dtype=np.int32), columns.length_E)
    seen_T, commanded_T = (columns.flags_T & SEEN) > 0, (columns.flags_T & COMMANDED) > 0
    has_next_T = np.append(episode_T[1:] == episode_T[:-1], False) & np.append(seen_T[1:], False)
    usable = np.flatnonzero(seen_T & (commanded_T | has_next_T) & keep_E[episode_T])
    ids = np.array([word(columns.digest, i) for i in columns.episode_ids], np.uint64)
    key = word(seed, columns.digest, split)

    def anywhere(first: int, count: int) -> NDArray[np.int64]:
        return positions(first, count, len(usable), key)

    pooled = columns.mode == "video" and columns.pictures
    order = PoolOrder(episode_T[usable].astype(np.int64), POOL_EPISODES, key).at if pooled else anywhere
    return Source(keep_E, usable, order, ids)


def gather(columns: Columns, source: Source, index_N: NDArray[np.int64], *, next_pictures: bool = True) -> Part:
    """The samples at N control steps.

    Args:
        columns: of one data set.
        source: what `make_source` knows of them.
        index_N: [N] control steps.
        next_pictures: False leaves image channels out of `Part.next`: each is one more picture to decode.

    Raises:
        CorruptError: a record or a picture that is needed differs from its crc32.
    """
    embodiment = columns.embodiment
    step_s = 1 / embodiment.rate_hz
    episode_N = np.searchsorted(columns.start_E, index_N, side="right") - 1
    start_N = columns.start_E[episode_N]
    end_N = start_N + columns.length_E[episode_N]
    past = {c.name: lags(c.history, is_action=c in embodiment.act) for c in embodiment.channels() if c.kind != "text"}
    longest = max(int(lag_S[-1]) for lag_S in past.values())
    ahead = max(embodiment.horizon, 2)
    columns.check(np.maximum(index_N - longest, start_N), np.minimum(index_N + ahead, end_N))
    windows, following = {}, {}
    observe, applied = columns.observe, columns.applied
    for c in embodiment.observe:
        if c.kind == "text":
            continue
        reading = observe[c.name]
        window = gather_window(reading, start_N, index_N, past[c.name], step_s)
        then = _next(reading, start_N, index_N, end_N) if c.kind != "image" or next_pictures else None
        if c.kind == "image":
            first_N = columns.first_picture[c.name][episode_N]
            window = _decoded(window, first_N, columns.pictures[c.name], c)
            then = _decoded(then, first_N, columns.pictures[c.name], c) if then is not None else None
        windows[c.name] = window
        if then is not None:
            following[c.name] = then
    for c in embodiment.act:
        windows[c.name] = gather_window(applied[c.name], start_N, index_N, past[c.name], step_s)
    actions_NHA, valid_NH = _ahead(columns, index_N, end_N, episode_N)
    tasks = tuple(columns.tasks[e] for e in episode_N)
    observation = Observation(embodiment.name, columns.times_ns[index_N], windows, tasks)
    ids_N = mix(source.id_word_E[episode_N] + (index_N - start_N).astype(np.uint64))
    return Part(observation, actions_NHA, valid_NH, following, ids_N)


def _ahead(
    columns: Columns, index_N: NDArray[np.int64], end_N: NDArray[np.int64], episode_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[N, H, A] commands from now on, an episode's last usable one past its end, and [N, H] which of them count."""
    ahead_NH = index_N[:, None] + np.arange(columns.embodiment.horizon)
    inside_NH = ahead_NH < end_N[:, None]
    at_NH = np.minimum(ahead_NH, end_N[:, None] - 1)
    actions = np.where(inside_NH[..., None], columns.commands_TA[at_NH], columns.last_command_EA[episode_N][:, None])
    return actions, columns.command_valid_T[at_NH] & inside_NH


def joined(pieces: Sequence[Part]) -> Part:
    """Samples of several data sets of one machine, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0].observation
    channels = {n: _stacked([p.observation.channels[n] for p in pieces]) for n in first.channels}
    observation = replace(
        first,
        time_ns=np.concatenate([p.observation.time_ns for p in pieces]),
        channels=channels,
        tasks=tuple(t for p in pieces for t in p.observation.tasks),
    )
    return Part(
        observation,
        np.concatenate([p.actions_NHA for p in pieces]),
        np.concatenate([p.action_valid_NH for p in pieces]),
        {n: _stacked([p.next[n] for p in pieces]) for n in pieces[0].next},
        np.concatenate([p.sample_ids_N for p in pieces]),
    )


def _decoded(window: Window, first_N: NDArray[np.int64], pictures: PictureSource, channel: Channel) -> Window:
    """A window of picture numbers as a window of pictures, decoded into one buffer; zeros where not valid."""
    valid = window.valid.reshape(-1)
    number = (window.values + first_N[:, None]).reshape(-1)
    out = pictures.buffer(len(valid))
    out[~valid] = 0
    at = np.flatnonzero(valid)
    pictures.take(number[at], out, at)
    return Window(out.reshape(*window.valid.shape, *channel.shape), window.valid, window.age_s)


def _next(reading: Reading, start_N: NDArray[np.int64], index_N: NDArray[np.int64], end_N: NDArray[np.int64]) -> Window:
    """One step later; not valid (and 0) at an episode's end."""
    window = gather_window(reading, start_N, np.minimum(index_N + 1, end_N - 1), np.zeros(1, np.int64), 0.0)
    over_N = index_N + 1 >= end_N
    if over_N.any():
        # gather_window made these arrays, so they may be changed
        window.valid[over_N] = False
        window.values[over_N] = 0
    return window


def _stacked(windows: Sequence[Window]) -> Window:
    arrays: list[NDArray[Any]] = [
        np.concatenate([getattr(w, n) for w in windows]) for n in ("values", "valid", "age_s")
    ]
    return Window(*arrays)
