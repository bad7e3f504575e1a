"""Expert parallelism: tokens travel to the ranks that hold their experts, and back.

An uneven, differentiable all-to-all around the experts' own forward. Nothing is dropped and nothing padded. How many
rows go where is the one thing that depends on the data; it comes through `Splits`, so that a planned routing can
stand in where there are no data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd

from hagane.model.moe import Experts


class Splits(Protocol):
    """Rows that this rank sends to and receives from each rank of its expert group."""

    def __call__(self, sent_RE: Tensor, received_RE: Tensor) -> tuple[list[int], list[int]]:
        """Row counts from [ranks, experts a rank] counts: sent to each rank's experts, received from each rank."""
        ...


def counted_splits(sent_RE: Tensor, received_RE: Tensor) -> tuple[list[int], list[int]]:
    """The counts themselves; waits for the device."""
    sent, received = torch.stack((sent_RE.sum(1), received_RE.sum(1))).tolist()
    return sent, received


def share_experts(experts: Experts, group: dist.ProcessGroup, splits: Splits = counted_splits) -> None:
    """Put the exchange around experts that hold the rows of this rank only."""
    compute: Callable[[Tensor, Tensor], Tensor] = experts.forward
    ranks = dist.get_world_size(group)

    def forward(x: Tensor, ends: Tensor) -> Tensor:
        """[P, D] rows grouped by expert, of all experts, to [P, D]."""
        sent_RE = ends.diff(prepend=ends.new_zeros(1)).long().view(ranks, -1)
        received_RE = all_to_all_single(sent_RE.contiguous(), None, None, group)
        sent, received = splits(sent_RE, received_RE)
        arrived = all_to_all_single_autograd(x.contiguous(), received, sent, group)
        order = by_expert(received_RE, sum(received))
        done = compute(arrived.index_select(0, order), received_RE.sum(0).cumsum(0).to(torch.int32))
        leaving = torch.empty_like(done).index_copy(0, order, done)
        return all_to_all_single_autograd(leaving, sent, received, group)

    experts.forward = forward  # type: ignore[method-assign]


def by_expert(received_RE: Tensor, rows: int) -> Tensor:
    """[rows] order that brings rows grouped by (rank, expert) to groups of experts."""
    ranks, experts = received_RE.shape
    expert = torch.arange(experts, device=received_RE.device).repeat(ranks)
    return expert.repeat_interleave(received_RE.flatten(), output_size=rows).argsort(stable=True)


def striped_rows(owners: tuple[str, ...], ranks: int) -> list[int]:
    """Row of each expert, such that each owner's experts spread evenly over the ranks' blocks of rows.

    A machine's tokens reach its owner's experts and the consortium's only: in blocks by owner, a few ranks would do
    all the work.
    """
    block = len(owners) // ranks
    fill, turn = [0] * ranks, 0
    rows: list[int] = []
    for _ in owners:
        # the next rank with room, so that an owner's experts go round
        while fill[turn % ranks] == block:
            turn += 1
        at = turn % ranks
        rows.append(at * block + fill[at])
        fill[at] += 1
        turn += 1
    return rows
