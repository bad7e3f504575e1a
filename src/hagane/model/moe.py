"""Mixture of experts with owners: a token reaches only the experts that its embodiment is permitted.

Sigmoid gates; the top k are chosen with a bias that balances the load without an auxiliary loss (Wang et al.
2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437). Choice, normalisation and balance happen inside the
permitted set of each embodiment (its gate), so a member's routing never depends on another's experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def swiglu(up: Tensor) -> Tensor:
    """[..., 2F] to [..., F]: the first half, through SiLU, gates the second (Shazeer 2020, arXiv 2002.05202)."""
    gate, value = up.chunk(2, -1)
    return F.silu(gate) * value


class Experts(nn.Module):
    """E SwiGLU experts as stacked parameters, applied to tokens grouped by expert."""

    def __init__(self, experts: int, d_model: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, d_model, 2 * ffn))
        self.down = nn.Parameter(torch.empty(experts, ffn, d_model))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """[P, D] tokens grouped by expert to [P, D]; `ends` [E] int32 is the end of each expert's group."""
        return F.grouped_mm(swiglu(F.grouped_mm(x, self.up, offs=ends)), self.down, offs=ends)


class SwiGLU(nn.Module):
    """Gated feed-forward: the shared expert, and the tower's."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        out: Tensor = self.down(swiglu(self.up(x)))
        return out


def experts_loop(experts: Experts, x: Tensor, ends: Tensor) -> Tensor:
    """The same as `Experts.forward`, one expert at a time: the reference for tests."""
    out, start = [], 0
    # unbind: an index at a time would cost a gradient as large as all experts for each of them
    for end, up, down in zip(ends.tolist(), experts.up.unbind(), experts.down.unbind(), strict=True):
        out.append(swiglu(x[start:end] @ up) @ down)
        start = end
    return torch.cat(out)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the M x k pairs of a token and one of its choices lie once they are grouped by expert (P = M x k)."""

    pair_P: Tensor
    """[P] the pair at each place; its token is pair // k."""
    place_Mk: Tensor
    """[M, k] the place of each pair: the inverse."""
    ends_E: Tensor
    """[E] int32, the end of each expert's group."""


def group_pairs(row_Mk: Tensor, rows: int) -> Places:
    """Group pairs by the row that their expert has in the stacked parameters; inside a group in the order of tokens.

    Fixed shapes and no value read back: the same on a GPU, where a read is a wait, and on fake tensors.
    """
    sorted_P, pair_P = row_Mk.reshape(-1).sort(stable=True)
    place_P = torch.empty_like(pair_P).scatter_(0, pair_P, torch.arange(len(pair_P), device=pair_P.device))
    each_E = torch.arange(rows, device=pair_P.device)
    ends_E = torch.searchsorted(sorted_P, each_E, right=True, out_int32=True)
    return Places(pair_P, place_P.view(row_Mk.shape), ends_E)


class Spread(torch.autograd.Function):
    """[M, D] tokens to [P, D], a row a pair, grouped.

    The backward pass knows where a token's k rows lie, so it gathers and sums them: no atomic adds, one result
    whatever the order of threads, and half the time of the transpose that autograd would take.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair_P: Tensor, place_Mk: Tensor) -> Tensor:
        """[P, D]."""
        ctx.save_for_backward(place_Mk)
        return x.index_select(0, pair_P // place_Mk.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The sum over a token's rows."""
        (place_Mk,) = ctx.saved_tensors
        return F.embedding_bag(place_Mk, grad.contiguous(), mode="sum"), None, None


class Collect(torch.autograd.Function):
    """[P, D] rows to [M, D]: a token's k rows, weighted and added up in one pass, in float32 whatever the type."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, weight_Mk: Tensor, pair_P: Tensor, place_Mk: Tensor) -> Tensor:
        """[M, D]."""
        ctx.save_for_backward(out, weight_Mk, pair_P, place_Mk)
        return F.embedding_bag(place_Mk, out, per_sample_weights=weight_Mk, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Of the rows: the token's gradient times its weight. Of the weights: its product with the row."""
        out, weight_Mk, pair_P, place_Mk = ctx.saved_tensors
        tokens, k = place_Mk.shape
        by_pair = grad.index_select(0, pair_P // k).mul_(weight_Mk.reshape(-1)[pair_P, None])
        token_P = torch.arange(tokens * k, device=grad.device) // k
        by_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad.contiguous(), out, place_Mk.reshape(-1), token_P[::k] * k, token_P, 0
        )
        return by_pair, by_weight.view(tokens, k), None, None


