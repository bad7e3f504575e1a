"""Fake tensors and fake ranks: a step without memory, arithmetic or neighbours, on the same code.

torch's FakeTensorMode keeps shapes, strides and dtypes; its fake process group says of every collective that it is
done. What a fake tensor cannot know is a number; the few places where a step asks for one (is the gradient finite, how
many steps did AdamW take) get a stated answer here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from hagane.terms import ConfigError

aten = torch.ops.aten


class Fake(FakeTensorMode):
    """Fake tensors, with answers to what torch's cannot give: numbers, and shapes that its fake kernels lack.

    Every number is 1 (true, finite, one step taken). A grouped product in fp32 has the shape of one in bf16, the only
    dtype that torch's fake kernel takes.
    """

    def __init__(self) -> None:
        # real tensors are let in: torch.from_numpy gives one under any mode
        super().__init__(allow_non_fake_inputs=True)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return grouped_mm_like(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def grouped_mm_like(a: Tensor, b: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """An empty result of a grouped product; see `flops.grouped_mm_flop` for the forms."""
    if a.dim() == 2 and b.dim() == 2:
        return a.new_empty(len(offs), a.shape[0], b.shape[1])
    return a.new_empty(a.shape[-2], b.shape[-1])


@contextmanager
def fake_ranks(rank: int, ranks: int) -> Iterator[None]:
    """This process is one of so many ranks; the others do not exist, and every collective is done at once.

    Raises:
        ConfigError: this process is one of real ranks already.
    """
    if dist.is_initialized():
        raise ConfigError("this process has real ranks beside it", next_step="run it alone, without torchrun")
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
