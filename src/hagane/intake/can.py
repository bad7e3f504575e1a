"""CAN logs with a DBC into Episodes: candump text, BLF, ASC, and folders of NumPy arrays (comma2k19).

Drives. A log whose DBC has a message TRIP (signals DRIVE, STATE 1 start / 2 end, OUTCOME, TASK) holds many
drives, each between its start and end frame; value tables name outcomes and tasks. Without TRIP, a silence of
more than 10 s (`Options.gap_s`) starts a new episode.
Times are the log's own; every stream keeps its native stamps, moved so that the episode begins at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.can_dbc import Definitions, load_dbc
from hagane.intake.can_files import load_recording, looks_like_can
from hagane.intake.can_streams import Traffic, stream_of_channel
from hagane.intake.files import refuse_outside
from hagane.intake.frames import Frames, Recording
from hagane.intake.options import Options
from hagane.intake.signals import Message, decode
from hagane.intake.streams import episode_ids, known_outcome, note, on_episode_clock, pieces, unmapped, with_cut
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream

TRIP = "TRIP"
_GAP_S = 10.0


@dataclass(frozen=True)
class Drive:
    """Rows [first, last) of the frames of one drive."""

    id: str
    first: int
    last: int
    task: str = ""
    outcome: str = ""
    cut: str = ""
    """Why its end is missing; "" when it is whole."""
    marked: bool = False
    """Its ends are marked by TRIP frames: without its end it is not whole."""


def sniff(path: Path) -> bool:
    """True for a candump, BLF or ASC log, or a folder of CAN arrays."""
    return looks_like_can(path)


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """Episodes of a CAN log.

    Raises:
        LogError: a line that is no frame, a DBC that lacks a message asked for or has it on a broken line, a log
            without any of the messages asked for, or a log that is cut (unless `keep_whole`).
    """
    definitions = load_dbc(options.dbc or dbc_beside(path))
    return episodes_of(load_recording(path, options), path, embodiment, options, definitions)


def episodes_of(
    log: Recording, path: Path, embodiment: Embodiment, options: Options, definitions: Definitions
) -> Iterator[Episode]:
    """Episodes of the frames of one log, wherever they came from.

    Raises:
        LogError: as `read`.
    """
    frames, messages, where = log.frames, definitions.messages, str(path)
    if not len(frames):
        what = f"the log holds no frame: {log.cut}" if log.cut else "the log holds no frame"
        raise LogError(what, where=where, next_step="copy it again from the machine")
    traffic = Traffic(frames, messages, str(definitions.path), options.bus)
    wanted = [(c, False) for c in embodiment.channels()] + [(c, True) for c in embodiment.act]
    wanted = [(c, applied) for c, applied in wanted if c.kind in ("vector", "set")]
    _refuse_foreign(traffic, _ids(traffic, [c for c, _ in wanted], definitions), where)
    # a folder may be given as "." and may have dots in its name
    stem = path.absolute().name if path.is_dir() else path.stem
    drives = split_drives(frames, messages, stem, options, log.cut)
    if not drives:
        what = f"no TRIP frame of {len(frames)} frames starts a drive{f'; {log.cut}' if log.cut else ''}"
        raise LogError(what, where=where, next_step="copy the log from its start, or use a DBC without TRIP")
    whole = [d for d in drives if not d.cut or not d.marked or d is not drives[-1]]
    last = drives[-1]
    if last.cut and not (options.keep_whole and whole):
        before = f"{len(whole)} whole drives come before it" if last.marked else f"{len(frames)} frames come before it"
        raise LogError(
            f"truncated log: {last.cut} (drive {last.id}); {before}",
            where=where,
            next_step="copy it again, or pass --keep-whole to take what lies whole before the cut",
        )
    return _episodes(traffic, wanted, embodiment, whole, drives, options, (log, definitions))


def _ids(traffic: Traffic, channels: list[Channel], definitions: Definitions) -> set[int]:
    try:
        return traffic.ids_of(channels)
    except LogError as e:
        if not definitions.bad:
            raise
        next_step = f"mend the DBC's lines; or {e.next_step}"
        raise LogError(f"{e.what}; {definitions.words()}", where=e.where, next_step=next_step) from None


def _episodes(
    traffic: Traffic,
    wanted: list[tuple[Channel, bool]],
    embodiment: Embodiment,
    whole: list[Drive],
    drives: list[Drive],
    options: Options,
    source: tuple[Recording, Definitions],
) -> Iterator[Episode]:
    outside = len(traffic.frames) - sum(d.last - d.first for d in drives)
    for drive in whole:
        streams: dict[str, Stream] = {}
        findings = list(_about(drive.id, *source, outside)) if drive is whole[0] else []
        for channel, applied in wanted:
            name = channel.name + (APPLIED if applied else "")
            stream = stream_of_channel(traffic, channel, embodiment, drive.first, drive.last, applied=applied)
            if stream is not None:
                streams[name] = stream
            elif not applied:
                findings.append(unmapped(drive.id, name, "no frame of its messages in this drive"))
        lost = f"drive {drives[-1].id} left out: {drives[-1].cut}" if drive is whole[-1] is not drives[-1] else ""
        episode = Episode(
            drive.id,
            embodiment.name,
            streams,
            task=drive.task or options.task,
            outcome=drive.outcome,
            digest=source[0].digest,
            findings=tuple(findings),
        )
        yield with_cut(with_cut(on_episode_clock(episode), drive.cut), lost)


def _about(drive: str, log: Recording, definitions: Definitions, outside: int) -> Iterator[Finding]:
    """Findings on the log as a whole; its first drive carries them."""
    if outside:
        yield unmapped(drive, "*", f"{outside} frames lie between the drives and belong to none", outside)
    for kind, count in log.skipped.items():
        if count:
            detail = f"{count} {kind} frame{'s' if count > 1 else ''} left out: they carry no data"
            yield note(drive, "*", detail, count)
    for text in log.notes:
        yield note(drive, "*", text)
    if definitions.bad:
        yield note(drive, "*", definitions.words(), len(definitions.bad))


def dbc_beside(path: Path) -> Path:
    """The only .dbc file beside a log (or in its folder).

    Raises:
        LogError: there is none, more than one, or a link that leads out of the folder.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and (same := path.with_suffix(".dbc")).is_file():
        refuse_outside(same, folder)
        return same
    found = sorted(folder.glob("*.dbc"))
    if len(found) != 1:
        what = "no DBC file beside the log" if not found else f"{len(found)} DBC files beside the log"
        raise LogError(what, where=str(path), next_step="name it: --dbc FILE.dbc")
    refuse_outside(found[0], folder)
    return found[0]


