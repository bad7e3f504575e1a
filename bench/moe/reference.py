"""The layer's definition in float64, one expert at a time: what every implementation's error is measured against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from blocks import Block, Shape, Weights
from torch import Tensor


def choose(shape: Shape, w: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [M, E], choices [M, k] and how clear each token's choice is [M]: the gap between its k-th and next."""
    score = torch.sigmoid(x @ w.router.t())
    ranked, order = (score.detach() + w.bias).sort(-1, descending=True)
    k = shape.top_k
    return score, order[:, :k], ranked[:, k - 1] - ranked[:, k]


def clear_tokens(shape: Shape, w: Weights, margin: float, seed: int) -> Tensor:
    """[M, D] tokens whose choice is clear by a margin, so that no rounding gives them to another expert."""
    g = torch.Generator().manual_seed(seed + 1)
    wide, kept, count = w.to(torch.float64), [], 0
    while count < shape.tokens:
        # as bfloat16 stores them, so that every type starts from the same numbers
        x = torch.randn(shape.tokens, shape.d_model, generator=g).bfloat16()
        kept.append(x[choose(shape, wide, x.double())[2] > margin])
        count += len(kept[-1])
    return torch.cat(kept)[: shape.tokens].float()


def loads(shape: Shape, w: Weights, x: Tensor) -> Tensor:
    """[E] pairs of each expert."""
    chosen = choose(shape, w.to(torch.float64), x.double())[1]
    return torch.zeros(shape.experts).scatter_add_(0, chosen.reshape(-1), torch.ones(chosen.numel()))


def reference(shape: Shape, w: Weights, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output and gradients in float64: out, x and the names of `Weights`."""
    leaves = {k: v.double().requires_grad_(k != "bias") for k, v in vars(w).items()}
    wide = Weights(**leaves)
    x = x.double().requires_grad_()
    score, chosen, _ = choose(shape, wide, x)
    weight = score.gather(1, chosen)
    weight = weight / weight.sum(-1, keepdim=True)
    out = _swiglu(x, wide.shared_up.t(), wide.shared_down.t())
    # unbind: an index at a time would cost a gradient as large as all experts for each of them
    for e, (up, down) in enumerate(zip(wide.up.unbind(), wide.down.unbind(), strict=True)):
        token, place = torch.where(chosen == e)
        rows = _swiglu(x[token], up, down) * weight[token, place, None]
        out = out.index_add(0, token, rows)
    out.backward(grad.double())
    grads = {k: v.grad for k, v in leaves.items() if v.grad is not None}
    return {"out": out.detach(), "x": x.grad, **grads}  # type: ignore[dict-item]


def errors(block: Block, x: Tensor, grad: Tensor, truth: dict[str, Tensor]) -> dict[str, float]:
    """||a - b|| / ||b|| of the output and of every gradient of one forward and backward pass."""
    block.module.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    with block.around():
        out = block.forward(x)
        out.backward(grad)
    assert x.grad is not None
    found = {"out": out.detach(), "x": x.grad, **block.grads()}
    block.module.zero_grad(set_to_none=True)
    return {k: float((found[k].double() - t).norm() / t.norm()) for k, t in truth.items()}


def _swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = (x @ up).chunk(2, -1)
    return (F.silu(gate) * value) @ down
