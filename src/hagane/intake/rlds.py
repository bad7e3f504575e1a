"""RLDS episodes in TFDS folders into Episodes, without TensorFlow: one record is one episode.

Sources are names in a step: "observation/state", a column "observation/state.3", "action", "action.6"; without a
source a channel is looked for as "observation/<channel>". Encoded pictures pass through. The instruction is the
first one that the steps or the episode's metadata carry. As RLDS defines it, the last step (is_last) has an
observation and no action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.columns import Plan, absent_actions, features_of, make_stream, plan_channels, time_feature
from hagane.intake.files import refuse_outside
from hagane.intake.lerobot_layout import Feature
from hagane.intake.options import Options
from hagane.intake.picture import picture_size
from hagane.intake.rlds_layout import Folder, Leaf, Shard, open_folder
from hagane.intake.streams import note, number_times, on_episode_clock, regular_times, with_cut
from hagane.intake.tfrecord import is_tfrecord, parse_example, read_records, scan_records
from hagane.terms import APPLIED, Embodiment, Episode, Finding, LogError, Stream, digest_bytes

_TASKS = ("language_instruction", "natural_language_instruction", "instruction", "task")

Places = list[tuple[int, int]]
Values = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Opened:
    """What is known of a folder before its episodes are read."""

    folder: Folder
    known: dict[str, Feature]
    """Features of a step that can feed a channel, by their names without "steps/"."""
    plan: Plan
    times: str
    """The feature with the time stamps, or ""."""
    shards: tuple[tuple[Shard, Places, str], ...]
    """Each shard, its records, and words for a missing end."""


def sniff(path: Path) -> bool:
    """True for a TFDS folder (one version of a data set), or one of its tfrecord files."""
    if path.is_dir():
        told = (path / "features.json").is_file()
        return told and ((path / "dataset_info.json").is_file() or any(path.glob("*.tfrecord-*")))
    return is_tfrecord(path)


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episodes of a TFDS folder, or of one of its shards; `options.split` takes those of one split.

    Raises:
        LogError: JSON files missing or damaged, shards missing, cut (unless `keep_whole`: then the whole records
            before the cut are given) or with another number of episodes, features that no step has. A record that
            differs from its checksum, or is no episode, is refused when it is reached.
    """
    root = path if path.is_dir() else path.parent
    if not (root / "features.json").is_file():
        raise LogError(
            "a tfrecord file alone does not say what is in it",
            where=str(path),
            next_step="copy the whole TFDS folder, with features.json and dataset_info.json",
        )
    folder = open_folder(root, options.split)
    wanted = [s for s in folder.shards if path.is_dir() or s.path.name == path.name]
    if not wanted:
        raise LogError("dataset_info.json does not name this file", where=str(path), next_step="give the folder")
    shards = tuple((s, *_scan(s, root, options.keep_whole)) for s in wanted)
    at, places = next(((s, p) for s, p, _ in shards if p), (wanted[0], []))
    if not places:
        raise LogError("no whole episode in the shards", where=str(path), next_step="copy the set again")
    known = _features(folder, _parse(next(read_records(at.path, places[:1])), f"{at.path}, record 0"), str(root))
    plan = plan_channels(known, embodiment, lambda name: (f"observation/{name}", name), "action", str(root))
    times = time_feature(known, options.time_column, str(root))
    return _episodes(_Opened(folder, known, plan, times, shards), embodiment, options)


def _scan(shard: Shard, root: Path, keep: bool) -> tuple[Places, str]:
    refuse_outside(shard.path, root)
    if not shard.path.is_file():
        raise LogError("the shard is missing", where=str(shard.path), next_step="copy the set again from its source")
    places, cut = scan_records(shard.path)
    if cut and not keep:
        raise LogError(
            f"truncated file: {cut}",
            where=str(shard.path),
            next_step="copy it again, or pass --keep-whole to take the episodes before the cut",
        )
    if not cut and len(places) != shard.length:
        what = f"holds {len(places)} episodes, dataset_info.json says {shard.length}"
        raise LogError(what, where=str(shard.path), next_step="the set is mixed up: copy it again")
    return places, cut


def _features(folder: Folder, first: Values, where: str) -> dict[str, Feature]:
    """Features of a step; open sizes of pictures are those of the first episode's."""
    found = {}
    for name, leaf in folder.leaves.items():
        if not name.startswith("steps/") or leaf.kind == "text":
            continue
        shape = leaf.shape
        if leaf.kind == "picture" and (len(shape) != 3 or min(shape) < 1):
            pictures = first.get(name)
            if not isinstance(pictures, list) or not pictures or (shape and shape[-1] != 3):
                continue
            shape = (*picture_size(pictures[0], f"{where}, {name}"), 3)
        if shape and min(shape) < 1:
            continue
        image = leaf.dtype == "uint8" and len(shape) == 3 and shape[2] == 3
        if image:
            found[name.removeprefix("steps/")] = Feature("image", shape)
        elif leaf.kind != "picture" and np.dtype(leaf.dtype).kind in "biuf":
            found[name.removeprefix("steps/")] = Feature("float64", (int(np.prod(shape, dtype=object)),))
    return found


def _parse(payload: bytes, where: str) -> Values:
    try:
        return parse_example(payload)
    except ValueError as e:
        raise LogError(f"is no Example: {e}", where=where, next_step="write the set again") from None


