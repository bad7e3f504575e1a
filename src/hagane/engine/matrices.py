"""Whole matrices out of sharded parameters, and back: each is gathered on one rank, worked on there, and scattered.

A parameter's local shards are boxes of the whole, whatever shards it (FSDP on any dimension, tensor parallel, both).
The matrices of one group of ranks are dealt out by cost, and travel in rounds of one all-to-all there and one back,
so that the memory of a step stays bounded and no rank works alone while others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.placement_types import Placement

from hagane.engine.placed import Placed

Span = tuple[int, int]
"""First index and the one after the last."""
Box = tuple[Span, ...]
"""A span in every dimension of a tensor."""

ROUND_NUMBERS = 1 << 26
"""Numbers that a rank takes at most in one round (a larger matrix travels alone): 128 MiB in bf16."""


@dataclass(frozen=True)
class Matrix:
    """A matrix inside a parameter: all of it, one row of a stack, or a part of either."""

    name: str
    """The parameter."""
    box: Box
    """Where in the parameter; the last two dimensions are the matrix, those before are one wide."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        (top, bottom), (left, right) = self.box[-2:]
        return bottom - top, right - left


@dataclass(frozen=True, eq=False)
class Group:
    """Ranks that together hold some parameters once."""

    handle: dist.ProcessGroup | None
    """To talk over; None when this rank holds them alone."""
    me: int
    """This rank's place among them."""
    boxes: Mapping[str, tuple[Box, ...]]
    """By parameter, the box of every rank, in the group's order."""

    @property
    def ranks(self) -> int:
        """How many they are."""
        return len(next(iter(self.boxes.values())))


Round = tuple[tuple[Matrix, ...], ...]
"""The matrices of each rank of a group."""


def is_shard(placement: Placement) -> bool:
    """Whether a mesh dimension splits the tensor (FSDP over tensor parallel gives a kind of its own)."""
    return not placement.is_replicate() and not placement.is_partial()


def local_box(placed: Placed, coordinate: Sequence[int]) -> Box:
    """What the rank at a coordinate of the mesh holds of the whole.

    Shards of one dimension nest from the outermost mesh dimension inwards, but FSDP splits what tensor parallel left,
    although its mesh dimension lies outside: torch marks that by a split factor.
    """
    spans: list[Span] = [(0, n) for n in placed.shape]
    if placed.mesh is None:
        return tuple(spans)
    marked = [(i, p) for i, p in enumerate(placed.placements) if is_shard(p)]
    plain = [(i, p) for i, p in marked if not hasattr(p, "split_factor")]
    after = [(i, p) for i, p in reversed(marked) if hasattr(p, "split_factor")]
    for i, placement in (*plain, *after):
        dim = placement.dim  # type: ignore[attr-defined]
        spans[dim] = chunk(spans[dim], placed.mesh.size(i), coordinate[i])
    return tuple(spans)


