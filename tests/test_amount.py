"""Large amounts as text: three forms of one table of units."""

from __future__ import annotations

import pytest

from hagane.terms.amount import floor_count, long_count, short_count


@pytest.mark.parametrize(
    ("n", "short", "exact", "floor"),
    [
        (0, "0", "0", "0"),
        (999, "999", "999", "999"),
        (1000, "1k", "1,000", "1k"),
        (999_600, "1M", "999,600", "999.6k"),
        (1_830_368, "1.83M", "1.830 M", "1.83m"),
        (12_500_000_000, "12.5B", "12.500 B", "12.5b"),
        (1_043_000_000_000, "1.04T", "1.043 T", "1.043t"),
        (9_999_900_000_000, "10T", "10.000 T", "9.999t"),
    ],
)
def test_amounts(n: int, short: str, exact: str, floor: str) -> None:
    assert (short_count(n), long_count(n), floor_count(n)) == (short, exact, floor)
