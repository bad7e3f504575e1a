"""Mixture of experts with owners: a token reaches only the experts that its embodiment is permitted.

Sigmoid gates; the top k are chosen with a bias that balances the load without an auxiliary loss (Wang et al.
2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437). Choice, normalisation and balance happen inside the
permitted set of each embodiment (its gate), so a member's routing never depends on another's experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """E SwiGLU experts as stacked parameters, applied to tokens grouped by expert."""

    def __init__(self, experts: int, d_model: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, d_model, 2 * ffn))
        self.down = nn.Parameter(torch.empty(experts, ffn, d_model))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """[P, D] tokens grouped by expert to [P, D]; `ends` [E] int32 is the end of each expert's group."""
        gate, value = F.grouped_mm(x, self.up, offs=ends).chunk(2, -1)
        return F.grouped_mm(F.silu(gate) * value, self.down, offs=ends)


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020, arXiv 2002.05202): the shared expert, and the tower's."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        gate, value = self.up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * value)
        return out


def experts_loop(experts: Experts, x: Tensor, ends: Tensor) -> Tensor:
    """The same as `Experts.forward`, one expert at a time: the reference for tests."""
    out, start = [], 0
    for e, end in enumerate(ends.tolist()):
        gate, value = (x[start:end] @ experts.up[e]).chunk(2, -1)
        out.append((F.silu(gate) * value) @ experts.down[e])
        start = end
    return torch.cat(out)


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
        """Experts [M, k] of each token and their weights [M, k], which add up to 1 over permitted experts."""
        score = torch.sigmoid((x @ self.router.t()).float())
        permitted = self.permitted_GE[gate_M]
        ranked = (score.detach() + self.bias_GE[gate_M]).masked_fill(~permitted, -torch.inf)
        chosen = ranked.topk(self.top_k, -1).indices
        weight = (score * permitted).gather(1, chosen)
        return chosen, (weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)).to(x.dtype)

    def forward(self, x: Tensor, gate_M: Tensor) -> Tensor:
        """[M, D] to [M, D]; `gate_M` [M] is each token's embodiment row. Adds to `load_GE` while training."""
        tokens, width = x.shape
        chosen, weight = self.route(x, gate_M)
        flat = chosen.reshape(-1)
        rows = self.row_E[flat]
        order = rows.argsort(stable=True)
        count_E = torch.zeros_like(self.row_E).scatter_add(0, rows, torch.ones_like(rows))
        grouped = x.index_select(0, order // self.top_k)
        out = self.experts(grouped, count_E.cumsum(0).to(torch.int32))
        back = torch.empty_like(out).index_copy(0, order, out).view(tokens, self.top_k, width)
        mixed = (back * weight[..., None]).sum(1)
        if self.training and self.counting:
            # a choice beyond the permitted set has weight 0 and is no load
            used = (weight.detach() > 0).to(self.load_GE.dtype).reshape(-1)
            cell = gate_M.repeat_interleave(self.top_k) * len(self.router) + flat
            self.load_GE.view(-1).index_add_(0, cell, used)
        total: Tensor = mixed + self.shared(x)
        return total


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
