"""Meter: bytes of every storage alive, by kind, at every point of a step; the same on real and on fake tensors.

It sits above the kernels, where torch hands each operator to Python, so it sees what a fake tensor and a real one
have in common: which storages exist, how large they are, and when the last reference to one is gone. What it
cannot see is memory inside a kernel (workspaces), the allocator's rounding and fragments, and NCCL's own buffers.
The idea is that of torch.distributed._tools.mem_tracker; this one keeps an event a change, so that a storage may
be named after it was seen, and asks nothing of modules.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hagane.plan.watch import Watcher

Kind = Literal["weights", "gathered", "gradients", "optimiser", "averages", "inputs", "activations", "communication"]
KINDS: tuple[Kind, ...] = get_args(Kind)

COMMUNICATION = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "fsdp")
"""Operator namespaces whose buffers are communication."""
GRADIENTS_IN = "fsdp.chunk_cat.default"
"""FSDP2's copy of whole gradients into the buffer that is reduced and scattered."""


@dataclass(slots=True)
class Block:
    """One storage that was seen."""

    kind: Kind
    """What it is. Nobody named "activations" (saved for backward, or passing values), nor "inputs" (there before)."""
    named: bool
    """Named by the caller, so that no rule changes it."""
    origin: Any
    """Operator that made it; "" for one that was there before."""
    nbytes: int
    """Size now, rounded."""


@dataclass(frozen=True)
class Peak:
    """The moment of the most bytes."""

    nbytes: int
    """Bytes alive."""
    kinds: Mapping[Kind, int]
    """By kind; every kind has an entry."""
    phase: str
    """Part of the step."""
    at: str
    """Operator that made the peak."""
    largest: tuple[tuple[str, int], ...]
    """The ten largest groups of activations: operator that made them, bytes."""


class Meter(Watcher):
    """Counts storages while a `Watch` tells it of operators. Watched again, it goes on counting.

    Args:
        round_to: sizes are rounded up to a multiple of this; 512 is what CUDA's caching allocator does.
    """

    def __init__(self, round_to: int = 1) -> None:
        super().__init__()
        self.round_to = round_to
        self.now = 0
        self.peak_bytes = 0
        self.blocks: list[Block] = []
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._events: list[tuple[int, int]] = []
        self.phase_peaks: dict[str, int] = {}
        self._peak_event = -1
        self._peak_phase = ""

    def name(self, tensors: Iterable[Tensor | None], kind: Kind) -> None:
        """Say what some tensors are, now or after they were seen; those not seen yet are counted from here on."""
        for t in tensors:
            for part in plain_tensors(t):
                block = self.blocks[self._see(part, "")]
                block.kind, block.named = kind, True

    def begun(self, phase: str) -> None:
        """What is alive at the start counts for a part's own peak."""
        self.phase_peaks[phase] = max(self.now, self.phase_peaks.get(phase, 0))

    def alive(self) -> dict[Kind, int]:
        """Bytes alive now, by kind."""
        return self._by_kind(len(self._events))

    def curve(self) -> list[int]:
        """Bytes alive after every change."""
        return list(accumulate(delta for _, delta in self._events))

    def peak(self) -> Peak:
        """The moment of the most bytes since the meter was made, told with the names given until now."""
        sizes = self._sizes(self._peak_event + 1)
        largest: dict[str, int] = {}
        for i, n in sizes.items():
            if self.blocks[i].kind == "activations" and n:
                words = str(self.blocks[i].origin) or "before the step"
                largest[words] = largest.get(words, 0) + n
        top = sorted(largest.items(), key=lambda item: -item[1])[:10]
        at = str(self.blocks[self._events[self._peak_event][0]].origin) if self._events else ""
        return Peak(self.peak_bytes, self._by_kind(self._peak_event + 1), self._peak_phase, at, tuple(top))

    def opened(self) -> None:
        """A storage can change its size behind every operator's back (FSDP2 frees gathered weights so): look there."""
        self._resize = resize = torch.UntypedStorage.resize_

        def watched(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            self._resized(storage)

        torch.UntypedStorage.resize_ = watched  # type: ignore[method-assign, assignment]

    def closed(self) -> None:
        """Look away again."""
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count what goes in and was never seen."""
        if func is not torch.ops.aten.lift_fresh.default:  # a real tensor on its way to being a fake one
            for t in tensors_of((args, kwargs)):
                self._see(t, "")

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Count what comes out."""
        talks = func.namespace in COMMUNICATION
        for t in tensors_of(out):
            self._rule(self._see(t, func), "communication" if talks else None)
        if not talks:
            return
        if str(func) == GRADIENTS_IN:
            for t in tensors_of(args):
                self._rule(self._see(t, ""), "gradients")
        else:
            for t in written(func, args):
                self._rule(self._see(t, ""), "communication")

    def _rule(self, index: int, kind: Kind | None) -> None:
        block = self.blocks[index]
        if kind and not block.named and block.kind == "activations":
            block.kind = kind

    def _see(self, tensor: Tensor, origin: Any) -> int:
        """Index of the tensor's block; counts it if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return self._alive[key][0]
        index = len(self.blocks)
        self.blocks.append(Block("activations" if origin else "inputs", False, origin, 0))
        self._alive[key] = (index, weakref.ref(storage, lambda _: self._gone(key)))
        self._change(index, self._rounded(storage))
        return index

    def _gone(self, key: int) -> None:
        index, _ = self._alive.pop(key)
        self._change(index, 0)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        found = self._alive.get(storage._cdata)
        if found is not None:
            self._rule(found[0], "gathered")
            self._change(found[0], self._rounded(storage))

    def _rounded(self, storage: torch.UntypedStorage) -> int:
        return -(-storage.nbytes() // self.round_to) * self.round_to

    def _change(self, index: int, size: int) -> None:
        block = self.blocks[index]
        delta, block.nbytes = size - block.nbytes, size
        if not delta:
            return
        self._events.append((index, delta))
        self.now += delta
        if self.now > self.phase_peaks.get(self.phase, 0):
            self.phase_peaks[self.phase] = self.now
        if self.now > self.peak_bytes:
            self.peak_bytes, self._peak_event, self._peak_phase = self.now, len(self._events) - 1, self.phase

    def _sizes(self, events: int) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for index, delta in self._events[:events]:
            sizes[index] = sizes.get(index, 0) + delta
        return sizes

    def _by_kind(self, events: int) -> dict[Kind, int]:
        kinds: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        for index, n in self._sizes(events).items():
            kinds[self.blocks[index].kind] += n
        return kinds


def plain_tensors(value: Tensor | None) -> Iterator[Tensor]:
    """A tensor with a storage of its own: a DTensor's local shard, any other tensor itself."""
    if value is not None:
        inner = getattr(value, "_local_tensor", value)
        yield inner


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in an operator's arguments or results: it takes nothing deeper than lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors_of(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_of(v)


def written(func: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
    """Tensors that an operator writes into, by its schema."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_of(value)
