"""The optimiser of a run: AdamW, or Muon for the matrices inside layers and AdamW for the rest.

It works on plain local tensors, knows where they lie, and keeps its state under the parameters' names, split as they
are: so a checkpoint of any layout holds it, a piece beside a piece of its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from hagane.engine.muon import Muon, matrices_of
from hagane.engine.placed import Placed
from hagane.terms import ConfigError

OptimiserName = Literal["adamw", "muon"]
ADAMW_KINDS = ("exp_avg", "exp_avg_sq")
MUON_KIND = "momentum"


class OptimiserConfig(Protocol):
    """What of a run's settings the optimiser needs; `StepConfig` has it."""

    @property
    def optimiser(self) -> OptimiserName:
        """adamw or muon."""

    @property
    def betas(self) -> tuple[float, ...]:
        """AdamW's moment decays."""

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay on matrices."""


class Optimiser:
    """AdamW over some parameters, Muon over others; see `make_optimiser`."""

    def __init__(self, adamw: torch.optim.AdamW | None, names: tuple[str, ...], muon: Muon | None) -> None:
        self._adamw, self._names, self._muon = adamw, names, muon

    def step(self, lr: float) -> None:
        """Update every local tensor from its `.grad`; all ranks call it together."""
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
        if self._muon is not None:
            self._muon.step(lr)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The state by kind and parameter name, each shaped and split like the parameter; the tensors themselves."""
        kinds: dict[str, dict[str, Tensor]] = {}
        if self._adamw is not None:
            states = [self._adamw.state[p] for p in self._parameters()]
            kinds = {k: {n: s[k] for n, s in zip(self._names, states, strict=True)} for k in ADAMW_KINDS}
        if self._muon is not None:
            kinds[MUON_KIND] = self._muon.momentum
        return kinds

    def set_step(self, step: int) -> None:
        """Say how many steps the moments have seen, after they were loaded."""
        if self._adamw is not None:
            for p in self._parameters():
                self._adamw.state[p]["step"].fill_(float(step))

    def _parameters(self) -> list[Tensor]:
        assert self._adamw is not None
        return [p for group in self._adamw.param_groups for p in group["params"]]


def make_optimiser(
    config: OptimiserConfig,
    local: Mapping[str, Tensor],
    placed: Mapping[str, Placed],
    work: torch.dtype | None = None,
) -> Optimiser:
    """The optimiser that a run's settings ask for, its state made and zero.

    Weight decay is for what has two dimensions or more as a whole.

    Args:
        config: the settings.
        local: this rank's part of every parameter, leaf tensors that `.grad` is set on.
        placed: where each part lies. All ranks pass the same names in one order; Muon's exchange follows it.
        work: dtype of Muon's iteration; None takes bf16 on an accelerator and fp32 on the CPU.

    Raises:
        ConfigError: there is no such optimiser.
    """
    if config.optimiser not in ("adamw", "muon"):
        raise ConfigError(f"unknown optimiser {config.optimiser!r}", next_step='use "adamw" or "muon"')
    hidden = [n for n in local if config.optimiser == "muon" and matrices_of(n, placed[n].shape)]
    others = [n for n in local if n not in set(hidden)]
    names = sorted(others, key=lambda n: len(placed[n].shape) < 2)
    matrices = [local[n] for n in names if len(placed[n].shape) >= 2]
    flat = [local[n] for n in names if len(placed[n].shape) < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    first, second = config.betas
    # the rate comes with every step
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(first, second), foreach=True) if groups else None
    if adamw is not None:
        for p in (*matrices, *flat):
            zeros = {kind: torch.zeros_like(p) for kind in ADAMW_KINDS}
            adamw.state[p] = {"step": torch.zeros(()), **zeros}
    muon = Muon({n: local[n] for n in hidden}, placed, config.weight_decay, work) if hidden else None
    return Optimiser(adamw, tuple(names), muon)
