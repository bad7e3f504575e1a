"""Another number of ranks than a layout was made for: what can be kept of it."""

from __future__ import annotations

import math
from dataclasses import replace

from hagane.engine.layout import Layout, distance, divisors, misfit, nearest
from hagane.model import Size
from hagane.terms import ConfigError


def fit_layout(layout: Layout, ranks: int, size: Size) -> Layout:
    """A layout on that many ranks: pp, cp and tp as they were, since they were chosen for memory and links.

    The shards of a copy are kept if they can be (a rank then needs the memory that it did), else the copies. The groups
    of experts are kept, or get smaller by a whole factor.

    Raises:
        ConfigError: the ranks cannot be divided so; the message names the nearest layouts that work.
    """
    if layout.ranks == ranks:
        return layout
    fixed = layout.pp * layout.cp * layout.tp
    found = []
    for shard in divisors(ranks // fixed) if ranks % fixed == 0 else []:
        ep = math.gcd(layout.ep, shard * layout.cp * layout.tp)
        fitted = replace(layout, dp_replicate=ranks // fixed // shard, dp_shard=shard, ep=ep)
        if not misfit(fitted, size):
            found.append(fitted)
    if not found:
        near = " or ".join(f"({n})" for n in nearest(layout, size, ranks))
        raise ConfigError(
            f"the layout ({layout}) does not fit on {ranks} ranks with its pp, cp and tp",
            next_step=f"use {layout.ranks} ranks, or give the configuration a layout of {ranks}: {near or 'none fits'}",
        )
    return min(
        found,
        key=lambda f: (
            f.ep != layout.ep,
            f.dp_shard != layout.dp_shard,
            f.dp_replicate != layout.dp_replicate,
            distance(f, layout),
            -f.dp_shard,
        ),
    )
