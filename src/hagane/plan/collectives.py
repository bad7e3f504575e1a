"""Bytes that ranks send each other in a step, by kind of collective and by axis of the mesh, as one rank sees them.

Collectives pass torch's dispatcher like any operator, so FSDP2's gathers and scatters, the experts' exchange, the
pipeline's messages and our own sums are all seen, on a real process group or on a fake one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch._C._distributed_c10d import ProcessGroup, _resolve_process_group

from hagane.plan.meter import tensors_of
from hagane.plan.watch import Watcher

KINDS = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "reduce_scatter_tensor_out": "reduce-scatter",
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_reduce_": "all-reduce",
    "all_reduce_coalesced": "all-reduce",
    "all_reduce_coalesced_": "all-reduce",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "all_to_all_single": "all-to-all",
    "broadcast_": "broadcast",
    "broadcast": "broadcast",
    "send": "send",
    "isend": "send",
    "recv_": "receive",
    "irecv": "receive",
}
"""Operators of the namespaces c10d and _c10d_functional, by what they do."""

USUAL = {
    "all-gather": ("fsdp", "efsdp", "tp", "cp"),
    "reduce-scatter": ("fsdp", "efsdp", "tp"),
    "all-to-all": ("ep", "cp"),
    "send": ("pp",),
    "receive": ("pp",),
    "all-reduce": ("world", "dp_replicate", "stage"),
}
"""Axes that a kind of collective runs along, where one group of ranks serves several axes."""

SILENT = {"wait_tensor", "barrier", "monitored_barrier_", "_wrap_tensor_autograd"}
"""Operators of these namespaces that move no tensor."""


@dataclass
class Flow:
    """Traffic of one kind along one axis."""

    calls: int = 0
    """Collectives begun."""
    payload: int = 0
    """Bytes of the larger side: what is gathered, scattered, summed, exchanged or passed on."""
    wire: int = 0
    """Bytes that leave this rank (or reach it, where that is more), by the ring and pairwise algorithms that NCCL's
    tests count with (nccl-tests, doc/PERFORMANCE.md): (n - 1) / n of the payload, twice that for a sum."""


class Traffic(Watcher):
    """Counts collectives while a `Watch` tells it of operators.

    Args:
        axes: axes of the mesh by the process group's name; an unknown group is called "other".
    """

    def __init__(self, axes: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.axes = axes
        self.flows: dict[tuple[str, str], Flow] = {}

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Add up a collective; other operators pass."""
        if func.namespace in ("c10d", "_c10d_functional"):
            self._add(func, bind(func, args, kwargs), out)

    def _add(self, func: Any, given: Mapping[str, Any], out: Any) -> None:
        operator = func._schema.name.split("::")[1]
        if operator in SILENT:
            return
        # an operator that nobody knows must not pass as silence
        kind = KINDS.get(operator, operator)
        group = group_of(given)
        ranks = group.size()
        inputs = bytes_of([v for k, v in given.items() if not k.startswith("output")])
        outputs = bytes_of([v for k, v in given.items() if k.startswith("output")] or out)
        payload = {"all-gather": outputs, "reduce-scatter": inputs}.get(kind, max(inputs, outputs))
        others = (ranks - 1) / ranks
        share = {"all-reduce": 2 * others, "broadcast": 1.0, "send": 1.0, "receive": 1.0}.get(kind, others)
        flow = self.flows.setdefault((self._axis(group.group_name, kind), kind), Flow())
        flow.calls += 1
        flow.payload += payload
        flow.wire += round(payload * share)

    def _axis(self, group: str, kind: str) -> str:
        names = self.axes.get(group, ("other",))
        return ", ".join(n for n in names if n in USUAL.get(kind, ())) or names[0]


def bind(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name."""
    names = [a.name for a in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def group_of(given: Mapping[str, Any]) -> ProcessGroup:
    """The process group among an operator's arguments: boxed, or by name."""
    if "process_group" in given:
        return ProcessGroup.unbox(given["process_group"])
    return _resolve_process_group(given["group_name"])


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in a value."""
    return sum(t.numel() * t.element_size() for t in tensors_of(value))
