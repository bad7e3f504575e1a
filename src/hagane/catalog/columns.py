"""Training columns: all episodes of a data set end to end on the control grid, memory-mapped.

    index.json                 facts, with a sha256 of every file and of itself
    rows.bin                   one record a control step (hagane.catalog.rows), each with its crc32
    flags.bin, last.bin        which steps are samples; the last command of each episode
    pictures-003.*.bin         pictures of observed channel 3 (hagane.catalog.pictures or hagane.catalog.video)

They are a cache: derived from the canonical set, and built again when they are absent. Opening costs nothing at any
size: small files are hashed then, records and pictures are checked when they are read, and `verify` reads it all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.pictures import Pictures
from hagane.catalog.rows import RowLayout
from hagane.catalog.shelf import Rows, Shelf, check_digest, check_size, damaged_cache
from hagane.catalog.video import VideoPictures
from hagane.terms import CorruptError, Embodiment, Reading, canonical_json, digest_bytes

VERSION = 2
_BLOCK = 1 << 15
PictureMode = Literal["jpeg", "video"]
"""How a cache keeps pictures: each by itself, or a video an episode at about a tenth of the bytes."""
PICTURE_MODES: tuple[PictureMode, ...] = get_args(PictureMode)


class PictureSource(Protocol):
    """Gives pictures by number."""

    def take(self, number_N: NDArray[np.int64], out: NDArray[np.uint8], at_N: NDArray[np.int64]) -> None:
        """Decode pictures into rows `at_N` of `out`."""

    def buffer(self, rows: int) -> NDArray[np.uint8]:
        """[rows, height, width, 3] to decode into."""
        ...

    def check(self) -> None:
        """Read everything; raise CorruptError for what is damaged."""


@dataclass(frozen=True, eq=False)
class Columns:
    """T control steps of E episodes, end to end. Values are 0 where not valid."""

    name: str
    """Name of the data set."""
    digest: str
    """Content digest of the data set."""
    embodiment: Embodiment
    """The machine."""
    records: NDArray[Any]
    """[T] one record a control step."""
    flags_T: NDArray[np.uint8]
    """[T] `rows.SEEN` and `rows.COMMANDED`."""
    last_command_EA: NDArray[np.float32]
    """[E, A] last usable command of each episode."""
    start_E: NDArray[np.int64]
    """[E] first index of each episode."""
    length_E: NDArray[np.int64]
    """[E] control steps of each episode."""
    episode_ids: tuple[str, ...]
    """E ids."""
    tasks: tuple[str, ...]
    """E instructions."""
    pictures: Mapping[str, PictureSource]
    """By image channel."""
    first_picture: Mapping[str, NDArray[np.int64]]
    """By image channel: [E] number of each episode's first picture."""
    mode: PictureMode
    """How pictures are kept: samples of videos are drawn an episode pool at a time."""
    shelf: Shelf
    """Where the cache lies."""
    _rows: Rows = field(repr=False)
    _checked: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def folder(self) -> Path:
        """Of the cache."""
        return self.shelf.folder

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """[T] control times."""
        times: NDArray[np.int64] = self.records["time_ns"]
        return times

    @property
    def observe(self) -> dict[str, Reading]:
        """Observed channels (no text): values [T, *shape], valid [T] or [T, n], age_s [T].

        Pictures are [T] int64 numbers within their episode.
        """
        return RowLayout(self.embodiment).readings(self.records)

    @property
    def applied(self) -> dict[str, Reading]:
        """What the actuators did, by action channel."""
        return RowLayout(self.embodiment).applied(self.records)

    @property
    def commands_TA(self) -> NDArray[np.float32]:
        """[T, A] commands, action channels side by side."""
        commands: NDArray[np.float32] = self.records["commands"]
        return commands

    @property
    def command_valid_T(self) -> NDArray[np.bool_]:
        """[T] True where every action channel has a usable command."""
        valid: NDArray[np.bool_] = self.records["command_valid"]
        return valid

    def check(self, first_N: NDArray[np.int64], end_N: NDArray[np.int64]) -> None:
        """Check the records of N spans (crc32, or the tag of sealed ones); each once in the life of this object.

        Raises:
            CorruptError: a record differs; names file and episode.
        """
        k = self._rows.together
        first_N, end_N = (first_N, end_N) if k == 1 else (first_N // k, -(-end_N // k))
        longest = int((end_N - first_N).max(initial=0))
        blocks_NS = first_N[:, None] + np.arange(longest)
        blocks = blocks_NS[blocks_NS < end_N[:, None]]
        new = np.unique(blocks[~self._checked[blocks]])
        if not len(new):
            return
        bad = self._rows.check(new)
        if len(bad):
            first, last = int(bad[0]) * k, min(int(bad[0] + 1) * k, len(self)) - 1
            what = f"the record of {self._steps(first, last)} {self._rows.fault}"
            raise damaged_cache(self.folder / "rows.bin", what)
        self._checked[new] = True

    def _steps(self, first: int, last: int) -> str:
        """Words for a range of control steps, and the episodes that it is of."""
        e, f = (int(np.searchsorted(self.start_E, t, side="right")) - 1 for t in (first, last))
        a, b = first - int(self.start_E[e]), last - int(self.start_E[f])
        if e != f:
            return f"step {a} of episode {self.episode_ids[e]!r} to step {b} of episode {self.episode_ids[f]!r}"
        return f"step{f's {a} to' if a < b else ''} {b} of episode {self.episode_ids[e]!r}"

    def verify(self) -> None:
        """Read and check every byte.

        Raises:
            CorruptError: names the file, and the episode where it can.
        """
        for first in range(0, len(self), _BLOCK):
            self.check(np.array([first]), np.array([min(first + _BLOCK, len(self))]))
        for source in self.pictures.values():
            source.check()
        for name, told in read_facts(self.shelf)["files"].items():
            check_digest(self.shelf, name, told)


def is_current(shelf: Shelf) -> bool:
    """True for a cache of this version, damaged or not; an older one is to be built again."""
    try:
        return bool(json.loads(shelf.read("index.json"))["version"] == VERSION)
    except FileNotFoundError:
        return shelf.folder.exists()
    except (OSError, CorruptError, ValueError, KeyError, TypeError):
        return True


def open_columns(shelf: Shelf, embodiment: Embodiment) -> Columns:
    """Open a cache. Its small files are checked against their sha256, the large ones for their size.

    Raises:
        CorruptError: a file is missing or differs; the message names it.
    """
    facts = read_facts(shelf)
    for name, told in facts["files"].items():
        small = not (name == "rows.bin" or (name.count(".") == 2 and not name.endswith(".index.bin")))
        (check_digest if small else check_size)(shelf, name, told)
    layout, ids, mode = RowLayout(embodiment), tuple(facts["ids"]), facts["mode"]
    starts = np.array(facts["starts"], np.int64)
    first = {name: np.array(rows, np.int64) for name, rows in facts["first_picture"].items()}
    size = layout.dtype.itemsize
    if shelf.size("rows.bin") != size * sum(facts["lengths"]):
        raise damaged_cache(shelf.folder / "rows.bin")
    rows = shelf.rows("rows.bin", size)
    records = rows.data.view(layout.dtype)
    pictures: dict[str, PictureSource] = {}
    for i, c in enumerate(layout.seen):
        if c.kind == "image":
            stem = f"pictures-{i:03d}"
            shards = sum(n.startswith(stem) and not n.endswith(".index.bin") for n in facts["files"])
            kind = Pictures if mode == "jpeg" else VideoPictures
            pictures[c.name] = kind(shelf, stem, c.shape, shards, _Owner(first[c.name], ids))
    return Columns(
        facts["name"],
        facts["digest"],
        embodiment,
        records,
        shelf.map("flags.bin"),
        shelf.map("last.bin").view(np.float32).reshape(len(ids), -1),
        starts,
        np.array(facts["lengths"], np.int64),
        ids,
        tuple(facts["tasks"]),
        pictures,
        first,
        mode,
        shelf,
        rows,
        np.zeros(-(-len(records) // rows.together), np.bool_),
    )


@dataclass(frozen=True, eq=False)
class _Owner:
    """Words for the episode that a picture belongs to."""

    first_E: NDArray[np.int64]
    ids: tuple[str, ...]

    def __call__(self, number: int) -> str:
        return f"episode {self.ids[int(np.searchsorted(self.first_E, number, side='right')) - 1]!r}"


def read_facts(shelf: Shelf) -> dict[str, Any]:
    """index.json, checked.

    Raises:
        CorruptError: missing, damaged, or of another version.
    """
    path = shelf.folder / "index.json"
    try:
        facts: dict[str, Any] = json.loads(shelf.read("index.json"))
        told = facts.pop("sha256")
    except (OSError, CorruptError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged_cache(path) from None
    if digest_bytes(canonical_json(facts)) != told or facts["version"] != VERSION:
        raise damaged_cache(path)
    return facts
