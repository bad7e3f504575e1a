"""Logs whose rows share one clock: which named feature, or which of its columns, feeds which channel.

LeRobot, HDF5 and RLDS episodes are such logs. A channel is found by its `source`: a feature as a whole
("observation.state", "observations/qpos"), or a column each ("observations/qpos.3", "action.grip"); else by the
names the format would give it. Action channels without a source are cut from the feature that holds all of them
side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_layout import AGE, VALID, Feature
from hagane.intake.picture import picture_size
from hagane.intake.sources import nearest
from hagane.intake.streams import MOST_S, unmapped
from hagane.terms import APPLIED, Channel, Embodiment, Finding, LogError, Stream

_TIMES = ("time", "times", "timestamp", "timestamps", "t")


@dataclass(frozen=True)
class Part:
    """A feature of a log, or some of its columns."""

    feature: str
    """Its name."""
    index: tuple[int, ...] = ()
    """Columns; () for all."""


Plan = dict[str, tuple[Part, ...]]
"""Stream name to the parts that it is made of."""
Columns = Callable[[str], NDArray[Any]]
"""A feature's rows: [K, width] numbers, [K, H, W, 3] uint8, or [K] objects of encoded pictures."""


def plan_channels(
    known: Mapping[str, Feature],
    embodiment: Embodiment,
    names: Callable[[str], tuple[str, ...]],
    action: str,
    where: str,
) -> Plan:
    """Parts of every stream that a log can give.

    Args:
        known: features of the log by name.
        embodiment: whose channels are wanted.
        names: what a feature may be called that holds the channel of this name.
        action: the feature with all action channels side by side; "<action>.applied" is what the actuators did.
        where: for messages.

    Raises:
        LogError: an observed channel that the log does not have.
    """
    plan: Plan = {}
    for channel in embodiment.observe:
        if channel.kind != "text" and (found := _find(known, channel, names(channel.name))):
            plan[channel.name] = found
    whole, done = (
        known.get(n) is not None and known[n].shape == (embodiment.action_width,) for n in (action, action + APPLIED)
    )
    at = 0
    for channel in embodiment.act:
        index = tuple(range(at, at + channel.columns))
        at += channel.columns
        # one feature holds all action channels side by side, whatever the source says about the whole
        direct = () if whole and channel.source in ((), (action,)) else _find(known, channel, (channel.name,))
        if direct:
            plan[channel.name] = direct
        elif whole:
            plan[channel.name] = (Part(action, index),)
        if done:
            plan[channel.name + APPLIED] = (Part(action + APPLIED, index),)
    lacking = [c.name for c in embodiment.observe if c.kind != "text" and c.name not in plan]
    if lacking:
        wanted = next(iter(embodiment.channel(lacking[0]).source or names(lacking[0])), lacking[0])
        raise LogError(
            f"the log has no feature for channel {', '.join(map(repr, lacking))}",
            where=where,
            next_step=f"set `source` in the embodiment file; {nearest(wanted, known)}",
        )
    return plan


def absent_actions(plan: Plan, embodiment: Embodiment, episode: str) -> tuple[Finding, ...]:
    """Findings for the action channels that a log does not have: it can still teach what is observed next."""
    why = f"no feature for it, nor one with all {embodiment.action_width} columns of the actions"
    return tuple(unmapped(episode, c.name, why) for c in embodiment.act if c.name not in plan)


def features_of(plan: Plan) -> tuple[str, ...]:
    """Features that a plan reads, each once."""
    return tuple(dict.fromkeys(part.feature for parts in plan.values() for part in parts))


def time_feature(known: Mapping[str, Feature], wanted: str, where: str) -> str:
    """The feature that holds the rows' time stamps: the one people name, or one called "time", "timestamp" or "t".

    Returns:
        "" when there is none.

    Raises:
        LogError: the wanted one is not there, or holds more than one number a row.
    """
    flat = [n for n, f in known.items() if f.shape == (1,)]
    if wanted and wanted not in flat:
        raise LogError(f"no feature {wanted!r} of one number a row", where=where, next_step=nearest(wanted, flat))
    return wanted or next((n for n in flat if n.rpartition("/")[2].lower() in _TIMES), "")