def _episodes(log: _Opened, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    # a shard that is cut within its first record gives no episode that could say so
    lost = [f"{shard.path.name} is left out: {cut}" for shard, places, cut in log.shards if cut and not places]
    for shard, places, cut in log.shards:
        for k, payload in enumerate(read_records(shard.path, places)):
            where = f"{shard.path}, record {k}"
            name = f"{log.folder.name}-{shard.split}-{shard.first + k:06d}"
            values = _parse(payload, where)
            episode = _episode(log, values, name, where, embodiment, options, digest_bytes(payload))
            while lost:
                episode = with_cut(episode, lost.pop(0))
            yield with_cut(episode, cut if k == len(places) - 1 else "")


def _episode(
    log: _Opened, values: Values, name: str, where: str, embodiment: Embodiment, options: Options, digest: str
) -> Episode:
    steps = _count(log, values, where)

    def columns(feature: str) -> NDArray[Any]:
        return _rows(values, f"steps/{feature}", log.folder.leaves[f"steps/{feature}"], steps, where)

    findings: list[Finding] = []
    if log.times:
        times_ns = number_times(columns(log.times)[:, 0], f"{where}, {log.times}")
    else:
        times_ns = regular_times(steps, embodiment.rate_hz, where)
        text = f"the set has no time stamps: steps count at {embodiment.rate_hz:g} Hz, as the embodiment says"
        findings.append(note(name, "*", text))
    ends = _flags(log, values, "is_last", steps, where)
    streams = {}
    for key, parts in log.plan.items():
        channel = embodiment.channel(key.removesuffix(APPLIED))
        stream = make_stream(parts, columns, log.known, channel, times_ns, f"{where}, channel {key!r}")
        acted = channel in embodiment.act and not any(p.feature.startswith("observation/") for p in parts)
        if acted and ends is not None and ends[-1]:
            stream = Stream(stream.times_ns[:-1], stream.values[:-1], stream.valid[:-1], stream.unit)
        streams[key] = stream
    success = values.get("episode_metadata/success")
    outcome = ("failure", "success")[int(success[0] > 0)] if isinstance(success, np.ndarray) and len(success) else ""
    found = (*findings, *absent_actions(log.plan, embodiment, name))
    task = _task(log.folder, values) or options.task
    return on_episode_clock(Episode(name, embodiment.name, streams, task, outcome, digest, found))


def _count(log: _Opened, values: Values, where: str) -> int:
    """Steps of an episode; the flags, where there are any, must be those of one whole episode."""
    some = next(iter(features_of(log.plan)))
    width = 1 if log.known[some].is_picture else log.known[some].width
    leaf = log.folder.leaves[f"steps/{some}"]
    if leaf.kind == "number" and log.known[some].is_picture:
        width = int(np.prod(log.known[some].shape))
    given = values.get(f"steps/{some}", ())
    count = len(given) if leaf.kind == "raw" else len(given) // width
    if not count:
        raise LogError(f"has no steps, or no {some}", where=where, next_step="take the record out, or write it again")
    for flag, right in (("is_first", 0), ("is_last", count - 1)):
        flags = _flags(log, values, flag, count, where)
        if flags is not None and (np.flatnonzero(flags) != right).any():
            at = int(np.flatnonzero(flags)[np.flatnonzero(flags) != right][0])
            what = f"{flag} is set at step {at} of {count}: these are several episodes"
            raise LogError(what, where=where, next_step="write one episode a record")
    return count


def _flags(log: _Opened, values: Values, name: str, steps: int, where: str) -> NDArray[np.bool_] | None:
    if f"steps/{name}" not in log.folder.leaves or f"steps/{name}" not in values:
        return None
    rows = _rows(values, f"steps/{name}", log.folder.leaves[f"steps/{name}"], steps, where)
    return np.asarray(rows.reshape(steps, -1)[:, 0] != 0)


def _rows(values: Values, name: str, leaf: Leaf, steps: int, where: str) -> NDArray[Any]:
    """[steps, width] numbers, [steps] objects of encoded pictures, or [steps, H, W, 3] plain ones."""
    given = values.get(name, [])
    if leaf.kind == "picture":
        if not isinstance(given, list) or len(given) != steps:
            raise _unlike(name, f"{len(given)} pictures", steps, where)
        return np.fromiter(given, object, steps)
    if leaf.kind == "raw" and isinstance(given, list):
        data = b"".join(given)
        size = np.dtype(leaf.dtype).itemsize
        if len(data) % size:
            raise _unlike(name, f"{len(data)} bytes", steps, where)
        given = np.frombuffer(data, np.dtype(leaf.dtype).newbyteorder("<"))
    width = int(np.prod(leaf.shape, dtype=object))
    if not isinstance(given, np.ndarray) or len(given) != steps * width:
        raise _unlike(name, f"{len(given)} values", steps, where)
    image = leaf.dtype == "uint8" and len(leaf.shape) == 3 and leaf.shape[2] == 3
    return given.astype(np.uint8).reshape(steps, *leaf.shape) if image else given.reshape(steps, width)


def _unlike(name: str, what: str, steps: int, where: str) -> LogError:
    return LogError(
        f"{name} holds {what} in {steps} steps, which features.json does not allow",
        where=where,
        next_step="the record and features.json do not belong together: copy the whole folder again",
    )


def _task(folder: Folder, values: Values) -> str:
    """The first instruction that is not empty."""
    names = [n for n, leaf in folder.leaves.items() if leaf.kind == "text" and n.rpartition("/")[2] in _TASKS]
    for name in sorted(names, key=lambda n: not n.startswith("steps/")):
        for value in values.get(name, ()):
            if isinstance(value, bytes) and value.strip():
                return value.decode("utf-8", "replace")
    return ""
