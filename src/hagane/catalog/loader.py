"""Loader: the batch of a training step, as a pure function of (seed, mixture, step).

Nothing is remembered between steps: a resumed run, another process, another number of ranks or workers, or another
order of calls gets the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.catalog import Catalog
from hagane.catalog.columns import Columns, PictureMode
from hagane.catalog.mixture import Mixture
from hagane.catalog.order import word
from hagane.catalog.samples import gather, joined, make_source
from hagane.catalog.split import Split, split_of
from hagane.terms import Batch, ConfigError, Embodiment, StoreError, digest_value

Side = Literal["train", "held-out"]
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
        pictures: "jpeg", or "video" for little disk; ignored when columns are given.
        next_pictures: False spares the decoding of each sample's next pictures, which the second loss predicts.
        divided: which episodes are held out, by `hagane catalog split`; None holds out by a hash of their ids.

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
        split: Side = "train",
        pictures: PictureMode = "jpeg",
        next_pictures: bool = True,
        divided: Split | None = None,
    ) -> None:
        if isinstance(catalog, Catalog):
            opened: Sequence[Columns] = [catalog.columns(n, purpose, pictures) for n in sorted(datasets)]
        else:
            opened = catalog
        if split not in ("train", "held-out"):
            raise ConfigError(f"there is no split {split!r}", next_step="use train or held-out")
        self._next_pictures, self._divided = next_pictures, divided
        self.mixture, self.split, self.samples_per_step = mixture, split, samples_per_step
        self.opened = tuple(opened)
        """Columns of all the data sets, those without a sample on this side too."""
        self.datasets: dict[str, Columns] = {c.name: c for c in sorted(opened, key=lambda c: c.name)}
        if not self.datasets or len(self.datasets) < len(opened):
            raise ConfigError("a loader needs data sets, each once")
        mixture.shares(list(self.datasets))
        self._sources = {
            n: make_source(c, kept(c, split, divided), mixture.seed, split) for n, c in self.datasets.items()
        }
        if split == "held-out" or divided is not None:
            # a data set of a single episode has nothing to hold out, a held site nothing to train on; others do
            mixture = self._drop_empty(mixture)
        for name, source in self._sources.items():
            if not len(source.usable):
                raise StoreError(
                    f"no usable sample in split {split!r}",
                    where=f"data set {name!r}",
                    next_step="add episodes: a split is made of whole episodes",
                )
        self.counts = mixture.counts(list(self.datasets), samples_per_step)
        self.embodiments = _machines(self.datasets.values())
        """Machines by name."""

    @property
    def cursor(self) -> dict[str, str]:
        """Two hashes that, with the step, say where a run stands: the data, and how it is mixed and drawn."""
        videos = sorted(n for n, c in self.datasets.items() if c.mode == "video" and c.pictures)
        mixed: dict[str, Any] = {
            "weights": dict(self.mixture.weights),
            "temperature": self.mixture.temperature,
            "seed": self.mixture.seed,
            "samples_per_step": self.samples_per_step,
            "split": self.split,
            "videos": videos,
            "divided": digest_value(self._divided) if self._divided else "",
        }
        if not self._next_pictures:
            mixed["next_pictures"] = False  # said only where it is so: runs of before keep their hash
        return {"data": digest_value({n: c.digest for n, c in self.datasets.items()}), "mixture": digest_value(mixed)}

    @property
    def digest(self) -> str:
        """Of the cursor: equal digests give equal batches."""
        return digest_value(self.cursor)

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

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of a step, from 0; or one rank's share of it: every `ranks`-th sample of each part.

        Raises:
            ValueError: a negative step, or a rank outside of 0..ranks-1.
            CorruptError: stored bytes differ from their crc32; names file and episode.
        """
        if step < 0 or not 0 <= rank < ranks:
            raise ValueError(f"step {step} is negative, or rank {rank} is not one of {ranks}")
        parts = []
        for name in sorted(self.embodiments):
            pieces, before = [], 0
            for dataset, columns in self.datasets.items():
                if columns.embodiment.name != name:
                    continue
                source, count = self._sources[dataset], self.counts[dataset]
                places_N = source.order(step * count, count)[(rank - before) % ranks :: ranks]
                pieces.append(gather(columns, source, source.usable[places_N], next_pictures=self._next_pictures))
                before += count
            parts.append(joined(pieces))
        return Batch(step, tuple(parts), rank, ranks)

    def _drop_empty(self, mixture: Mixture) -> Mixture:
        kept = {n: c for n, c in self.datasets.items() if len(self._sources[n].usable)}
        if kept:
            self.datasets, self._sources = kept, {n: self._sources[n] for n in kept}
        return replace(mixture, weights={n: w for n, w in mixture.weights.items() if n in self.datasets})


def _machines(datasets: Iterable[Columns]) -> dict[str, Embodiment]:
    found: dict[str, Embodiment] = {}
    for c in datasets:
        if found.setdefault(c.embodiment.name, c.embodiment) != c.embodiment:
            raise ConfigError(f"embodiment {c.embodiment.name!r} is described differently in {c.name!r}")
    return found


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


def kept(columns: Columns, split: Side, divided: Split | None = None) -> NDArray[np.bool_]:
    """[E] episodes of a side.

    Raises:
        ConfigError: the division does not know the data set, or knew it with other content.
    """
    if divided is not None:
        sides = split_of(divided, columns.name, columns.digest, columns.episode_ids)
        out_E = np.array([side == "held" for side in sides], np.bool_)
    else:
        out_E = held_out(columns.episode_ids)
    return out_E if split == "held-out" else ~out_E
