"""What a member's log calls each column of a channel: `Channel.source`, with its defaults and patterns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hagane.terms import Channel, ConfigError


def column_sources(channel: Channel) -> tuple[str, ...]:
    """Source of each column of a vector channel; without `source`: the name, or name_0, name_1, ...

    Raises:
        ConfigError: `source` has another number of entries than the channel has columns.
    """
    if not channel.source:
        return (channel.name,) if channel.columns == 1 else tuple(f"{channel.name}_{k}" for k in range(channel.columns))
    if len(channel.source) != channel.columns:
        raise ConfigError(
            f"source has {len(channel.source)} entries for {channel.columns} columns",
            where=f"channel {channel.name!r}",
            next_step="give one source a column",
        )
    return channel.source


def set_sources(channel: Channel) -> tuple[tuple[str, ...], ...]:
    """Sources of a set channel: [n][d], from patterns such as "OBJ_{i:02d}.X" with i from 1 to n.

    Raises:
        ConfigError: a pattern without {i}, one that cannot be formatted, or a wrong number of them.
    """
    patterns = channel.source or tuple(f"{channel.name}_{{i:02d}}_{k}" for k in range(channel.columns))
    where = f"channel {channel.name!r}"
    if len(patterns) != channel.columns:
        raise ConfigError(
            f"source has {len(patterns)} entries for {channel.columns} columns",
            where=where,
            next_step="give one source a column",
        )
    try:
        rows = tuple(tuple(p.format(i=i) for p in patterns) for i in range(1, channel.places + 1))
    except (KeyError, IndexError, ValueError) as e:
        raise ConfigError(f"source pattern cannot be filled: {e}", where=where, next_step="write {i} or {i:02d}") from e
    if channel.places > 1 and len(set(sum(rows, ()))) < channel.places * channel.columns:
        raise ConfigError("source patterns of a set must contain {i}", where=where, next_step='as in "OBJ_{i:02d}.X"')
    return rows


def units_of(channel: Channel) -> tuple[str, ...]:
    """Declared unit of each column."""
    return channel.unit * channel.columns if len(channel.unit) == 1 else channel.unit or ("1",) * channel.columns


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint for people: the names most like `name`, or the first few known ones."""
    names = sorted(set(known))
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, count, 0.5)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = ", ..." if len(names) > 8 else ""
    return f"there are: {', '.join(names[:8])}{more}" if names else "there are none"
