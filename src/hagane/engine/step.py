"""One training step, the same for one process and for many."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hagane.engine.inputs import train_samples
from hagane.engine.parallel import Layout, share, sum_gradients, sum_over_ranks, world_size
from hagane.engine.placed import Placed
from hagane.model import Generalist, LossSums, balance
from hagane.model.moe import MoE
from hagane.terms import Batch, TrainingError


@dataclass(frozen=True)
class StepConfig:
    """Optimiser and loss settings."""

    steps: int = 1200
    """Optimiser steps in all; fixes the learning-rate schedule."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    warmup: int = 50
    """Steps of linear warm-up before the cosine decay."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW moment decays."""
    weight_decay: float = 0.01
    """AdamW weight decay on matrices."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.995
    """Decay of the averaged weights that are served."""
    next_weight: float = 0.1
    """Weight of the second loss (next observation)."""
    mask_rate: float = 0.05
    """Share of samples with one channel hidden; they serve the second loss only."""
    balance_rate: float = 0.01
    """Step of the experts' balancing bias."""


@dataclass
class Engine:
    """A model in training: weights, averaged weights, optimiser, the step it is at."""

    model: Generalist
    """The weights that learn."""
    config: StepConfig
    """Settings."""
    seed: int
    """Seed of noise."""
    optimizer: torch.optim.AdamW = field(init=False)
    """AdamW over all parameters."""
    ema: dict[str, Tensor] = field(init=False)
    """Averaged weights by parameter name."""
    step: int = 0
    """Steps done."""

    def __post_init__(self) -> None:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        first, second = self.config.betas
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=(first, second), foreach=True)
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @property
    def local(self) -> dict[str, Tensor]:
        """This rank's part of each parameter."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    @property
    def placed(self) -> dict[str, Placed]:
        """Where the parts lie in the whole."""
        return {name: Placed(None, (), p.shape) for name, p in self.model.named_parameters()}

    @property
    def layout(self) -> Layout:
        """Ranks along each axis."""
        return Layout(world_size())

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by kind and parameter name, made if it has not stepped yet."""
        kinds: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state.update({kind: torch.zeros_like(p) for kind in kinds})
            for kind, table in kinds.items():
                table[name] = state[kind]
        return kinds

    def resume_at(self, step: int) -> None:
        """Go on as after so many steps."""
        self.step = step
        for state in self.optimizer.state.values():
            state["step"].fill_(float(step))


def learning_rate(config: StepConfig, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def moe_layers(model: nn.Module) -> list[MoE]:
    """The mixture-of-experts layers in order."""
    return [m for m in model.modules() if isinstance(m, MoE)]


def total_loss(sums: list[LossSums], counts: Tensor, next_weight: float) -> Tensor:
    """Mean over parts of (action + weight * next), each sum divided by its global count [parts, 2]."""
    parts = [
        s.action / counts[i, 0].clamp_min(1) + next_weight * s.next / counts[i, 1].clamp_min(1)
        for i, s in enumerate(sums)
    ]
    return torch.stack(parts).sum() / len(parts)


def train_step(engine: Engine, batch: Batch) -> dict[str, float]:
    """One optimiser step on one batch (all ranks call it with the same batch, each takes its share).

    Returns:
        loss, loss/<embodiment>, next/<embodiment>, gradient norm and learning rate.

    Raises:
        TrainingError: the loss or the gradient is not finite; the weights are as before.
    """
    model, config = engine.model, engine.config
    model.train()
    samples = train_samples(model, share(batch), engine.seed, config.mask_rate)
    sums = model(samples)
    counts = torch.stack([torch.stack((s.action_count, s.next_count)) for s in sums]).float()
    sum_over_ranks([counts])
    loss = total_loss(sums, counts, config.next_weight)
    engine.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    sum_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    figures = torch.stack([torch.stack((s.action.detach(), s.next.detach())) for s in sums])
    moes = moe_layers(model)
    sum_over_ranks([figures, *(m.load_GE for m in moes)])
    if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(figures).all()):
        raise TrainingError(
            f"the loss is not finite at step {engine.step}",
            next_step="lower lr, or look at this batch's data sets with `hagane catalog show`",
        )
    rate = learning_rate(config, engine.step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    engine.optimizer.step()
    update_ema(engine)
    engine.step += 1
    means = figures / counts.clamp_min(1)
    result = {"loss": 0.0, "gradient_norm": float(norm), "lr": rate}
    for part, (action, following) in zip(batch.parts, means.tolist(), strict=True):
        result[f"loss/{part.observation.embodiment}"] = action
        result[f"next/{part.observation.embodiment}"] = following
        result["loss"] += action / len(batch.parts)
    return result


def update_ema(engine: Engine) -> None:
    """Move the averaged weights a step; early on they follow faster, so that they are not the random start."""
    decay = min(engine.config.ema, (1 + engine.step) / (10 + engine.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(engine.ema.values()), [p.detach() for p in engine.model.parameters()], 1 - decay)


def take_loads(model: Generalist, rate: float) -> dict[str, list[list[float]]]:
    """Balance every layer's bias and return expert use: by embodiment, [layers][experts] shares of its tokens.

    Call once a step, after the loads were summed over ranks.
    """
    moes = moe_layers(model)
    loads = torch.stack([m.load_GE for m in moes])
    shares = loads / loads.sum(-1, keepdim=True).clamp_min(1)
    for m in moes:
        balance(m, rate)
    names = [e.name for e in model.config.embodiments]
    return {name: shares[:, row].tolist() for row, name in enumerate(names)}


@torch.no_grad()
def evaluate_loss(model: Generalist, batch: Batch, seed: int) -> dict[str, float]:
    """Action loss by embodiment on a batch that training never sees."""
    model.eval()
    sums = model(train_samples(model, batch, seed, 0.0))
    parts = zip(batch.parts, sums, strict=True)
    return {p.observation.embodiment: float(s.action / s.action_count.clamp_min(1)) for p, s in parts}
