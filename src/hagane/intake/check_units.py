"""Units: which spellings mean the same, and which other unit would explain values that are out of range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SAME: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "1 - none unitless bool count flag",
        "m meter metre meters",
        "m/s mps m.s-1 m*s-1",
        "km/h kph kmh kmph",
        "mph mi/h mile/h",
        "m/s2 m/s^2 m/s² mps2 m/s**2",
        "rad radian radians",
        "deg ° degree degrees",
        "rad/s radps",
        "deg/s °/s dps",
        "cel °c degc c celsius deg_c",
        "k kelvin",
        "[degf] °f degf f fahrenheit",
        "% percent pct",
        "s sec second seconds",
        "g/m2 g/m^2 g/m² gsm",
        "kw kilowatt",
        "nm n.m n*m",
        "m3/h nm3/h m^3/h m³/h",
        "l/min lpm slpm",
        "mm millimeter millimetre",
    )
)
_CONVERSIONS: dict[tuple[str, str], tuple[float, float]] = {
    # (declared, other): declared value = (value in the other unit - offset) * factor
    ("rad", "deg"): (np.pi / 180, 0.0),
    ("rad/s", "deg/s"): (np.pi / 180, 0.0),
    ("deg", "rad"): (180 / np.pi, 0.0),
    ("m/s", "km/h"): (1 / 3.6, 0.0),
    ("m/s", "mph"): (0.44704, 0.0),
    ("km/h", "m/s"): (3.6, 0.0),
    ("km/h", "mph"): (1.609344, 0.0),
    ("m", "mm"): (1e-3, 0.0),
    ("m", "cm"): (1e-2, 0.0),
    ("mm", "m"): (1e3, 0.0),
    ("cel", "k"): (1.0, 273.15),
    ("cel", "[degf]"): (5 / 9, 32.0),
    ("k", "cel"): (1.0, -273.15),
    ("bar", "psi"): (0.0689476, 0.0),
    ("bar", "kpa"): (0.01, 0.0),
    ("bar", "mbar"): (1e-3, 0.0),
    ("kpa", "bar"): (100.0, 0.0),
    ("kpa", "pa"): (1e-3, 0.0),
    ("1", "%"): (0.01, 0.0),
    ("%", "1"): (100.0, 0.0),
    ("m/min", "m/s"): (60.0, 0.0),
    ("m/s", "m/min"): (1 / 60, 0.0),
    ("kw", "w"): (1e-3, 0.0),
    ("s", "ms"): (1e-3, 0.0),
}


def plain_unit(unit: str) -> str:
    """One spelling a unit: lower case, without spaces; UCUM's where the table has it."""
    text = unit.strip().lower().replace(" ", "") or "1"
    for group in _SAME:
        if text in group:
            return min(group & {"1", "m", "m/s", "km/h", "mph", "m/s2", "rad", "deg", "cel", "k", "%"} or group)
    return text


def same_unit(log: str, declared: str) -> bool:
    """Whether two spellings mean one unit; an empty unit in the log says nothing, so it agrees."""
    return not log.strip() or plain_unit(log) == plain_unit(declared)


def unit_by_magnitude(values: NDArray[np.float64], declared: str, low: float, high: float) -> str:
    """Another unit that explains values out of range, or "".

    At least a fifth of the values lie beyond low..high, and a known conversion brings all but 0.1% of them back:
    degrees where radians were declared, km/h for m/s, kelvin for degrees Celsius.
    """
    unit = plain_unit(declared)
    slack = 1e-6 * abs(high - low) if np.isfinite(high - low) else 0.0

    def outside(x: NDArray[np.float64]) -> float:
        return float(((x < low - slack) | (x > high + slack)).mean())

    if len(values) < 5 or outside(values) < 0.2:
        return ""
    for (have, other), (factor, offset) in _CONVERSIONS.items():
        if plain_unit(have) == unit and outside((values - offset) * factor) <= 0.001:
            return other
    return ""
