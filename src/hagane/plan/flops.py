"""Floating-point operations that a step really asks for: a count at the operators, by group and part of the step.

Base: the formulas of torch.utils.flop_counter. Own formulas for what it lacks: grouped matrix products (forward
and both backwards go through one operator) and the CPU's fused attention. A separate pass from the memory meter:
torch's own FlopCounterMode holds on to tensors and raises the peak it would stand beside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hagane.plan.watch import Watcher

aten = torch.ops.aten
Formula = Callable[..., int]


def grouped_mm_flop(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """2 * rows * inner * columns over all groups, whichever side is grouped.

    [M, K] @ [E, K, N]: each row meets one expert. [E, M, K] @ [K, N]: the columns are shared out.
    [K, M] @ [M, N]: the rows are shared out over the experts' weight gradients [E, K, N].
    """
    groups = a.shape[0] if a.dim() == 3 and b.dim() == 3 else 1
    return int(2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1])


def cpu_attention_flop(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Two matrix products, all of [T, T]: a mask saves nothing."""
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def cpu_attention_backward_flop(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Five matrix products: the scores are made again."""
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


OWN: dict[Any, Formula] = {
    aten._grouped_mm: grouped_mm_flop,
    aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: cpu_attention_backward_flop,
}


def group_of(operator: str) -> str:
    """ "attention", "grouped matmul" or "matmul": the rows of the table."""
    if "attention" in operator:
        return "attention"
    return "grouped matmul" if "grouped" in operator else "matmul"


class FlopMeter(Watcher):
    """Counts operations while a `Watch` tells it of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[tuple[str, str], int] = {}

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.counts.values())

    def by_group(self) -> dict[str, int]:
        """Operations of each group of operators."""
        out: dict[str, int] = {}
        for (_, group), n in self.counts.items():
            out[group] = out.get(group, 0) + n
        return out

    def by_phase(self) -> dict[str, int]:
        """Operations of each part of the step."""
        out: dict[str, int] = {}
        for (phase, _), n in self.counts.items():
            out[phase] = out.get(phase, 0) + n
        return out

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Add the operations of a matrix product; other operators have none that count."""
        packet = func._overloadpacket
        if formula := OWN.get(packet):
            self._add(str(packet), formula(*args, **kwargs))
        elif packet in flop_registry:
            self._add(str(packet), int(flop_registry[packet](*args, **kwargs, out_val=out)))

    def _add(self, operator: str, flops: int) -> None:
        key = (self.phase, group_of(operator))
        self.counts[key] = self.counts.get(key, 0) + flops
