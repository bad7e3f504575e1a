"""Episodes that are copies of each other: exactly, or with noise, another rate, cut ends or a shifted clock.

Near copies are looked for in two steps, so that 100,000 episodes can be compared: every episode's nearest
neighbours in a small feature space (exact, in blocks of matrix products), then each such pair laid over each other
at its best lag. A pair is reported only when it agrees in every single column and explains nearly all that the
episode does: two runs of one task by the same expert are no copies.

Not found: copies played at another speed, cut by more than a fifth, mirrored, or alike in pictures only. Where an
expert repeats a task that hardly varies, a few runs in thousands are as near as copies: look at the difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.catalog import Catalog
from hagane.catalog.motion import motion_of, scales
from hagane.catalog.overlay import EQUAL, Overlay, overlay
from hagane.catalog.signature import CUTS, Signature, features, signature

_NEIGHBOURS = 16
_BLOCK = 512
_REACH = 0.5


@dataclass(frozen=True)
class Copy:
    """Two episodes that hold the same run."""

    first: tuple[str, str]
    """(data set, episode id) of the one that came first."""
    second: tuple[str, str]
    """(data set, episode id) of the other."""
    kind: Literal["same", "near"]
    """same: streams are equal in every bit; near: the same movement."""
    difference: float = 0.0
    """RMS difference of the worst column, in units of its usual spread."""
    lag_s: float = 0.0
    """Where the second begins on the first one's clock, seconds."""
    overlap: float = 1.0
    """Part of the longer one that both cover."""


def catalog_signatures(catalog: Catalog, names: Sequence[str], purpose: str = "view") -> list[Signature]:
    """Signatures of all episodes of some data sets, in order; data sets of one machine share their scale.

    Raises:
        Refused: a contract does not permit it.
        StoreError: no such data set; CorruptError: damaged.
    """
    machines: dict[str, list[str]] = defaultdict(list)
    for name in names:
        machines[catalog.record(name).embodiment].append(name)
    scale = {m: scales(catalog.embodiment(own[0]), catalog.stats(own, purpose)) for m, own in machines.items()}
    out = []
    for name in names:
        machine = catalog.embodiment(name)
        for episode in catalog.episodes(name, purpose):
            out.append(signature(name, episode, machine, motion_of(episode, machine), scale[machine.name]))
    return out


def find_copies(signatures: Sequence[Signature]) -> list[Copy]:
    """All copies among some episodes, those that came first first."""
    found = _same(signatures)
    # of episodes that are equal in every bit, one stands for all in the search for near ones
    alone = {s.streams: k for k, s in reversed(list(enumerate(signatures)))}
    layouts: dict[str, list[int]] = defaultdict(list)
    for k in sorted(alone.values()):
        layouts[signatures[k].layout].append(k)
    for numbers in layouts.values():
        group = [signatures[k] for k in numbers]
        for i, j in _candidates(group):
            laid = overlay(group[i], group[j])
            if laid.is_copy:
                found.append((numbers[i], numbers[j], _copy(group[i], group[j], "near", laid)))
    return [copy for _, _, copy in sorted(found, key=lambda f: f[:2])]


def copy_groups(copies: Iterable[Copy]) -> list[tuple[tuple[str, str], ...]]:
    """Episodes that belong together, as (data set, episode id): copies, and copies of copies."""
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(key: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for copy in copies:
        leader[find(copy.second)] = find(copy.first)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for key in leader:
        groups[find(key)].append(key)
    return [tuple(group) for group in groups.values()]


def _same(signatures: Sequence[Signature]) -> list[tuple[int, int, Copy]]:
    first: dict[str, int] = {}
    found = []
    for k, s in enumerate(signatures):
        at = first.setdefault(s.streams, k)
        if at != k:
            found.append((at, k, _copy(signatures[at], s, "same", EQUAL)))
    return found


def _copy(a: Signature, b: Signature, kind: Literal["same", "near"], laid: Overlay) -> Copy:
    return Copy((a.dataset, a.id), (b.dataset, b.id), kind, laid.worst, laid.lag_s, laid.overlap)


def _candidates(group: Sequence[Signature]) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) that may be copies: near neighbours in the feature space, and of like length."""
    if len(group) < 2:
        return
    curves = [s.curve_PD.astype(np.float32) for s in group]
    whole = np.stack([features(c, *CUTS[0]) for c in curves])
    seconds = np.array([s.seconds for s in group])
    best: list[dict[int, float]] = [{} for _ in group]
    for cut in CUTS:
        part = np.stack([features(c, *cut) for c in curves])
        for i, j, distance in _nearest(part, whole):
            if i != j and 0.6 <= (seconds[i] + 1e-9) / (seconds[j] + 1e-9) <= 1 / 0.6:
                best[i][j] = min(distance, best[i].get(j, np.inf))
    pairs = {
        (min(i, j), max(i, j)) for i, near in enumerate(best) for j in sorted(near, key=near.__getitem__)[:_NEIGHBOURS]
    }
    yield from sorted(pairs)


def _nearest(queries_NF: NDArray[np.float32], all_MF: NDArray[np.float32]) -> Iterator[tuple[int, int, float]]:
    """(query, neighbour, squared distance) of the nearest few within reach; exact, by blocks of a matrix product."""
    square_M = (all_MF**2).sum(1)
    count = min(_NEIGHBOURS + 1, len(all_MF))
    for at in range(0, len(queries_NF), _BLOCK):
        rows = queries_NF[at : at + _BLOCK]
        distance = square_M - 2 * rows @ all_MF.T + (rows**2).sum(1)[:, None]
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        close = np.take_along_axis(distance, near, 1)
        for k, slot in zip(*np.nonzero(close <= _REACH**2 * all_MF.shape[1]), strict=True):
            yield at + int(k), int(near[k, slot]), float(close[k, slot])
