"""Token parallelism: ranks of cp and tp hold the same samples and share their tokens.

Between layers each rank holds some of the tokens. Around attention, tp ranks gather the tokens of their cp share and
work on some of the heads each (Shoeybi et al. 2019, arXiv 1909.08053; sequence parallel form: Korthikanti et al. 2022,
arXiv 2205.05198); cp ranks exchange tokens for heads (Ulysses, Jacobs et al. 2023, arXiv 2309.14509). Shares may be
uneven: a gather pads to the longest and cuts again, so no padding token ever reaches a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed._functional_collectives import all_to_all_single_autograd

from hagane.engine.mesh import Mesh
from hagane.model.trunk import Trunk

# renamed in torch 2.13
all_gather: Callable[..., Tensor] = (
    getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
)
reduce_scatter_sum: Callable[..., Tensor] = (
    getattr(collectives, "reduce_scatter_single_autograd", None) or collectives.reduce_scatter_tensor_autograd
)


def shares(tokens: int, ranks: int) -> list[int]:
    """How many of so many tokens each rank holds: as even as it goes, the first ones more."""
    return [tokens // ranks + (i < tokens % ranks) for i in range(ranks)]


def gather(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """All ranks' tokens [sum(sizes), ...] from this rank's [sizes[me], ...]; its gradient is the sum over ranks."""
    longest = max(sizes)
    padded = nn.functional.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)))
    every = all_gather(padded.contiguous(), 0, group)
    if min(sizes) == longest:
        return every
    return torch.cat([part[:n] for part, n in zip(every.split(longest), sizes, strict=True)])


def reduce_scatter(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """This rank's tokens [sizes[me], ...] of the sum over ranks of [sum(sizes), ...]."""
    longest = max(sizes)
    if min(sizes) < longest:
        pad = (0, 0) * (x.ndim - 1)
        x = torch.cat([nn.functional.pad(p, (*pad, 0, longest - len(p))) for p in x.split(sizes)])
    mine = reduce_scatter_sum(x.contiguous(), "sum", 0, group)
    return mine[: sizes[dist.get_rank(group)]]


def to_heads(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """All tokens [M, heads / cp, d] of some heads from some tokens [m, heads, d] of all heads."""
    ranks = len(sizes)
    by_rank = x.unflatten(1, (ranks, -1)).transpose(0, 1).flatten(0, 1)
    out: Tensor = all_to_all_single_autograd(by_rank.contiguous(), sizes, [len(x)] * ranks, group)
    return out


def to_tokens(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """The inverse of `to_heads`: [M, heads / cp * d] to [m, heads * d]."""
    ranks, mine = len(sizes), sizes[dist.get_rank(group)]
    by_rank: Tensor = all_to_all_single_autograd(x.contiguous(), [mine] * ranks, sizes, group)
    out: Tensor = by_rank.unflatten(0, (ranks, mine)).transpose(0, 1).flatten(1)
    return out


@dataclass(frozen=True, eq=False)
class TokenShares:
    """Puts itself around a trunk: tokens are dealt before it, gathered after it, exchanged around its attention.

    How many tokens there are is read from `place`, which travels whole: a layer that is computed again in the
    backward may belong to an earlier microbatch.
    """

    mesh: Mesh
    """Ranks."""

    def cp_sizes(self, tokens: int) -> list[int]:
        """Tokens of each cp rank."""
        return shares(tokens, self.mesh.layout.cp)

    def tp_sizes(self, tokens: int) -> list[int]:
        """Tokens of each tp rank within this cp share."""
        return shares(self.cp_sizes(tokens)[self.mesh.at("cp")], self.mesh.layout.tp)

    def of_cp(self, x: Tensor) -> Tensor:
        """The tokens of this rank's cp share."""
        return torch.split(x, self.cp_sizes(len(x)))[self.mesh.at("cp")]

    def mine(self, x: Tensor) -> Tensor:
        """The tokens of this rank."""
        return torch.split(self.of_cp(x), self.tp_sizes(len(x)))[self.mesh.at("tp")]

    def whole(self, x: Tensor, tokens: int) -> Tensor:
        """All `tokens` tokens from this rank's."""
        if self.mesh.layout.tp > 1:
            x = gather(x, self.tp_sizes(tokens), self.mesh.group("tp"))
        return gather(x, self.cp_sizes(tokens), self.mesh.group("cp")) if self.mesh.layout.cp > 1 else x

    def deal(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the trunk: keep this rank's tokens, positions and gates."""
        x, position, place, mask, gate = args
        return self.mine(x), self.of_cp(position), place, mask, self.mine(gate)

    def collect(self, module: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor:
        """After the trunk: all tokens again."""
        return self.whole(x, len(args[2]))

    def before_attention(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """tp: the tokens of the whole cp share, for some heads."""
        x, turn, place, mask = args
        return gather(x, self.tp_sizes(len(place)), self.mesh.group("tp")), turn, place, mask

    def after_attention(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """tp: heads of all ranks added up, each rank its own tokens."""
        return reduce_scatter(out, self.tp_sizes(len(args[2])), self.mesh.group("tp"))

    def before_core(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """cp: all tokens of some heads; one message for queries, keys and values."""
        q, k, v, place, mask = args
        ranks = self.mesh.layout.cp
        by_rank = torch.cat([t.unflatten(1, (ranks, -1)) for t in (q, k, v)], 2).flatten(1, 2)
        some = to_heads(by_rank, self.cp_sizes(len(place)), self.mesh.group("cp"))
        return *some.split([t.shape[1] // ranks for t in (q, k, v)], 1), place, mask

    def after_core(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """cp: some tokens of all heads again."""
        return to_tokens(out, self.cp_sizes(len(args[3])), self.mesh.group("cp"))


def share_tokens(trunk: Trunk, around: TokenShares) -> None:
    """Put token parallelism around a trunk (a pipeline's stage, which does not call it, deals and collects itself)."""
    layout = around.mesh.layout
    trunk.register_forward_pre_hook(around.deal)
    trunk.register_forward_hook(around.collect)
    for layer in trunk.blocks:
        attention = layer.attention
        if layout.tp > 1:
            attention.register_forward_pre_hook(around.before_attention)
            attention.register_forward_hook(around.after_attention)
        if layout.cp > 1:
            attention.core.register_forward_pre_hook(around.before_core)
            attention.core.register_forward_hook(around.after_core)