def _refuse_foreign(traffic: Traffic, ids: set[int], where: str) -> None:
    seen = set(np.unique(traffic.frames.ids).tolist())
    buses = np.unique(traffic.frames.buses).tolist()
    if ids & seen and traffic.bus not in (None, *buses):
        raise LogError(
            f"no frame is of bus {traffic.bus}; the log has {', '.join(map(str, buses))}",
            where=where,
            next_step="pass one of these as --read bus=N, or none",
        )
    if not ids & seen:
        names = sorted({m.name for m in traffic.messages.values() if m.id in seen})
        hint = f"the DBC knows these of its messages: {', '.join(names[:6])}" if names else "it knows none of its ids"
        raise LogError(
            f"none of the {len(ids)} messages asked for is in the log; {hint}",
            where=where,
            next_step="check --dbc, --read bus=N and the embodiment's sources",
        )


def split_drives(frames: Frames, messages: dict[str, Message], stem: str, options: Options, cut: str) -> list[Drive]:
    """Drives of a log, in order; the last one carries `cut` when the log's end is missing."""
    trip = messages.get(TRIP)
    if trip is not None and {"DRIVE", "STATE"} <= set(trip.signals) and (frames.ids == trip.id).any():
        return _by_trip(frames, trip, stem, cut)
    found = pieces(np.abs(np.diff(frames.times_ns)) > round((options.gap_s or _GAP_S) * 1e9))
    ids = episode_ids(stem, len(found))
    drives = [Drive(name, first, last) for name, (first, last) in zip(ids, found, strict=True)]
    return [*drives[:-1], replace(drives[-1], cut=cut)]


def _by_trip(frames: Frames, trip: Message, stem: str, cut: str) -> list[Drive]:
    rows = np.flatnonzero(frames.ids == trip.id)

    def column(name: str) -> NDArray[np.int64]:
        if name not in trip.signals:
            return np.zeros(len(rows), np.int64)
        values, present = decode(frames.data[rows], frames.lengths[rows], trip, trip.signals[name])
        return np.where(present, values, 0).astype(np.int64)

    state, number, outcome, task = column("STATE"), column("DRIVE"), column("OUTCOME"), column("TASK")
    outcomes = trip.signals["OUTCOME"].choices if "OUTCOME" in trip.signals else {}
    tasks = trip.signals["TASK"].choices if "TASK" in trip.signals else {}
    starts = np.flatnonzero(state == 1)
    drives = []
    for k, start in enumerate(starts):
        after = starts[k + 1] if k + 1 < len(starts) else len(rows)
        ends = np.flatnonzero((state[start:after] == 2) & (number[start:after] == number[start])) + start
        is_last = k + 1 == len(starts)
        why = "" if len(ends) else (cut or "no TRIP end frame")
        last = rows[ends[0]] + 1 if len(ends) else (len(frames) if is_last else rows[after])
        result = outcomes.get(int(outcome[ends[0]]), "") if len(ends) else ""
        drives.append(
            Drive(
                f"{stem}-{int(number[start]):05d}",
                int(rows[start]),
                int(last),
                str(tasks.get(int(task[start]), "")),
                known_outcome(result),
                why,
                marked=True,
            )
        )
    if cut and drives and not drives[-1].cut:
        # the cut came after the end of the last drive: that drive is whole, what followed never began
        drives.append(Drive(f"{stem}-{len(drives):05d}", len(frames), len(frames), cut=cut, marked=True))
    return drives
