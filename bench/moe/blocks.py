"""One mixture-of-experts layer in four implementations, from the same numbers.

The peers' blocks are used as they are, through their own classes. Both compute the same function as ours: sigmoid
scores, a bias that only chooses, top k normalised to 1, SwiGLU experts, one shared expert.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn

from hagane.model.moe import MoE

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer and of its input."""

    name: str
    d_model: int
    experts: int
    top_k: int
    ffn: int
    tokens: int

    @property
    def flops(self) -> float:
        """Multiply-adds x 2 of matmuls, forward + backward: the backward pass has two for each of the forward."""
        expert = 3 * self.d_model * self.ffn
        return 3 * 2.0 * self.tokens * (expert * (self.top_k + 1) + self.d_model * self.experts)


@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's numbers: router [E, D], bias [E], up [E, D, 2F], down [E, F, D], shared [2F, D] and [D, F]."""

    router: Tensor
    bias: Tensor
    up: Tensor
    down: Tensor
    shared_up: Tensor
    shared_down: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Weights:
        """Converted copies; the bias stays float32."""
        parts = {k: v.to(device, dtype, copy=True) for k, v in vars(self).items() if k != "bias"}
        return Weights(**parts, bias=self.bias.to(device, torch.float32, copy=True))


def draw(shape: Shape, skew: float, seed: int) -> Weights:
    """Weights from a seed. `skew` is the bias of the first expert over the last; 0 leaves the router to itself."""
    g = torch.Generator().manual_seed(seed)
    d, e, f = shape.d_model, shape.experts, shape.ffn

    def normal(*size: int, fan_in: int) -> Tensor:
        return torch.randn(*size, generator=g) * fan_in**-0.5

    return Weights(
        router=normal(e, d, fan_in=d),
        bias=torch.linspace(skew, 0.0, e),
        up=normal(e, d, 2 * f, fan_in=d),
        down=normal(e, f, d, fan_in=f),
        shared_up=normal(2 * f, d, fan_in=d),
        shared_down=normal(d, f, fan_in=f),
    )


@dataclass(frozen=True, eq=False)
class Block:
    """An implementation that holds its own copy of the weights."""

    name: str
    module: nn.Module
    forward: Forward
    """[M, D] to [M, D]."""
    grads: Callable[[], dict[str, Tensor]]
    """Gradients of the weights after a backward pass, in the shapes of `Weights`."""
    computes: str = "float32"
    """The type that the experts' matmuls run in."""
    around: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    """What must hold while it runs."""


def ours(shape: Shape, w: Weights) -> Block:
    """hagane.model.moe.MoE, one gate that permits all experts; it counts its loads as in training."""
    device = w.router.device
    moe = MoE(shape.d_model, shape.experts, shape.top_k, shape.ffn, torch.ones(1, shape.experts, dtype=torch.bool))
    moe = moe.to(device, w.router.dtype)
    moe.bias_GE = w.bias[None].clone()
    moe.load_GE = moe.load_GE.float()
    names = {
        "router": moe.router,
        "up": moe.experts.up,
        "down": moe.experts.down,
        "shared_up": moe.shared.up.weight,
        "shared_down": moe.shared.down.weight,
    }
    _fill(names, w)
    gate = torch.zeros(shape.tokens, dtype=torch.int64, device=device)
    return Block("hagane", moe.train(), lambda x: moe(x, gate), lambda: _grads(names), _kind(w))