def _find(known: Mapping[str, Feature], channel: Channel, names: tuple[str, ...]) -> tuple[Part, ...]:
    if channel.source and (found := [_resolve(known, s) for s in _expanded(channel)]) and all(found):
        return tuple(p for p in found if p is not None)
    size = channel.shape if channel.kind == "image" else (channel.places * channel.columns,)
    return next(((Part(n),) for n in names if n in known and known[n].shape == size), ())


def _expanded(channel: Channel) -> list[str]:
    if channel.kind != "set" or not any("{i" in s for s in channel.source):
        return list(channel.source)
    return [s.format(i=i) for i in range(1, channel.places + 1) for s in channel.source]


def _resolve(known: Mapping[str, Feature], source: str) -> Part | None:
    if source in known:
        return Part(source)
    feature, _, column = source.rpartition(".")
    if (f := known.get(feature)) is None or f.is_picture:
        return None
    if column in f.names:
        return Part(feature, (f.names.index(column),))
    return Part(feature, (int(column),)) if column.isdecimal() and int(column) < f.width else None


def make_stream(
    parts: tuple[Part, ...],
    columns: Columns,
    known: Mapping[str, Feature],
    channel: Channel,
    times_ns: NDArray[np.int64],
    where: str,
) -> Stream:
    """The stream of a channel out of its parts, at the rows' times.

    A feature "<feature>.valid" flags the rows and "<feature>.age_s" dates them: a sample that several rows repeat
    is given once.

    Raises:
        LogError: the log gives another shape than the channel's, or ages that are none.
    """
    given = {name: columns(name) for name in dict.fromkeys(p.feature for p in parts)}
    if channel.kind == "image":
        values = _pictures(given[parts[0].feature], channel, where)
    else:
        cut = [given[p.feature][:, list(p.index)] if p.index else given[p.feature] for p in parts]
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which the checks find
            values = np.concatenate(cut, 1).astype(np.float32, copy=False)
        if values.shape[1] != int(np.prod(channel.shape)):
            raise _misshapen(values.shape[1:], channel, where)
        values = values.reshape(-1, *channel.shape)
    flags = (channel.places,) if channel.kind == "set" else ()
    valid = np.ones((len(values), *flags), np.bool_)
    feature = parts[0].feature.removesuffix(APPLIED)
    if feature + VALID in known:
        told = columns(feature + VALID).astype(np.bool_)
        same = told.shape[1] == valid[:1].size
        valid &= told.reshape(valid.shape) if same else told.all(1).reshape(-1, *[1] * len(flags))
    if feature + AGE in known:
        age_s = columns(feature + AGE)[:, 0].astype(np.float64)
        if not (np.abs(age_s) < MOST_S).all():
            what = f"{feature + AGE} holds ages that are no numbers of seconds"
            raise LogError(what, where=where, next_step="write the set again")
        # whole microseconds: float32 ages would jitter the stamps; one row a sample, however often it was shown
        times_ns = times_ns - 1000 * np.maximum(np.rint((age_s - channel.delay_s) * 1e6), 0).astype(np.int64)
        new = np.diff(times_ns, prepend=times_ns[:1] - 1) != 0
        times_ns, values, valid = times_ns[new], values[new], valid[new]
    return Stream(times_ns, values, valid, channel.unit or ("1",))


def _pictures(values: NDArray[Any], channel: Channel, where: str) -> NDArray[Any]:
    """The pictures, when each is of the channel's size; of encoded ones only the headers are read."""
    if values.dtype != object:
        if values.shape[1:] != channel.shape:
            raise _misshapen(values.shape[1:], channel, where)
        return values
    for n, data in enumerate(values):
        size = picture_size(data, f"{where}, frame {n}")
        if size != channel.shape[:2]:
            raise _misshapen((*size, 3), channel, f"{where}, frame {n}")
    return values


def _misshapen(shape: tuple[int, ...], channel: Channel, where: str) -> LogError:
    what = f"the log gives {shape} a frame, channel {channel.name!r} has {channel.shape}"
    return LogError(what, where=where, next_step="correct `shape` or `source` of the channel")
