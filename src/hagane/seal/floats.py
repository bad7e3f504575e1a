"""Blocks of little-endian floats without NumPy: are they finite, round them, how much do they tell.

Python's own byte slices and long integers work on whole blocks in C, a megabyte at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from hagane.seal.tensorfile import ITEM_BYTES

# bits of the exponent in the highest byte and in the one below it (IEEE 754; bfloat16 is the upper half of binary32)
_EXPONENT = {"F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}


def all_finite(block: bytes, dtype: str) -> bool:
    """False when a number of the block is infinite or NaN: its exponent's bits are all 1.

    Args:
        block: whole numbers of the type.
        dtype: one of `ITEM_BYTES`.
    """
    step = ITEM_BYTES[dtype]
    high_mask, low_mask = _EXPONENT[dtype]
    high = block[step - 1 :: step].translate(_full(high_mask))
    if not any(high):
        return True
    low = block[step - 2 :: step].translate(_full(low_mask))
    return not int.from_bytes(high, "little") & int.from_bytes(low, "little")


def round_to_bf16(block: bytes) -> bytes:
    """binary32 numbers rounded to the nearest bfloat16 (ties to even), still four bytes each: the lower two are 0.

    Finite numbers above the largest bfloat16 become infinite, as the standard has it.
    """
    count = len(block) // 4
    ones, halves, upper = _lanes(count)
    bits = int.from_bytes(block, "little")
    # 0x7fff and the last kept bit: no finite number carries into its neighbour
    return ((bits + halves + (bits >> 16 & ones)) & upper).to_bytes(4 * count, "little")


class Telling:
    """How many bits a number of some blocks seems to tell: entropy of each of its bytes, from a sample.

    It is an estimate of order 0 (every byte by itself), not a bound: numbers that look random tell as many bits
    whether they were learned or hidden there.
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[Counter[int]]] = {}
        self._numbers: Counter[str] = Counter()

    def add(self, block: bytes, dtype: str, sample_bytes: int = 2**14) -> None:
        """Count the first bytes of a block."""
        step = ITEM_BYTES[dtype]
        planes = self._seen.setdefault(dtype, [Counter() for _ in range(step)])
        self._numbers[dtype] += len(block) // step
        for place, plane in enumerate(planes):
            plane.update(block[place:sample_bytes:step])

    def bits(self) -> float:
        """Bits of all numbers together."""
        return sum(self._numbers[dtype] * sum(map(_entropy, planes)) for dtype, planes in self._seen.items())

    @property
    def numbers(self) -> int:
        """Numbers added."""
        return self._numbers.total()


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


@lru_cache
def _full(mask: int) -> bytes:
    """Table for `bytes.translate`: 1 where all bits of the mask are set."""
    return bytes((value & mask) == mask for value in range(256))


@lru_cache(4)
def _lanes(count: int) -> tuple[int, int, int]:
    """0x00000001, 0x00007fff and 0xffff0000, each `count` times."""
    lanes: Iterable[int] = (0x00000001, 0x00007FFF, 0xFFFF0000)
    one, half, upper = (int.from_bytes(lane.to_bytes(4, "little") * count, "little") for lane in lanes)
    return one, half, upper