def transformers_block(shape: Shape, w: Weights, experts: str) -> Block:
    """DeepseekV3MoE of transformers, with one of its experts implementations: eager, batched_mm or grouped_mm."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=shape.d_model,
        moe_intermediate_size=shape.ffn,
        n_routed_experts=shape.experts,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
    config._experts_implementation = experts
    moe = DeepseekV3MoE(config).to(w.router.dtype)
    f = shape.ffn
    with torch.no_grad():
        moe.gate.weight.copy_(w.router)
        moe.gate.e_score_correction_bias = w.bias.clone()
        moe.experts.gate_up_proj.copy_(w.up.transpose(1, 2))
        moe.experts.down_proj.copy_(w.down.transpose(1, 2))
        moe.shared_experts.gate_proj.weight.copy_(w.shared_up[:f])
        moe.shared_experts.up_proj.weight.copy_(w.shared_up[f:])
        moe.shared_experts.down_proj.weight.copy_(w.shared_down)

    def grads() -> dict[str, Tensor]:
        shared = moe.shared_experts
        return {
            "router": moe.gate.weight.grad,
            "up": moe.experts.gate_up_proj.grad.transpose(1, 2),
            "down": moe.experts.down_proj.grad.transpose(1, 2),
            "shared_up": torch.cat((shared.gate_proj.weight.grad, shared.up_proj.weight.grad)),
            "shared_down": shared.down_proj.weight.grad,
        }

    return Block(f"transformers {experts}", moe.train(), lambda x: moe(x[None])[0], grads, _kind(w))


def torchtitan_block(shape: Shape, w: Weights, *, casts: bool) -> Block:
    """torchtitan's MoE with its local dispatcher.

    It casts its experts' matmuls to bfloat16 whatever the weights are. With `casts` False those casts do nothing,
    so that it computes in the type of its weights; the code that runs is its own all the same.
    """
    from torchtitan.models.common.feed_forward import FeedForward
    from torchtitan.models.common.linear import Linear
    from torchtitan.models.common.moe import GroupedExperts, RoutedExperts, TokenChoiceTopKRouter
    from torchtitan.models.common.moe import MoE as TitanMoE
    from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher

    d, e, f = shape.d_model, shape.experts, shape.ffn

    def linear(n: int, m: int) -> Linear.Config:
        return Linear.Config(in_features=n, out_features=m, bias=False)

    config = TitanMoE.Config(
        num_experts=e,
        routed_experts=RoutedExperts.Config(
            inner_experts=GroupedExperts.Config(dim=d, hidden_dim=f, num_experts=e),
            token_dispatcher=LocalTokenDispatcher.Config(num_experts=e, top_k=shape.top_k),
        ),
        router=TokenChoiceTopKRouter.Config(
            num_experts=e, gate=linear(d, e), top_k=shape.top_k, score_func="sigmoid", route_norm=True
        ),
        shared_experts=FeedForward.Config(w1=linear(d, f), w2=linear(f, d), w3=linear(d, f)),
    )
    moe = config.build().to(w.router.dtype)
    inner, shared = moe.routed_experts.inner_experts, moe.shared_experts
    with torch.no_grad():
        moe.router.gate.weight.copy_(w.router)
        moe.expert_bias_E = w.bias.clone()
        moe.tokens_per_expert_E = torch.zeros(e)
        inner.w1_EFD.copy_(w.up[..., :f].transpose(1, 2))
        inner.w3_EFD.copy_(w.up[..., f:].transpose(1, 2))
        inner.w2_EDF.copy_(w.down.transpose(1, 2))
        shared.w1.weight.copy_(w.shared_up[:f])
        shared.w3.weight.copy_(w.shared_up[f:])
        shared.w2.weight.copy_(w.shared_down)

    def grads() -> dict[str, Tensor]:
        return {
            "router": moe.router.gate.weight.grad,
            "up": torch.cat((inner.w1_EFD.grad, inner.w3_EFD.grad), 1).transpose(1, 2),
            "down": inner.w2_EDF.grad.transpose(1, 2),
            "shared_up": torch.cat((shared.w1.weight.grad, shared.w3.weight.grad)),
            "shared_down": shared.w2.weight.grad,
        }

    name = "torchtitan" if casts or w.router.dtype == torch.bfloat16 else "torchtitan without casts"
    computes = "bfloat16" if casts else _kind(w)
    around = nullcontext if casts else _no_casts
    return Block(name, moe.train(), lambda x: moe(x[None])[0], grads, computes, around)


def _no_casts() -> AbstractContextManager[object]:
    return mock.patch.object(Tensor, "bfloat16", lambda self: self)


def _kind(w: Weights) -> str:
    return str(w.router.dtype).removeprefix("torch.")


@torch.no_grad()
def _fill(names: dict[str, nn.Parameter], w: Weights) -> None:
    for name, parameter in names.items():
        parameter.copy_(getattr(w, name))


def _grads(names: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad for name, p in names.items() if p.grad is not None}
