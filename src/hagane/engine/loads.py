"""Who computes: the experts' load by expert, embodiment and owner, as numbers for the metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hagane.engine.engine import Engine
from hagane.engine.ranks import sum_over
from hagane.model import Generalist, ModelConfig, balance
from hagane.model.moe import MoE


def moe_layers(model: Generalist) -> list[MoE]:
    """The mixture-of-experts layers that are here, in order."""
    return [layer.moe for layer in model.trunk.blocks]


def layer_loads(engine: Engine) -> Tensor:
    """[layers, embodiments, experts] pairs of a token and an expert since the bias last moved.

    All ranks call it, after a step; each stage of a pipeline knows its own layers.
    """
    own = {int(name): layer.moe.load_GE for name, layer in engine.model.trunk.named_blocks}
    first = next(iter(own.values()))
    loads = first.new_zeros(engine.model.config.widths.layers, *first.shape)
    for i, load in own.items():
        loads[i] = load
    if engine.mesh.layout.pp > 1:
        sum_over([loads], engine.mesh.group("pp"))
    return loads


def balance_experts(engine: Engine) -> None:
    """Move every layer's bias towards an even load and forget the loads; once a step, after it."""
    for moe in moe_layers(engine.model):
        balance(moe, engine.config.balance_rate)


def forget_loads(model: Generalist) -> None:
    """Forget where the tokens of a step went that was not taken."""
    for moe in moe_layers(model):
        moe.load_GE.zero_()


def load_figures(config: ModelConfig, load_LGE: Tensor) -> dict[str, Any]:
    """Figures of a step's loads, which were summed over ranks; to be read before `balance_experts` forgets them.

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
