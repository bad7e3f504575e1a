"""A chart as inline SVG: curves, bands and dots on linear or logarithmic axes. No script, prints as it looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 46
"""Margins of the plane, px."""


@dataclass(frozen=True)
class Axis:
    """One axis."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    label: str
    """What it shows, with unit."""
    log: bool = False
    """Logarithmic; both ends are then above 0."""

    def place(self, value: float) -> float:
        """0 at the lower end, 1 at the upper; values outside stay outside, by at most one length."""
        low, high, v = (self.low, self.high, value)
        if self.log:
            low, high, v = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return min(max((v - low) / (high - low), -1.0), 2.0)


@dataclass(frozen=True)
class Curve:
    """A line, and around it a band where `low` and `high` are given."""

    x: Sequence[float]
    """Along."""
    y: Sequence[float]
    """Up."""
    colour: str
    """A CSS colour."""
    low: Sequence[float] = ()
    """Lower edge of the band."""
    high: Sequence[float] = ()
    """Upper edge."""
    dashed: bool = False
    """Drawn broken: nothing is claimed there."""


@dataclass(frozen=True)
class Dots:
    """Measured points."""

    x: Sequence[float]
    """Along."""
    y: Sequence[float]
    """Up."""
    colour: str
    """A CSS colour."""
    titles: Sequence[str]
    """What a pointer is told, one a point."""
    hollow: Sequence[bool] = ()
    """Drawn as rings."""


@dataclass(frozen=True)
class Region:
    """A part of the plane that is hatched, from `x` to the right end."""

    x: float
    """Where it begins."""
    label: str
    """Words at its top."""


def draw(
    x: Axis, y: Axis, marks: Sequence[Curve | Dots | Region], alt: str, *, tick: Callable[[float], str], name: str
) -> Markup:
    """The chart.

    Args:
        x: lower axis.
        y: left axis.
        marks: drawn in this order.
        alt: what the chart shows, for those who cannot see it.
        tick: numbers of the lower axis as text.
        name: unique on the page.
    """
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return round(LEFT + across * x.place(px), 1), round(TOP + up * (1 - y.place(py)), 1)

    parts = [_frame(x, y, tick, at)]
    for m in marks:
        if isinstance(m, Region):
            parts.append(_region(m, at, y, name))
        elif isinstance(m, Curve):
            parts.append(_curve(m, at))
        else:
            parts.append(_dots(m, at))
    plane, inner = parts[0], Markup("").join(parts[1:])
    return Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-label="{alt}"><defs>'
        '<clipPath id="{n}-plane"><rect x="{l}" y="{t}" width="{a}" height="{u}"/></clipPath>'
        '<pattern id="{n}-hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="2" height="7" class="hatch"/></pattern></defs>{plane}'
        '<g clip-path="url(#{n}-plane)">{inner}</g></svg>'
    ).format(w=WIDTH, h=HEIGHT, alt=alt, n=name, l=LEFT, t=TOP, a=across, u=up, plane=plane, inner=inner)


At = Callable[[float, float], tuple[float, float]]


def _frame(x: Axis, y: Axis, tick: Callable[[float], str], at: At) -> Markup:
    parts = []
    for value in ticks(x):
        px, py = at(value, y.low)
        parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(px, TOP, py))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(px, py + 16, tick(value)))
    for value in ticks(y):
        px, py = at(x.low, value)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(px, WIDTH - RIGHT, py, py))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{:g}</text>').format(px - 6, py + 4, value))
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(middle_x, HEIGHT - 8, x.label)
    )
    parts.append(
        Markup('<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            middle_y, y.label
        )
    )
    return Markup("").join(parts)


def ticks(axis: Axis, most: int = 7) -> list[float]:
    """Round numbers inside an axis: powers of ten, and steps between them where there is room, or even steps."""
    if axis.log:
        decades = math.log10(axis.high / axis.low)
        fine, middle = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), (1.0, 2.0, 5.0)
        digits = fine if decades < 1 else middle if decades < 2.6 else (1.0,)
        every = max(1, math.ceil(decades / most))
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        found = [d * 10.0**k for k in range(first, last + 1, every) for d in digits]
    else:
        rough = (axis.high - axis.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough)
        found = [k * step for k in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]
    return [
        float(f"{v:.6g}") for v in found if axis.low * (1 - 1e-9) <= v <= axis.high * (1 + 1e-9) or v == 0 >= axis.low
    ]


def _region(region: Region, at: At, y: Axis, name: str) -> Markup:
    left, right, floor = at(region.x, y.low)[0], WIDTH - RIGHT, HEIGHT - BOTTOM
    if left >= right:
        return Markup("")
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="url(#{}-hatch)"/><line class="edge" x1="{}" x2="{}" y1="{}" '
        'y2="{}"/><text class="region" x="{}" y="{}">{}</text>'
    ).format(left, TOP, right - left, floor - TOP, name, left, left, TOP, floor, left + 6, TOP + 14, region.label)


def _curve(curve: Curve, at: At) -> Markup:
    out = Markup("")
    if curve.low:
        edge = [at(px, py) for px, py in zip(curve.x, curve.high, strict=True)]
        edge += [at(px, py) for px, py in reversed(list(zip(curve.x, curve.low, strict=True)))]
        out += Markup('<polygon points="{}" style="fill:{};opacity:.16"/>').format(_points(edge), curve.colour)
    line = [at(px, py) for px, py in zip(curve.x, curve.y, strict=True)]
    dash = ";stroke-dasharray:5 5" if curve.dashed else ""
    out += Markup('<polyline points="{}" style="fill:none;stroke:{};stroke-width:1.8{}"/>').format(
        _points(line), curve.colour, dash
    )
    return out


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:g},{py:g}" for px, py in places)


def _dots(dots: Dots, at: At) -> Markup:
    out = []
    for k, (px, py, title) in enumerate(zip(dots.x, dots.y, dots.titles, strict=True)):
        hollow = bool(dots.hollow) and dots.hollow[k]
        fill = "var(--card)" if hollow else dots.colour
        circle = Markup('<circle cx="{}" cy="{}" r="4" style="fill:{};stroke:{};stroke-width:1.6">{}</circle>')
        told = Markup("<title>{}</title>").format(title)
        out.append(circle.format(*at(px, py), fill, dots.colour, told))
    return Markup("").join(out)