def chunk(span: Span, parts: int, number: int) -> Span:
    """One of the parts that `torch.chunk` cuts: equal ones, the last shorter, or empty."""
    first, end = span
    each = -(-(end - first) // parts)
    return min(first + each * number, end), min(first + each * (number + 1), end)


def group_of(placed: Mapping[str, Placed], handle: dist.ProcessGroup | None, split: tuple[int, ...]) -> Group:
    """The boxes of all ranks that share some parameters of one mesh.

    Args:
        placed: of these parameters.
        handle: over the ranks.
        split: the mesh dimensions that the ranks differ in.
    """
    mesh = next(iter(placed.values())).mesh
    if handle is None or mesh is None:
        return Group(None, 0, {name: (local_box(p, (0,) * len(p.placements)),) for name, p in placed.items()})
    here = mesh.get_coordinate()
    assert here is not None
    ranks = dist.get_process_group_ranks(handle)
    at = {rank_at(mesh, c): c for c in coordinates(mesh, here, split)}
    boxes = {name: tuple(local_box(p, at[rank]) for rank in ranks) for name, p in placed.items()}
    return Group(handle, ranks.index(dist.get_rank()), boxes)


def coordinates(mesh: DeviceMesh, here: Sequence[int], split: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Coordinates of the ranks that differ from `here` in the dimensions `split` only."""
    axes = [range(mesh.size(i)) if i in split else (here[i],) for i in range(mesh.ndim)]
    return list(product(*axes))


def rank_at(mesh: DeviceMesh, coordinate: tuple[int, ...]) -> int:
    """Global rank at a coordinate of the mesh."""
    with unset_fake_temporarily():  # a dry run's mesh is real
        return int(mesh.mesh[coordinate])


def make_groups(placed: Mapping[str, Placed]) -> list[Group]:
    """Parameters by the ranks that hold them together; every rank of the run calls this with the same names."""
    by: dict[tuple[DeviceMesh | None, tuple[int, ...]], dict[str, Placed]] = {}
    for name, p in placed.items():
        sizes = () if p.mesh is None else p.mesh.shape
        split = tuple(i for i, n in enumerate(sizes) if n > 1 and is_shard(p.placements[i]))
        by.setdefault((p.mesh if split else None, split), {})[name] = p
    return [group_of(members, handle_of(mesh, split), split) for (mesh, split), members in by.items()]


def handle_of(mesh: DeviceMesh | None, split: tuple[int, ...]) -> dist.ProcessGroup | None:
    """The process group over some dimensions of a mesh, made if there is none."""
    if mesh is None:
        return None
    if len(split) == 1:
        group: dist.ProcessGroup = mesh.get_group(split[0])
        return group
    here = mesh.get_coordinate()
    assert here is not None
    ranks = sorted(rank_at(mesh, c) for c in coordinates(mesh, here, split))
    # only its members make it: ranks of another pipeline stage hold other parameters
    made: dist.ProcessGroup = dist.new_group(ranks, use_local_synchronization=True)
    return made


def deal(matrices: Sequence[Matrix], ranks: int, cost: Callable[[int, int], int]) -> list[Round]:
    """Give each matrix to a rank, dearest first and always to the rank with the least so far (Graham 1969), in rounds.

    Args:
        matrices: in an order that all ranks agree on.
        ranks: of the group.
        cost: of a matrix of so many rows and columns.
    """
    queues: list[list[list[Matrix]]] = [[] for _ in range(ranks)]
    load, room = [0] * ranks, [0] * ranks
    for m in sorted(matrices, key=lambda m: (-cost(*m.shape), m.shape)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        load[rank] += cost(*m.shape)
        if prod(m.shape) > room[rank]:
            queues[rank].append([])
            room[rank] = ROUND_NUMBERS
        queues[rank][-1].append(m)
        room[rank] -= prod(m.shape)
    longest = max((len(q) for q in queues), default=0)
    return [tuple(tuple(q[k]) if k < len(q) else () for q in queues) for k in range(longest)]


def overlap(a: Box, b: Box) -> Box:
    """What two boxes share; a span without length where they do not meet."""
    both = [(max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True)]
    return tuple((lo, max(lo, hi)) for lo, hi in both)


def view_of(tensor: Tensor, box: Box, part: Box) -> Tensor:
    """A part of a tensor that holds `box` of the whole, as a matrix; the part lies inside the box or is empty."""
    if not size_of(part):
        return tensor.new_empty(0, 0)
    for (first, _), (row, _) in zip(box[:-2], part[:-2], strict=True):
        tensor = tensor[row - first]
    for dim, ((first, end), (lo, hi)) in enumerate(zip(box[-2:], part[-2:], strict=True)):
        tensor = tensor if (first, end) == (lo, hi) else tensor.narrow(dim, lo - first, hi - lo)
    return tensor


def size_of(part: Box) -> int:
    """Numbers in a box."""
    return prod(hi - lo for lo, hi in part)


def view_in(whole: Tensor, matrix: Matrix, part: Box) -> Tensor:
    """A part of a parameter in the whole matrix that it lies in."""
    return view_of(whole, matrix.box[-2:], part[-2:]) if size_of(part) else whole.new_empty(0, 0)


def gather(group: Group, dealt: Round, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The whole of each matrix that this rank was dealt in a round, out of local tensors, in a dtype of travel."""
    like = next(iter(tensors.values())).new_empty(0, dtype=dtype)
    sent = [
        [view_of(tensors[m.name], group.boxes[m.name][group.me], part) for m, part in parts(group, theirs, group.me)]
        for theirs in dealt
    ]
    mine = [parts(group, dealt[group.me], rank) for rank in range(group.ranks)]
    wholes = [like.new_empty(m.shape) for m in dealt[group.me]]
    for flat, theirs in zip(swap(group, sent, mine, like), mine, strict=True):
        for whole, (m, part), numbers in zip(wholes, theirs, pieces_of(flat, theirs), strict=True):
            target = view_in(whole, m, part)
            target.copy_(numbers.view_as(target))
    return wholes


def scatter(
    group: Group, dealt: Round, wholes: Sequence[Tensor], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Put the matrices of a round back into local tensors, from the ranks that worked on them.

    Args:
        group: the ranks.
        dealt: the round.
        wholes: this rank's matrices of it, in the order of `gather`.
        tensors: written into.
        dtype: of travel, that of all wholes.
    """
    like = next(iter(tensors.values())).new_empty(0, dtype=dtype)
    sent = [
        [view_in(whole, m, part) for whole, (m, part) in zip(wholes, parts(group, dealt[group.me], rank), strict=True)]
        for rank in range(group.ranks)
    ]
    mine = [parts(group, theirs, group.me) for theirs in dealt]
    for flat, theirs in zip(swap(group, sent, mine, like), mine, strict=True):
        for (m, part), numbers in zip(theirs, pieces_of(flat, theirs), strict=True):
            target = view_of(tensors[m.name], group.boxes[m.name][group.me], part)
            target.copy_(numbers.view_as(target))


def parts(group: Group, matrices: Sequence[Matrix], rank: int) -> list[tuple[Matrix, Box]]:
    """What a rank holds of each matrix."""
    return [(m, overlap(m.box, group.boxes[m.name][rank])) for m in matrices]


def pieces_of(flat: Tensor, theirs: Sequence[tuple[Matrix, Box]]) -> Sequence[Tensor]:
    """A flat message cut into the parts it is made of."""
    return torch.split(flat, [size_of(part) for _, part in theirs])


def swap(
    group: Group, sent: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[tuple[Matrix, Box]]], like: Tensor
) -> Sequence[Tensor]:
    """One all-to-all.

    Args:
        group: the ranks.
        sent: pieces for each rank.
        wanted: parts that each rank sends to this one.
        like: a tensor of the dtype and device of travel.

    Returns:
        from each rank, its parts as one flat tensor.
    """
    flat = [torch.cat([t.reshape(-1) for t in ts]).to(like.dtype) if ts else like.new_empty(0) for ts in sent]
    if group.handle is None:
        return flat
    counts = [sum(size_of(part) for _, part in theirs) for theirs in wanted]
    out = like.new_empty(sum(counts))
    dist.all_to_all_single(out, torch.cat(flat), counts, [t.numel() for t in flat], group=group.handle)
    return torch.split(out, counts)
