"""Who computes: the experts' load by expert, embodiment and owner, as numbers for the metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hagane.engine.step import moe_layers
from hagane.model import Generalist, ModelConfig


def layer_loads(model: Generalist) -> Tensor:
    """[layers, embodiments, experts] pairs of a token and an expert since the bias last moved."""
    return torch.stack([moe.load_GE for moe in moe_layers(model)])


def load_figures(config: ModelConfig, load_LGE: Tensor) -> dict[str, Any]:
    """Figures of a step's loads, which were summed over ranks; to be read before `take_loads` forgets them.

    Args:
        config: names the embodiments and the owner of every expert.
        load_LGE: pairs by layer, embodiment and expert; see `layer_loads`.

    Returns:
        experts/<embodiment>: [layers][experts] shares of the embodiment's pairs.
        owners/<embodiment>: by owner, the share of the embodiment's pairs over all layers.
        owners: by owner, the share of all pairs, of every embodiment and layer.
        busiest/<embodiment>: load of the busiest permitted expert over the mean of the permitted, worst layer;
            1 is even.
    """
    load = load_LGE.detach().double().cpu()
    owners = config.expert_owners()
    figures: dict[str, Any] = {"owners": _by_owner(load.sum((0, 1)), owners)}
    for row, e in enumerate(config.embodiments):
        mine_LE = load[:, row]
        figures[f"experts/{e.name}"] = (mine_LE / mine_LE.sum(-1, keepdim=True).clamp_min(1)).tolist()
        figures[f"owners/{e.name}"] = _by_owner(mine_LE.sum(0), owners)
        permitted = torch.tensor([owner in e.permitted_owners for owner in owners])
        even = mine_LE[:, permitted].mean(-1).clamp_min(1e-9)
        figures[f"busiest/{e.name}"] = float((mine_LE[:, permitted].amax(-1) / even).max())
    return figures


def _by_owner(load_E: Tensor, owners: tuple[str, ...]) -> dict[str, float]:
    total = float(load_E.sum())
    sums = dict.fromkeys(owners, 0.0)
    for owner, load in zip(owners, load_E.tolist(), strict=True):
        sums[owner] += load / max(total, 1.0)
    return sums
