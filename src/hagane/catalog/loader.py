"""Loader: the batch of a training step, as a pure function of (seed, mixture, step).

Nothing is remembered between steps: a resumed run, another process or another order of calls gets the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.catalog import Catalog
from hagane.catalog.columns import Columns
from hagane.catalog.mixture import Mixture
from hagane.catalog.order import mix, positions, word
from hagane.terms import (
    Batch,
    ConfigError,
    Embodiment,
    Observation,
    Part,
    Reading,
    StoreError,
    Window,
    digest_value,
    gather_window,
    lags,
)

Split = Literal["train", "held-out"]
HELD_OUT = 0.05
"""Share of episodes held out, by a hash of their id."""


class Loader:
    """Batches of a mixture of data sets, mixed over embodiments.

    Args:
        catalog: where the data sets lie; every one is read under `permit`. Or opened columns themselves.
        datasets: names of the data sets; ignored when columns are given.
        mixture: weights, temperature, seed.
        purpose: what for, as in contracts.
        samples_per_step: samples of a batch, over all embodiments.
        split: "train", or "held-out": whole episodes, about 5%, never seen in training.

    Raises:
        Refused: a contract does not permit the purpose.
        ConfigError: weights that do not fit the data sets, one machine described in two ways.
        StoreError: a data set without a usable sample; for "held-out", none with one (single episodes are left out).
    """

    def __init__(
        self,
        catalog: Catalog | Sequence[Columns],
        datasets: Sequence[str],
        mixture: Mixture,
        *,
        purpose: str,
        samples_per_step: int,
        split: Split = "train",
    ) -> None:
        opened = [catalog.columns(n, purpose) for n in sorted(datasets)] if isinstance(catalog, Catalog) else catalog
        self.mixture, self.split, self.samples_per_step = mixture, split, samples_per_step
        self.datasets: dict[str, Columns] = {c.name: c for c in sorted(opened, key=lambda c: c.name)}
        if not self.datasets or len(self.datasets) < len(opened):
            raise ConfigError("a loader needs data sets, each once")
        mixture.shares(list(self.datasets))
        self._sources = {n: _source(c, mixture.seed, split) for n, c in self.datasets.items()}
        if split == "held-out":
            # a data set of a single episode has nothing to hold out, and the others still do
            mixture = self._drop_empty(mixture)
        for name, source in self._sources.items():
            if not len(source.usable):
                raise StoreError(
                    f"no usable sample in split {split!r}",
                    where=f"data set {name!r}",
                    next_step="add episodes: a split is made of whole episodes",
                )
        self.counts = mixture.counts(list(self.datasets), samples_per_step)
        self.embodiments: dict[str, Embodiment] = {}
        for c in self.datasets.values():
            if self.embodiments.setdefault(c.embodiment.name, c.embodiment) != c.embodiment:
                raise ConfigError(f"embodiment {c.embodiment.name!r} is described differently in {c.name!r}")

    @property
    def digest(self) -> str:
        """Covers the data sets' content, the mixture and the size of a step: equal digests give equal batches."""
        told = {
            "datasets": {n: c.digest for n, c in self.datasets.items()},
            "weights": dict(self.mixture.weights),
            "temperature": self.mixture.temperature,
            "seed": self.mixture.seed,
            "samples_per_step": self.samples_per_step,
            "split": self.split,
        }
        return digest_value(told)

    @property
    def samples(self) -> dict[str, int]:
        """Samples of each data set in this split: one epoch."""
        return {n: len(s.usable) for n, s in self._sources.items()}

    @property
    def episodes(self) -> dict[str, tuple[str, ...]]:
        """Ids of the episodes of each data set in this split."""
        return {
            n: tuple(i for i, keep in zip(c.episode_ids, self._sources[n].keep_E, strict=True) if keep)
            for n, c in self.datasets.items()
        }

    def epochs(self, step: int) -> dict[str, float]:
        """How often each data set was gone through before a step."""
        return {n: step * self.counts[n] / len(s.usable) for n, s in self._sources.items()}

    def at(self, step: int) -> Batch:
        """The batch of a step, from 0.

        Raises:
            ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        parts = []
        for name in sorted(self.embodiments):
            pieces = []
            for dataset, columns in self.datasets.items():
                if columns.embodiment.name == name:
                    source, count = self._sources[dataset], self.counts[dataset]
                    index_N = source.usable[positions(step * count, count, len(source.usable), source.key)]
                    pieces.append(gather(columns, source, index_N))
            parts.append(pieces[0] if len(pieces) == 1 else _joined(pieces))
        return Batch(step, tuple(parts))

    def _drop_empty(self, mixture: Mixture) -> Mixture:
        kept = {n: c for n, c in self.datasets.items() if len(self._sources[n].usable)}
        if kept:
            self.datasets, self._sources = kept, {n: self._sources[n] for n in kept}
        return replace(mixture, weights={n: w for n, w in mixture.weights.items() if n in self.datasets})


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader needs to know about a data set beyond its columns."""

    key: np.uint64
    """Key of its order."""
    keep_E: NDArray[np.bool_]
    """[E] episodes of this split."""
    usable: NDArray[np.int64]
    """Indices of control steps that are samples."""
    episode_T: NDArray[np.int32]
    """[T] episode of each control step."""
    last_command_EA: NDArray[np.float32]
    """[E, A] last usable command of each episode: pads chunks that reach past its end."""
    id_word_E: NDArray[np.uint64]
    """[E] hash of data set and episode."""


