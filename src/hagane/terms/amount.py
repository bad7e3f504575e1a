"""Large amounts as people write them: one way in a table of units, for counts, tokens and parameters."""

from __future__ import annotations

SCALES = (("t", 1e12), ("b", 1e9), ("m", 1e6), ("k", 1e3))
"""Units and what they stand for, largest first; b is 10^9."""


def short_count(n: float) -> str:
    """Three digits, rounded: 1830368 is "1.83M", 4.1e12 "4.1T"."""
    unit, scale = _unit(n / 0.9995)
    return f"{n / scale:.3g}{unit.upper() if unit != 'k' else unit}"


def long_count(n: int) -> str:
    """Four digits or more from a million on: 1043000000000 is "1.043 T"; below, all digits."""
    unit, scale = _unit(n)
    return f"{n / scale:.3f} {unit.upper()}" if scale >= 1e6 else f"{n:,}"


def floor_count(n: float) -> str:
    """As `--tokens` takes it, rounded down so that what is named exists: 1.25e13 is "12.5t"."""
    unit, scale = _unit(n)
    return f"{int(1000 * n / scale) / 1000:g}{unit}" if unit else f"{n:.0f}"


def _unit(n: float) -> tuple[str, float]:
    return next(((unit, scale) for unit, scale in SCALES if n >= scale), ("", 1.0))
