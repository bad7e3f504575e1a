"""Small histograms that a page carries as inline SVG."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

_HIGH = 32


def counts_of(values: NDArray[np.float64], bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[bins + 1] edges and [bins] shares of plain values."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins, (low, high))
    return edges, counts / max(len(values), 1)


def bars(edges: NDArray[Any], shares: NDArray[Any], *, label: str) -> Markup:
    """A histogram, one unit wide a bin, stretched by the page. Bars of little still show a line."""
    if not len(shares):
        return Markup('<span class="none">no sample</span>')
    top = float(shares.max()) or 1.0
    parts = []
    for i, share in enumerate(shares.tolist()):
        if share <= 0:
            continue
        height = max(_HIGH * share / top, 0.8)
        title = escape(f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {100 * share:.2g}%")
        parts.append(
            Markup('<rect x="{}" y="{}" width="0.92" height="{}"><title>{}</title></rect>').format(
                i, round(_HIGH - height, 2), round(height, 2), title
            )
        )
    zero = _zero(edges)
    return Markup(
        '<svg class="hist" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(len(shares), _HIGH, label, zero, Markup("").join(parts))


def _zero(edges: NDArray[Any]) -> Markup:
    """A line where 0 lies, when it lies inside."""
    low, high = float(edges[0]), float(edges[-1])
    if not low < 0 < high:
        return Markup("")
    x = round((len(edges) - 1) * -low / (high - low), 2)
    return Markup('<line x1="{}" x2="{}" y1="0" y2="{}" class="zero-line"/>').format(x, x, _HIGH)
