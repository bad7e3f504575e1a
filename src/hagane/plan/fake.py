"""Fake tensors: a step without memory and without arithmetic, on the same code.

torch's FakeTensorMode keeps shapes, strides and dtypes. What a fake tensor cannot know is a number; the few places
where a step asks for one (is the gradient finite, how many steps did AdamW take) get a stated answer here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hagane.plan.watch import Watch

aten = torch.ops.aten


class Answers(Watch):
    """Answers what fake tensors cannot: numbers, and shapes that torch's fake kernels do not give.

    Every number is 1 (true, finite, one step taken). A grouped product in fp32 has the shape of one in bf16, the only
    dtype that torch's fake kernel takes. A histogram with a given least length has that length.
    """

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Answer, or let the fake kernel answer."""
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return grouped_mm_like(*args, **kwargs)
        if func is aten.bincount.default:
            return args[0].new_empty(kwargs.get("minlength", args[-1]), dtype=torch.int64)
        return call()


def grouped_mm_like(a: Tensor, b: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """An empty result of a grouped product; see `flops.grouped_mm_flop` for the forms."""
    if a.dim() == 2 and b.dim() == 2:
        return a.new_empty(len(offs), a.shape[0], b.shape[1])
    return a.new_empty(a.shape[-2], b.shape[-1])


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Everything made inside is fake; real tensors (a packing plan, say) become fake where they enter."""
    # real tensors are let in: torch.from_numpy gives one under any mode
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Answers():
        yield mode
