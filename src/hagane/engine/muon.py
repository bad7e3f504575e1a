"""Muon: momentum, made orthogonal, for the matrices inside the layers; sharded like the parameters.

Update (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), with the scale and the weight decay of
Moonlight (Liu et al. 2025, arXiv 2502.16982), so that learning rate and decay are those of AdamW:

    momentum <- mu momentum + (1 - mu) gradient
    update   <- orthogonalise(mu momentum + (1 - mu) gradient)
    weight   <- (1 - lr decay) weight - lr 0.2 sqrt(max(rows, columns)) update

Which matrices (`HIDDEN`): attention, shared and routed experts, the layers of the action tower. Parts that lie side by
side in one parameter for the sake of one product are matrices of their own: gate and value of a SwiGLU (they are
multiplied with each other, so neither's update should depend on how large the other's gradient is), q, k and v. A
stack of experts is as many matrices, so no expert's update depends on another's gradient.

Not: norms and biases (no matrices); embeddings, prompts and the projections in and out of the model, which are rows by
embodiment or byte (the post and arXiv 2502.16982 leave first and last layers to AdamW); routers, since a row is an
expert's own and a member's rows must not move by another member's gradients. QK-clip (Kimi K2, arXiv 2507.20534) is
not needed: queries and keys are normalised, so attention logits cannot grow with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from hagane.engine.matrices import Group, Matrix, Round, deal, gather, make_groups, scatter
from hagane.engine.newton_schulz import orthogonalise, orthogonalise_flops
from hagane.engine.placed import Placed

LAYERS = (".layers.",)
"""Muon is for what lies inside layers."""
HIDDEN: dict[str, tuple[int, int]] = {
    # name's end: dimension (from the last) along which parts lie side by side, number of parts
    ".attention.q.weight": (-2, 1),
    ".attention.k.weight": (-2, 1),
    ".attention.v.weight": (-2, 1),
    ".attention.o.weight": (-2, 1),
    ".experts.up": (-1, 2),
    ".experts.down": (-1, 1),
    ".shared.up.weight": (-2, 2),
    ".shared.down.weight": (-2, 1),
    ".qkv.weight": (-2, 3),
    ".self_out.weight": (-2, 1),
    ".q.weight": (-2, 1),
    ".kv.weight": (-2, 2),
    ".cross_out.weight": (-2, 1),
    ".ffn.up.weight": (-2, 2),
    ".ffn.down.weight": (-2, 1),
}
MOMENTUM = 0.95
MATCH_ADAMW = 0.2
"""Root mean square of AdamW's update in training, which Muon's is scaled to (arXiv 2502.16982, section 2.2)."""


def matrices_of(name: str, shape: torch.Size) -> list[Matrix]:
    """The matrices of a parameter that Muon takes; none if AdamW does."""
    if not any(part in name for part in LAYERS):
        return []
    found = next((where for end, where in HIDDEN.items() if name.endswith(end)), None)
    if found is None:
        return []
    dim, parts = found
    width = shape[dim] // parts
    out = []
    for row in range(shape[0] if len(shape) > 2 else 1):
        for part in range(parts):
            box = [(0, n) for n in shape]
            box[dim] = (part * width, (part + 1) * width)
            if len(shape) > 2:
                box[0] = (row, row + 1)
            out.append(Matrix(name, tuple(box)))
    return out


def update_scale(rows: int, columns: int) -> float:
    """What makes the root mean square of an orthogonal update that of AdamW's."""
    return MATCH_ADAMW * sqrt(max(rows, columns))


@dataclass(frozen=True, eq=False)
class Plan:
    """Who works on which matrix."""

    group: Group
    """Ranks that hold some parameters together."""
    rounds: tuple[Round, ...]
    """Their matrices, dealt out."""


class Muon:
    """Muon over local tensors.

    Args:
        local: this rank's part of each parameter; `.grad` is its part of the gradient.
        placed: where the parts lie.
        weight_decay: decoupled, as AdamW's.
        work: dtype of travel and of the iteration; None takes bf16 on an accelerator and fp32 on the CPU.
    """

    def __init__(
        self, local: Mapping[str, Tensor], placed: Mapping[str, Placed], weight_decay: float, work: torch.dtype | None
    ) -> None:
        self.local, self.weight_decay = dict(local), weight_decay
        self.momentum = {name: torch.zeros_like(p) for name, p in self.local.items()}
        self.work = work
        shapes = {name: placed[name].shape for name in self.local}
        self.scales = [update_scale(*matrices_of(name, shape)[0].shape) for name, shape in shapes.items()]
        self.plans = []
        for group in make_groups({name: placed[name] for name in self.local}):
            matrices = [m for name in group.boxes for m in matrices_of(name, shapes[name])]
            self.plans.append(Plan(group, tuple(deal(matrices, group.ranks, orthogonalise_flops))))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of every matrix; all ranks of a group call it together. Gradients are used up."""
        if not self.local:
            return
        gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in self.local.items()}
        momenta, used = list(self.momentum.values()), list(gradients.values())
        torch._foreach_lerp_(momenta, used, 1 - MOMENTUM)
        # no memory of their own: what is to be made orthogonal, then the update, takes the gradients' place
        torch._foreach_lerp_(used, momenta, MOMENTUM)
        work = self.work or (torch.float32 if used[0].device.type == "cpu" else torch.bfloat16)
        for plan in self.plans:
            for dealt in plan.rounds:
                scatter(plan.group, dealt, orthogonal(gather(plan.group, dealt, gradients, work)), gradients, work)
        torch._foreach_mul_(used, [-lr * scale for scale in self.scales])
        torch._foreach_mul_(list(self.local.values()), 1 - lr * self.weight_decay)
        torch._foreach_add_(list(self.local.values()), used)


def orthogonal(wholes: list[Tensor]) -> list[Tensor]:
    """`orthogonalise` of every matrix, those of one shape together."""
    out = list(wholes)
    shapes = {w.shape: [i for i, other in enumerate(wholes) if other.shape == w.shape] for w in wholes}
    for numbers in shapes.values():
        for i, made in zip(numbers, orthogonalise(torch.stack([wholes[i] for i in numbers])).unbind(), strict=True):
            out[i] = made
    return out