def gather(columns: Columns, source: Source, index_N: NDArray[np.int64]) -> Part:
    """The samples at N control steps: windows of history, commands ahead, and the next observation."""
    embodiment = columns.embodiment
    step_s = 1 / embodiment.rate_hz
    episode_N = source.episode_T[index_N]
    start_N = columns.start_E[episode_N]
    end_N = start_N + columns.length_E[episode_N]
    windows, following = {}, {}
    for c in embodiment.observe:
        if c.kind == "text":
            continue
        reading = columns.observe[c.name]
        windows[c.name] = gather_window(reading, start_N, index_N, lags(c.history, is_action=False), step_s)
        following[c.name] = _next(reading, start_N, index_N, end_N)
    for c in embodiment.act:
        past = lags(c.history, is_action=True)
        windows[c.name] = gather_window(columns.applied[c.name], start_N, index_N, past, step_s)
    ahead_NH = index_N[:, None] + np.arange(embodiment.horizon)
    inside_NH = ahead_NH < end_N[:, None]
    at_NH = np.minimum(ahead_NH, end_N[:, None] - 1)
    actions = np.where(inside_NH[..., None], columns.commands_TA[at_NH], source.last_command_EA[episode_N][:, None])
    tasks = tuple(columns.tasks[e] for e in episode_N)
    observation = Observation(embodiment.name, columns.times_ns[index_N], windows, tasks)
    ids_N = mix(source.id_word_E[episode_N] + (index_N - start_N).astype(np.uint64))
    return Part(observation, actions, columns.command_valid_T[at_NH] & inside_NH, following, ids_N)


def held_out(episode_ids: Sequence[str]) -> NDArray[np.bool_]:
    """[E] True for episodes that are held out: those whose id hashes below `HELD_OUT`.

    Of two or more episodes at least one is held out (the lowest hash), and at least one is not.
    """
    rank = np.array([word("held-out", i) for i in episode_ids], np.uint64) / 2.0**64
    out = np.asarray(rank < HELD_OUT)
    if len(rank) > 1 and not out.any():
        out[rank.argmin()] = True
    if len(rank) and out.all():
        out[rank.argmax()] = False
    return out


def _source(columns: Columns, seed: int, split: Split) -> Source:
    if split not in ("train", "held-out"):
        raise ConfigError(f"there is no split {split!r}", next_step="use train or held-out")
    out_E = held_out(columns.episode_ids)
    keep_E = out_E if split == "held-out" else ~out_E
    episode_T = np.repeat(np.arange(len(columns.length_E), dtype=np.int32), columns.length_E)
    flags = [r.valid.reshape(len(columns), -1).any(1) for r in columns.observe.values()]
    seen_T = np.any(flags, axis=0) if flags else np.zeros(len(columns), np.bool_)
    has_next_T = np.append(episode_T[1:] == episode_T[:-1], False) & np.append(seen_T[1:], False)
    usable = np.flatnonzero(seen_T & (columns.command_valid_T | has_next_T) & keep_E[episode_T])
    last = np.zeros((len(columns.length_E), columns.commands_TA.shape[1]), np.float32)
    valid = np.flatnonzero(columns.command_valid_T)
    last[episode_T[valid]] = columns.commands_TA[valid]  # in ascending order, so the last one stays
    ids = np.array([word(columns.digest, i) for i in columns.episode_ids], np.uint64)
    return Source(word(seed, columns.digest, split), keep_E, usable, episode_T, last, ids)


def _next(reading: Reading, start_N: NDArray[np.int64], index_N: NDArray[np.int64], end_N: NDArray[np.int64]) -> Window:
    """One step later; not valid (and 0) at an episode's end."""
    window = gather_window(reading, start_N, np.minimum(index_N + 1, end_N - 1), np.zeros(1, np.int64), 0.0)
    over_N = index_N + 1 >= end_N
    if over_N.any():
        # gather_window made these arrays, so they may be changed
        window.valid[over_N] = False
        window.values[over_N] = 0
    return window


def _joined(pieces: Sequence[Part]) -> Part:
    """Samples of several data sets of one machine, one after another."""
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


def _stacked(windows: Sequence[Window]) -> Window:
    return Window(
        np.concatenate([w.values for w in windows]),
        np.concatenate([w.valid for w in windows]),
        np.concatenate([w.age_s for w in windows]),
    )
