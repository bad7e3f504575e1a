"""HDF5 logs of robots into Episodes: ALOHA files (one episode each) and robomimic files (many demonstrations).

    ALOHA      /observations/qpos, /observations/qvel, /observations/images/<camera>, /action; attributes sim, compress.
               Pictures are plain, or JPEG padded with zeros to one length; /compress_len holds the true lengths, its
               rows in the order of the writer's cameras, which the file does not tell.
    robomimic  /data/demo_<n>/{obs/<name>, actions, ...}; attribute env_args of /data (JSON); /mask/<split> lists demos.

Sources are paths in the episode: "observations/qpos", a column "observations/qpos.3", "obs/robot0_eef_pos", "actions".
Any other file whose datasets share their first axis is one episode, too. Colours are taken as they lie: RGB.
Sources: tonyzhaozh/act (record_sim_episodes.py), MarkFzp/mobile-aloha, robomimic.github.io (datasets overview).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.columns import Plan, absent_actions, features_of, make_stream, plan_channels, time_feature
from hagane.intake.hdf5_open import MOST_BYTES, Contents, check_dataset, is_hdf5, list_contents, opened
from hagane.intake.hdf5_pictures import encoded_pictures, is_encoded, plain_frames
from hagane.intake.lerobot_layout import Feature
from hagane.intake.options import Options
from hagane.intake.picture import PLAIN_BYTES, picture_size
from hagane.intake.sources import nearest
from hagane.intake.streams import note, number_times, on_episode_clock, regular_times
from hagane.terms import APPLIED, Embodiment, Episode, Finding, LogError, digest_file, digest_value

_TASKS = ("language_instruction", "instruction", "task", "language")


@dataclass(frozen=True)
class _Layout:
    """How a file holds its episodes."""

    demos: tuple[str, ...]
    """Groups of the episodes; ("",) when the file is one."""
    action: str
    """The dataset with all action channels."""
    lead: tuple[str, ...]
    """Groups in which observed channels are looked for by name."""

    def names(self, channel: str) -> tuple[str, ...]:
        return tuple(lead + channel for lead in self.lead)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What is known of a file before its values are read."""

    path: Path
    layout: _Layout
    plan: Plan
    known: dict[str, Feature]
    rows: dict[str, int]
    """Rows of each episode, by its group."""
    times: str
    """The dataset with the time stamps, or ""."""


