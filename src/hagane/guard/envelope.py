"""Envelope: what the integrator of one machine allows, as TOML; contradictions are refused when it is read."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from hagane.terms import ConfigError, Embodiment, GuardError, parse_toml

Fallback = Literal["zero", "hold-position", "brake", "hold-then-ramp"]


@dataclass(frozen=True)
class Limit:
    """What one action channel may be told. Every list has one entry for all columns or one a column.

    In `hold` and `safe`, `nan` means: keep what was commanded last.
    """

    channel: str
    """Name of the action channel."""
    low: tuple[float, ...]
    """Lowest command, in the channel's unit."""
    high: tuple[float, ...]
    """Highest command."""
    max_rate_per_s: tuple[float, ...]
    """Largest change of a command, unit per second."""
    start: tuple[float, ...] = ()
    """The command at rest, from which the first command is rate-limited; empty means `safe`."""
    start_from: tuple[str, ...] = ()
    """Observed columns, "channel.column", that show where the machine stands: better than a fixed `start`."""
    hold: tuple[float, ...] = ()
    """Command of HOLD: a short gap without fresh actions."""
    safe: tuple[float, ...] = ()
    """Command of SAFE_STOP and ESTOP."""
    safe_rate_per_s: tuple[float, ...] = ()
    """Speed of the way to `safe`; empty means `max_rate_per_s`."""


@dataclass(frozen=True)
class Envelope:
    """Limits of one embodiment. `load_envelope` also checks them against the embodiment."""

    embodiment: str
    """Name of the embodiment."""
    fallback: Fallback
    """zero: no motion (delta or rate commands). hold-position: keep the last target. brake: gentle braking.
    hold-then-ramp: keep the last set points, then go slowly to the safe ones."""
    max_observation_age_s: float
    """A chunk decided on an older observation is refused."""
    max_chunk_age_s: float
    """A chunk is used no longer than this after its observation; then HOLD."""
    watchdog_s: float
    """Without a good chunk for this long: SAFE_STOP."""
    act: tuple[Limit, ...]
    """One entry an action channel."""


def envelope_names() -> tuple[str, ...]:
    """Embodiments that come with an envelope."""
    folder = files("hagane.guard").joinpath("envelopes")
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml")))


def load_envelope(embodiment: Embodiment, path: Path | None = None) -> Envelope:
    """The envelope in a file, or the one that comes with hagane for this embodiment's name.

    Raises:
        ConfigError: no such file, or not the keys of an envelope.
        GuardError: it contradicts itself or allows more than the embodiment does.
    """
    if path is None:
        if embodiment.name not in envelope_names():
            raise GuardError(
                f"no envelope for embodiment {embodiment.name!r}",
                next_step="write one and name it with --envelope FILE; see docs/serving.md",
            )
        where = f"{embodiment.name}.toml"
        text = files("hagane.guard").joinpath("envelopes", where).read_text("utf-8")
    else:
        where = str(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"the envelope cannot be read: {e}", where=where, next_step="check the path") from None
    envelope = parse_toml(text, Envelope, where=where)
    check_envelope(envelope, embodiment, where)
    return envelope


def check_envelope(envelope: Envelope, embodiment: Embodiment, where: str = "envelope") -> None:
    """Refuse an envelope that cannot be kept or that allows more than the embodiment's own limits.

    Raises:
        GuardError: names the channel and what contradicts what.
    """
    if envelope.embodiment != embodiment.name:
        raise GuardError(f"made for {envelope.embodiment!r}, not for {embodiment.name!r}", where=where)
    _check_times(envelope, embodiment, where)
    names, limits = [c.name for c in embodiment.act], [limit.channel for limit in envelope.act]
    for name in sorted({*names, *limits}):
        if limits.count(name) != 1 or name not in names:
            near = difflib.get_close_matches(name, names, 1)
            step = f"the action channels are {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise GuardError(
                f"needs exactly one [[act]] for each action channel: {name!r}", where=where, next_step=step
            )
    for limit in envelope.act:
        _check_limit(limit, envelope.fallback, embodiment, f"{where}: act {limit.channel!r}")


def _check_times(envelope: Envelope, embodiment: Embodiment, where: str) -> None:
    between_s = embodiment.execute_steps / embodiment.rate_hz
    for name in ("max_observation_age_s", "max_chunk_age_s", "watchdog_s"):
        value = getattr(envelope, name)
        if not (math.isfinite(value) and value > 0):
            raise GuardError(f"{name} must be a positive number of seconds, not {value}", where=where)
        if name != "max_observation_age_s" and value < between_s:
            raise GuardError(
                f"{name} = {value:g} is shorter than the {between_s:g} s between two chunks",
                where=where,
                next_step="raise it, or lower `execute` in the embodiment",
            )
    if envelope.watchdog_s < envelope.max_chunk_age_s:
        raise GuardError("watchdog_s is shorter than max_chunk_age_s, so HOLD would never be seen", where=where)


