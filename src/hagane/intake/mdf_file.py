"""An MDF file open in asammdf: its channels by source, its groups' clocks, its columns of numbers."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.mdf_guard import MOST_SAMPLES, all_zipped, refuse_inflated, sorted_out
from hagane.intake.streams import MOST_S
from hagane.intake.zones import wall_clock_ns
from hagane.terms import LogError

Place = tuple[int, int]
"""Number of a group, and of a channel in it."""


@contextlib.contextmanager
def opened(path: Path, cut: str) -> Iterator[Any]:
    """The file in asammdf; whatever the library raises becomes one message.

    Raises:
        LogError: asammdf is not installed, or cannot read the file.
    """
    try:
        import asammdf
    except ImportError:
        raise LogError("reading MDF needs asammdf", where=str(path), next_step='pip install "hagane[mdf]"') from None
    logging.getLogger("asammdf").setLevel(logging.CRITICAL)
    refuse_inflated(path, all_zipped(path) if cut else sorted_out(path))
    file, words = None, ""
    with _quiet():
        try:
            file = asammdf.MDF(path, process_bus_logging=False)
            yield file
        except LogError:
            raise
        except Exception as e:
            # asammdf raises MdfException, struct.error, KeyError, ValueError and more for damaged bytes
            words = (str(e) or type(e).__name__).splitlines()[0][:120]
        finally:
            if file is not None:
                file.close()
        if words:
            gc.collect(1)  # its destructor fails now, while nobody is told, and not later
    if words:
        what = f"{cut}, and nothing before the cut can be read" if cut else "damaged MDF"
        raise LogError(f"{what}: {words}", where=str(path), next_step="copy it again from the machine")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """asammdf prints tracebacks, and its destructor fails on what it could not open, which Python would print too."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.unraisablehook = hook


@dataclass
class Measurement:
    """An open file, and the clocks of its groups."""

    path: Path
    file: Any
    timezone: str
    """IANA name of a start time that carries no zone; "" takes it as UTC."""
    cut: str
    """Words for a missing end, "" when the file is whole."""
    clocks_ns: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Times of a group that was read, by its number."""
    signals: dict[Place, Any] = field(default_factory=dict)
    """Channels that were read, raw."""
    checked: set[int] = field(default_factory=set)

    def places_of(self, name: str) -> list[Place]:
        """Where the file has a channel of this name."""
        return list(self.file.channels_db.get(name, ()))

    def group_name(self, group: int) -> str:
        """What people call a group: its acquisition name, else its comment."""
        head = self.file.groups[group].channel_group
        return str(getattr(head, "acq_name", "") or head.comment or "")

    def find(self, source: str, where: str) -> Place | None:
        """The one channel of this source; None when the file has none.

        Raises:
            LogError: several groups have it.
        """
        found = self.places_of(source)
        # names and groups may themselves hold dots
        for dot in (k for k, letter in enumerate(source) if letter == "." and not found):
            group, name = source[:dot], source[dot + 1 :]
            found = [p for p in self.places_of(name) if group in (self.group_name(p[0]), f"#{p[0]}")]
        if len(found) > 1:
            number, index = found[0]
            name = self.file.groups[number].channels[index].name
            group = self.group_name(number) or f"#{number}"
            places = ", ".join(f"#{g} {self.group_name(g)!r}" for g, _ in found[:6])
            raise LogError(
                f"source {source!r} is in {len(found)} groups: {places}",
                where=where,
                next_step=f'name the group, as in "{group}.{name}" or "#{number}.{name}"',
            )
        return found[0] if found else None

    def times_ns(self, group: int) -> NDArray[np.int64]:
        """Times of a group's samples, nanoseconds since 1970 where the file knows them.

        Raises:
            LogError: it has no time channel, or times that are no numbers.
        """
        if group not in self.clocks_ns:
            self.check(group)
            where = f"{self.path}, group #{group} {self.group_name(group)!r}"
            if self.file.masters_db.get(group) is None or not _is_time(self.file, group):
                raise LogError("the group has no time channel", where=where, next_step="choose another group")
            loaded = next((s.timestamps for (g, _), s in self.signals.items() if g == group), None)
            seconds = np.asarray(self.file.get_master(group) if loaded is None else loaded, np.float64)
            start_ns = _start_ns(self.file, self.timezone)
            # NaN is not below anything
            if not (np.abs(seconds) < MOST_S - abs(start_ns) / 1e9).all():
                raise LogError("the group's times are no numbers", where=where, next_step="choose another group")
            self.clocks_ns[group] = start_ns + np.rint(seconds * 1e9).astype(np.int64)
        return self.clocks_ns[group]

    def check(self, group: int) -> None:
        """Refuse a group whose blocks hold other than they claim, or fewer records than it counts."""
        if group in self.checked:
            return
        self.checked.add(group)
        part, head = self.file.groups[group], self.file.groups[group].channel_group
        blocks = list(part.get_data_blocks())
        if not self.cut:
            refuse_inflated(
                self.path,
                [(b.address, b.compressed_size, b.original_size) for b in blocks if b.block_type and not b.location],
            )
        record = head.samples_byte_nr + getattr(head, "invalidation_bytes_nr", 0)
        have = sum(b.original_size or 0 for b in blocks)
        if head.cycles_nr > MOST_SAMPLES or (not self.cut and record * head.cycles_nr > have):
            raise LogError(
                f"the group counts {head.cycles_nr:,} records of {record} bytes, its data hold {have:,} bytes",
                where=f"{self.path}, group #{group} {self.group_name(group)!r}",
                next_step="copy it again from the machine",
            )

    def load(self, places: Iterable[Place]) -> None:
        """Read these channels and no others: one pass over the blocks of their groups."""
        wanted = sorted(set(places))
        for group, _ in wanted:
            self.check(group)
        chosen = [(None, group, index) for group, index in wanted]
        # raw: the conversion comes later, with words left out; all samples, those with an invalidation bit too
        self.signals = dict(zip(wanted, self.file.select(chosen, raw=True, copy_master=False), strict=True))

    def column(self, place: Place, where: str) -> tuple[NDArray[np.float64], NDArray[np.bool_], str]:
        """Physical values of a channel that was loaded, which are valid, and the unit."""
        signal = self.signals[place]
        samples = signal.physical(copy=False, ignore_value2text_conversions=True).samples
        if samples.dtype.kind not in "biuf" or samples.ndim != 1:
            raise LogError("the channel holds no single numbers", where=where, next_step="choose another source")
        invalid = signal.invalidation_bits
        good = np.ones(len(samples), bool) if invalid is None else ~np.asarray(invalid, bool)
        return samples.astype(np.float64), good, signal.unit or ""


def _is_time(file: Any, group: int) -> bool:
    master = file.groups[group].channels[file.masters_db[group]]
    return file.version < "4" or master.sync_type in (0, 1)


def _start_ns(file: Any, timezone: str) -> int:
    """Start of the measurement, nanoseconds since 1970; a local time is UTC unless `timezone` names its zone."""
    start: datetime = file.header.start_time
    if start.tzinfo is not None and file.version >= "4":
        return int(file.header.abs_time)
    return wall_clock_ns(start, timezone)