def sniff(path: Path) -> bool:
    """True for HDF5 files of any layout."""
    return path.is_file() and is_hdf5(path)


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episodes of an HDF5 file; `options.split` takes those of one robomimic mask.

    Raises:
        LogError: damaged or truncated, values in other files, sizes that the file cannot hold, channels that it
            does not have, rows or shapes that differ between datasets or demonstrations.
    """
    with opened(path) as file:
        contents = list_contents(file, str(path))
        layout = _layout(file, contents, options, str(path))
        first = _features(contents, layout.demos[0], str(path))
        _refuse_links(contents, layout, embodiment, str(path))
        plan = plan_channels(first, embodiment, layout.names, layout.action, str(path))
        times = time_feature(first, options.time_column, str(path))
        used = (*features_of(plan), *((times,) if times else ()))
        rows = {}
        for demo in layout.demos:
            here = first if demo == layout.demos[0] else _features(contents, demo, str(path), used)
            _compare(first, here, used, f"{path}, {demo}")
            rows[demo] = _rows(contents, demo, here, used, path)
        if "compress_len" in contents.datasets:
            check_dataset(contents.datasets["compress_len"], "compress_len", path.stat().st_size, str(path))
    return _episodes(_Opened(path, layout, plan, first, rows, times), embodiment, options)


def _layout(file: Any, contents: Contents, options: Options, where: str) -> _Layout:
    inside = {m[1] for n in contents.datasets if (m := re.match(r"data/([^/]+)/(actions$|obs/)", n))}
    if not inside:
        if not any(d.ndim for d in contents.datasets.values()):
            raise LogError("holds no dataset", where=where, next_step="the recording did not finish")
        return _Layout(("",), "action", ("observations/", "observations/images/", ""))
    if options.split:
        name = f"mask/{options.split}"
        if name not in contents.datasets:
            masks = [n.removeprefix("mask/") for n in contents.datasets if n.startswith("mask/")]
            raise LogError(f"has no mask {options.split!r}", where=where, next_step=nearest(options.split, masks))
        check_dataset(contents.datasets[name], name, Path(file.filename).stat().st_size, where)
        wanted = {v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in file[name][()].tolist()}
        if lacking := sorted(wanted - inside):
            raise LogError(
                f"mask {options.split!r} names {lacking[0]!r}, which is not in the file",
                where=where,
                next_step="copy the file again, or take another mask",
            )
        inside = wanted
    demos = sorted(inside, key=lambda n: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", n)])
    if not demos:
        raise LogError(f"mask {options.split!r} is empty", where=where, next_step="take another mask, or none")
    return _Layout(tuple(f"data/{d}/" for d in demos), "actions", ("obs/", ""))


def _features(contents: Contents, demo: str, where: str, used: tuple[str, ...] = ()) -> dict[str, Feature]:
    """Datasets of an episode that can feed a channel, by path in the episode."""
    found = {}
    names = [demo + n for n in used] if used else [n for n in contents.datasets if n.startswith(demo)]
    for name in names:
        d = contents.datasets.get(name)
        if d is None or not d.shape or 0 in d.shape:
            continue
        if d.dtype.kind in "OSV" or (d.dtype == np.uint8 and d.ndim == 2):
            check_dataset(d, name, Path(d.file.filename).stat().st_size, where)  # its first row is read here
        if is_encoded(d):
            first = encoded_pictures(d, 0, 1)
            found[name[len(demo) :]] = Feature("image", (*picture_size(first[0], f"{where}, {name}"), 3))
        elif d.dtype == np.uint8 and d.ndim == 4 and d.shape[3] == 3:
            found[name[len(demo) :]] = Feature("image", d.shape[1:])
        elif d.dtype.kind in "biuf" and d.dtype.itemsize <= 8:
            found[name[len(demo) :]] = Feature("float64", (int(np.prod(d.shape[1:], dtype=object)),))
    return found


def _refuse_links(contents: Contents, layout: _Layout, embodiment: Embodiment, where: str) -> None:
    wanted = {layout.action}
    for channel in embodiment.channels():
        wanted |= set(channel.source or layout.names(channel.name))
    for link, target in contents.links.items():
        for path in (layout.demos[0] + source for source in wanted):
            if path.startswith(link) and path[len(link) :][:1] in ("", "/", "."):
                raise LogError(
                    f"{link} is a link to {target}: links are not followed",
                    where=where,
                    next_step="copy what it points at into the file: h5copy",
                )


def _compare(first: dict[str, Feature], here: dict[str, Feature], used: tuple[str, ...], where: str) -> None:
    for name in used:
        if name not in here:
            raise LogError(
                f"has no {name}, which the first demonstration has",
                where=where,
                next_step="take it out, or record again",
            )
        if here[name] != first[name]:
            what = f"{name} has shape {here[name].shape} a row, in the first demonstration {first[name].shape}"
            raise LogError(what, where=where, next_step="split the file: one machine, one shape")


def _rows(contents: Contents, demo: str, here: dict[str, Feature], used: tuple[str, ...], path: Path) -> int:
    """Rows of an episode, the same in all its datasets; their claims are checked."""
    where, size = str(path), path.stat().st_size
    counts = {}
    for name in used:
        d = contents.datasets[demo + name]
        check_dataset(d, demo + name, size, where)
        counts[name] = int(d.shape[0])
        if not here[name].is_picture and d.size * 8 > MOST_BYTES:
            raise LogError(f"{demo}{name} takes more than 2 GiB", where=where, next_step="split the episode")
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{n} {c}" for n, c in counts.items())
        raise LogError(
            f"datasets of one episode differ in rows: {text}", where=f"{where}, {demo or '/'}", next_step="record again"
        )
    return next(iter(counts.values()))


def _episodes(log: _Opened, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    source = digest_file(log.path)
    for demo in log.layout.demos:
        with opened(log.path) as file:
            episode = _episode(log, file, demo, embodiment, options, source)
        yield episode


def _episode(log: _Opened, file: Any, demo: str, embodiment: Embodiment, options: Options, source: str) -> Episode:
    where, count = f"{log.path}, {demo or '/'}", log.rows[demo]
    short = demo.removeprefix("data/").rstrip("/")
    name = f"{log.path.stem}/{short}" if short else log.path.stem
    findings: list[Finding] = []

    def columns(feature: str) -> NDArray[Any]:
        d = file[demo + feature]
        if is_encoded(d):
            return encoded_pictures(d, 0, count, file.get("compress_len"), where)
        if log.known[feature].is_picture:
            return plain_frames(d)
        return np.asarray(d[()]).reshape(count, -1)

    if log.times:
        times_ns = number_times(columns(log.times)[:, 0], f"{where}{log.times}")
    else:
        rate_hz, said = _rate(file, demo, embodiment)
        times_ns = regular_times(count, rate_hz, where)
        findings.append(note(name, "*", f"the file has no time stamps: rows count at {rate_hz:g} Hz, {said}"))
    streams = {}
    for key, parts in log.plan.items():
        channel = embodiment.channel(key.removesuffix(APPLIED))
        stream = make_stream(parts, columns, log.known, channel, times_ns, where)
        streams[key] = stream
        plain = count * int(np.prod(channel.shape))
        if channel.kind == "image" and plain > PLAIN_BYTES and not is_encoded(file[demo + parts[0].feature]):
            text = f"{plain / 1e9:.2f} GB of plain pictures are kept as JPEG of quality 95"
            findings.append(note(name, key, text, count))
    task, outcome = _words(file, demo)
    digest = digest_value({"file": source, "episode": short})
    found = (*findings, *absent_actions(log.plan, embodiment, name))
    return on_episode_clock(Episode(name, embodiment.name, streams, task or options.task, outcome, digest, found))


def _rate(file: Any, demo: str, embodiment: Embodiment) -> tuple[float, str]:
    """Rows a second: what robomimic's env_args say, else the embodiment's rate."""
    told = _json(file["data"].attrs.get("env_args")) if demo else {}
    rate_hz = (told.get("env_kwargs") or {}).get("control_freq") if isinstance(told.get("env_kwargs"), dict) else None
    if isinstance(rate_hz, int | float) and 0 < rate_hz < 1e6:
        return float(rate_hz), "as its env_args say"
    return embodiment.rate_hz, "as the embodiment says"


def _words(file: Any, demo: str) -> tuple[str, str]:
    """Instruction and outcome, where attributes of the episode, of its group or of the file say them."""
    places = [file[demo].attrs, file["data"].attrs, file.attrs] if demo else [file.attrs]
    told = [_text(p.get(key)) for p in places for key in _TASKS]
    told += [_text(_json(p.get("problem_info")).get("language_instruction")) for p in places]
    success = places[0].get("success")
    outcome = ("failure", "success")[bool(success)] if isinstance(success, bool | int | np.bool_ | np.integer) else ""
    return next((t for t in told if t), ""), outcome


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _json(value: object) -> dict[str, Any]:
    try:
        found = json.loads(_text(value) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