class MoE(nn.Module):
    """Router, routed experts and one shared expert."""

    bias_GE: Tensor
    permitted_GE: Tensor
    load_GE: Tensor
    row_E: Tensor

    def __init__(self, d_model: int, experts: int, top_k: int, ffn: int, permitted_GE: Tensor) -> None:
        super().__init__()
        self.top_k = min(top_k, int(permitted_GE.sum(1).max()))
        self.router = nn.Parameter(torch.empty(experts, d_model))
        self.experts = Experts(experts, d_model, ffn)
        self.shared = SwiGLU(d_model, ffn)
        # one row a gate (= embodiment); the bias only chooses, it never weighs. Buffers are real even where the
        # parameters are on the meta device: nothing draws them later
        self.register_buffer("bias_GE", torch.zeros(permitted_GE.shape, device="cpu"))
        self.register_buffer("permitted_GE", permitted_GE, persistent=False)
        self.register_buffer("load_GE", torch.zeros(permitted_GE.shape, device="cpu"), persistent=False)
        # row of each expert in the stacked parameters
        self.register_buffer("row_E", torch.arange(experts, device="cpu"), persistent=False)
        self.counting = True

    def route(self, x: Tensor, gate_M: Tensor) -> tuple[Tensor, Tensor]:
        """Experts [M, k] of each token and their weights [M, k] float32, which add up to 1.

        A gate with fewer than k experts chooses its best one again, with weight 0: its tokens pass through nobody
        else's experts, whose numbers (an infinity, say) could reach them even so.
        """
        score = torch.sigmoid((x @ self.router.t()).float())
        ranked = score.detach() + self.bias_GE.masked_fill(~self.permitted_GE, -torch.inf)[gate_M]
        value, chosen = ranked.topk(self.top_k, -1)
        spare = value == -torch.inf
        chosen = torch.where(spare, chosen[:, :1], chosen)
        weight = score.gather(1, chosen).masked_fill(spare, 0.0)
        return chosen, weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)

    def forward(self, x: Tensor, gate_M: Tensor) -> Tensor:
        """[M, D] to [M, D]; `gate_M` [M] is each token's embodiment row. Adds to `load_GE` while training."""
        chosen, weight = self.route(x, gate_M)
        if self.training and self.counting:
            self.count(chosen, weight, gate_M)
        at = group_pairs(self.row_E[chosen], len(self.row_E))
        grouped = Spread.apply(x, at.pair_P, at.place_Mk)  # type: ignore[no-untyped-call]
        out = self.experts(grouped, at.ends_E)
        mixed = Collect.apply(out, weight.to(out.dtype), at.pair_P, at.place_Mk)  # type: ignore[no-untyped-call]
        total: Tensor = mixed + self.shared(x)
        return total

    @torch.no_grad()
    def count(self, chosen: Tensor, weight: Tensor, gate_M: Tensor) -> None:
        """Add this pass's pairs to `load_GE`; a spare choice has weight 0 and is no load."""
        cell = (gate_M[:, None] * len(self.row_E) + chosen).reshape(-1)
        used = (weight > 0).to(self.load_GE.dtype).reshape(-1)
        self.load_GE.view(-1).scatter_add_(0, cell, used)


@torch.no_grad()
def balance(moe: MoE, rate: float) -> None:
    """Move each gate's bias towards an even load over its permitted experts, then forget the load.

    Call once an optimiser step, after `load_GE` was summed over all ranks.
    """
    permitted = moe.permitted_GE
    mean = (moe.load_GE * permitted).sum(1, keepdim=True) / permitted.sum(1, keepdim=True).clamp_min(1)
    seen = moe.load_GE.sum(1, keepdim=True) > 0
    moe.bias_GE += rate * torch.sign(mean - moe.load_GE) * permitted * seen
    moe.load_GE.zero_()