def _check_limit(limit: Limit, fallback: Fallback, embodiment: Embodiment, where: str) -> None:
    channel = embodiment.channel(limit.channel)
    n = channel.columns
    for name in ("low", "high", "max_rate_per_s", "start", "hold", "safe", "safe_rate_per_s"):
        values = getattr(limit, name)
        optional = name not in ("low", "high", "max_rate_per_s")
        if len(values) not in (1, n) and not (optional and not values):
            raise GuardError(f"{name} has {len(values)} entries for {n} columns", where=where)
        keeps = name in ("hold", "safe")
        if any(math.isinf(v) or (math.isnan(v) and not keeps) for v in values):
            raise GuardError(f"{name} must be finite", where=where)
        if name.endswith("rate_per_s") and any(v <= 0 for v in values):
            raise GuardError(f"{name} must be positive in every column", where=where)
    low, high, rate = spread(limit.low, n), spread(limit.high, n), spread(limit.max_rate_per_s, n)
    own_low, own_high = spread(channel.low, n, -math.inf), spread(channel.high, n, math.inf)
    for i in range(n):
        if low[i] >= high[i]:
            raise GuardError(f"low {low[i]:g} is not below high {high[i]:g} in column {i}", where=where)
        if low[i] < own_low[i] or high[i] > own_high[i]:
            raise GuardError(
                f"column {i} allows {low[i]:g} to {high[i]:g}, the machine only {own_low[i]:g} to {own_high[i]:g}",
                where=where,
                next_step="stay within the low and high of the embodiment file",
            )
        for name in ("start", "hold", "safe"):
            value = spread(getattr(limit, name), n, math.nan)[i]
            if value < low[i] or value > high[i]:
                raise GuardError(f"{name} {value:g} lies outside low and high in column {i}", where=where)
        if spread(limit.safe_rate_per_s, n, rate[i])[i] > rate[i]:
            raise GuardError(f"safe_rate_per_s exceeds max_rate_per_s in column {i}", where=where)
    _check_fallback(limit, fallback, embodiment, where)
    if limit.start_from and len(limit.start_from) != n:
        raise GuardError(f"start_from has {len(limit.start_from)} entries for {n} columns", where=where)
    for source in limit.start_from:
        observed_column(source, embodiment, where)


def _check_fallback(limit: Limit, fallback: Fallback, embodiment: Embodiment, where: str) -> None:
    finite = [v for v in (*limit.hold, *limit.safe) if not math.isnan(v)]
    if fallback == "zero" and any(v != 0 for v in finite):
        raise GuardError("fallback zero allows only 0 or nan in hold and safe", where=where)
    if fallback == "hold-position" and finite:
        raise GuardError("fallback hold-position keeps every column: leave hold and safe out", where=where)
    if fallback in ("hold-position", "hold-then-ramp") and embodiment.convention != "absolute":
        step = "use fallback zero"
        raise GuardError(f"to keep a {embodiment.convention} command keeps it moving", where=where, next_step=step)
    if fallback in ("brake", "hold-then-ramp") and not limit.safe:
        raise GuardError(f"fallback {fallback} needs safe", where=where, next_step="write the safe command")
    if fallback == "brake" and not limit.hold:
        raise GuardError("fallback brake needs hold", where=where, next_step="write the command of a short gap")
    if not limit.start and (not limit.safe or any(math.isnan(v) for v in limit.safe)) and fallback != "zero":
        raise GuardError("needs start, since safe does not name a command for every column", where=where)


def spread(values: tuple[float, ...], n: int, default: float = math.nan) -> tuple[float, ...]:
    """One value a column from one for all, one each, or none."""
    return values if len(values) == n else (values or (default,)) * n


def observed_column(source: str, embodiment: Embodiment, where: str = "envelope") -> tuple[str, int]:
    """Channel and column of an entry of `start_from`.

    Raises:
        GuardError: there is no such column among the observed vectors.
    """
    name, _, column = source.rpartition(".")
    for channel in embodiment.observe:
        if channel.name == name and channel.kind == "vector" and column.isdecimal() and int(column) < channel.columns:
            return name, int(column)
    step = "write CHANNEL.COLUMN of an observed vector, columns from 0"
    raise GuardError(f"start_from names {source!r}, which is not observed", where=where, next_step=step)
