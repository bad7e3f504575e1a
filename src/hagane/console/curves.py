"""Learning curves for the page: named series on common steps, few enough points to draw at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_POINTS = 900
NEWEST = 50


@dataclass(frozen=True)
class Curves:
    """Series of one run; None where a line had no value."""

    steps: tuple[float, ...]
    """Optimiser step of every point."""
    losses: Mapping[str, tuple[float | None, ...]]
    """Training loss by embodiment; "" is the whole."""
    held_out: Mapping[str, tuple[float | None, ...]]
    """Loss on episodes that training never read, by embodiment."""
    pace: tuple[float | None, ...]
    """Samples a second."""
    last: Mapping[str, float]
    """Newest value of every series by its name in metrics.jsonl; of training losses the mean of `NEWEST` lines."""


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> Curves:
    """Pick the known series out of the lines of metrics.jsonl, thinned to at most `MAX_POINTS` points."""
    names = list(dict.fromkeys(k for row in metrics for k in row))
    kept = _thin(metrics)
    names = [n for n in names if n != "step"]
    last = {n: v for n in names if (v := _newest(metrics, n)) is not None}
    return Curves(
        steps=tuple(float(r["step"]) for r in kept),
        losses={
            n.removeprefix("loss").lstrip("/"): _series(kept, n) for n in names if n == "loss" or n.startswith("loss/")
        },
        held_out={n.removeprefix("held_out/"): _series(kept, n) for n in names if n.startswith("held_out/")},
        pace=_series(kept, "samples_per_s"),
        last=last,
    )


def _thin(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every k-th line, every line with a held-out value, and the last."""
    every = max(1, math.ceil(len(rows) / MAX_POINTS))
    rare = [i for i, r in enumerate(rows) if any(k.startswith("held_out/") for k in r)]
    wanted = set(range(0, len(rows), every)) | {len(rows) - 1} if rows else set()
    if len(rare) <= MAX_POINTS:
        wanted |= set(rare)
    return [rows[i] for i in sorted(wanted)]


def _newest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Newest number of a series. One training batch alone is noisy, so losses are averaged over the newest lines."""
    wanted = NEWEST if name.startswith(("loss", "next")) else 1
    found: list[float] = []
    for row in reversed(rows):
        if (value := _number(row.get(name))) is not None:
            found.append(value)
        if len(found) == wanted:
            break
    return sum(found) / len(found) if found else None


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, ...]:
    return tuple(_number(r.get(name)) for r in rows)


def _number(value: object) -> float | None:
    """A finite number, or None: losses that were not finite leave a gap."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
