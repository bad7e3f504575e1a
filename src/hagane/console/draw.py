"""Small drawings and number texts that the page carries as inline SVG: interval bars and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from hagane.console.figures import Figure, Mark


def number(value: float | None, *, percent: bool = False, digits: int | None = None) -> str:
    """A number as a person writes it: true minus, grouped thousands, sensible digits; an en dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if percent:
        return f"{100 * value:.{digits or 0}f}%"
    size = abs(value)
    if digits is None:
        digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    return text.replace(",", "\N{THIN SPACE}").replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as 0.4 s, 12 s, 3 min 05 s or 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def span(values: Iterable[float]) -> tuple[float, float]:
    """A range that holds all finite values, with a little air; never empty."""
    found = [v for v in values if math.isfinite(v)]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    air = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - air, high + air


def interval_bar(
    score: float, low: float, high: float, scale: tuple[float, float], *, kind: str, goal: float | None = None
) -> Markup:
    """A score and its interval on a scale, 100 units wide and stretched by the page."""

    def x(value: float) -> float:
        place = (value - scale[0]) / (scale[1] - scale[0]) if math.isfinite(value) else 0.0
        return round(100 * min(max(place, 0.0), 1.0), 2)

    parts = ['<span class="track"></span>']
    if scale[0] < 0 < scale[1]:
        parts.append(f'<span class="zero" style="left:{x(0)}%"></span>')
    if goal is not None and math.isfinite(goal):
        parts.append(f'<span class="goal" style="left:{x(goal)}%"></span>')
    if scale[0] <= score <= scale[1]:
        left, right = x(low), x(high)
        parts.append(f'<span class="range" style="left:{left}%;width:{max(right - left, 0.4):.2f}%"></span>')
        parts.append(f'<span class="dot" style="left:{x(score)}%"></span>')
    else:
        edge = "off-left" if score < scale[0] else "off-right"
        parts.append(f'<span class="dot {edge}" style="left:{x(score)}%"></span>')
    return Markup('<span class="bar {}" aria-hidden="true">{}</span>').format(kind, Markup("".join(parts)))


def scale_of(marks: Sequence[Mark], *, percent: bool, goal: float | None) -> tuple[float, float]:
    """Range of a figure's strip. Rows far below all others (an untrained policy) would flatten it and run off it."""
    if percent:
        return 0.0, 1.0
    kept = [m for m in marks if m.kind != "untrained"] or list(marks)
    ours = [m for m in kept if m.kind in ("ours", "classical", "expert")]
    values = [v for m in ours for v in (m.low, m.high)] + ([goal] if goal is not None else [])
    low, high = span(values or [v for m in kept for v in (m.low, m.high)])
    for m in kept:
        if m.kind == "simplest" and low - m.low < 1.5 * (high - low):
            low = min(low, m.low)
    return span([low, high])


def strip(figure: Figure) -> Markup:
    """All rows of a figure on one line: dots with intervals, the goal as a tick, ours large.

    A row outside the range stands at the edge as an arrow.
    """
    low, high = scale_of(figure.marks, percent=figure.percent, goal=figure.goal)
    parts: list[Markup] = []
    for m in sorted(figure.marks, key=lambda m: m.kind == "ours"):
        place = (m.score - low) / (high - low)
        edge = " off-left" if place < 0 else " off-right" if place > 1 else ""
        x = round(100 * min(max(place, 0.0), 1.0), 2)
        a = round(100 * min(max((m.low - low) / (high - low), 0.0), 1.0), 2)
        b = round(100 * min(max((m.high - low) / (high - low), 0.0), 1.0), 2)
        title = escape(f"{m.who}: {number(m.score, percent=figure.percent)}")
        if not edge:
            parts.append(
                Markup('<span class="range {}" style="left:{}%;width:{}%"></span>').format(m.kind, a, max(b - a, 0.4))
            )
        parts.append(
            Markup('<span class="dot {}{}" style="left:{}%" title="{}"></span>').format(m.kind, edge, x, title)
        )
    if figure.goal is not None:
        x = round(100 * min(max((figure.goal - low) / (high - low), 0.0), 1.0), 2)
        parts.insert(0, Markup('<span class="goal" style="left:{}%"></span>').format(x))
    return Markup('<div class="strip" aria-hidden="true"><span class="track"></span>{}</div>').format(
        Markup("").join(parts)
    )
