"""The optimiser's interface: AdamW's numbers, what decays, state by parameter name, going on from it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hagane.engine.optimiser import Optimiser, OptimiserName, make_optimiser
from hagane.engine.placed import Placed
from hagane.terms import ConfigError
from tests.model_fixture import make_model


@dataclass(frozen=True)
class Config:
    """What the optimiser reads of a run's settings."""

    optimiser: OptimiserName = "adamw"
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1


def weights() -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in make_model().named_parameters()}


def placed_whole(local: dict[str, Tensor]) -> dict[str, Placed]:
    return {n: Placed(None, (), p.shape, 0) for n, p in local.items()}


def gradients(local: dict[str, Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in local.values():
        p.grad = torch.randn(p.shape, generator=generator)


def steps(optimiser: Optimiser, local: dict[str, Tensor], seeds: range) -> None:
    for seed in seeds:
        gradients(local, seed)
        optimiser.step(1e-3 * (1 + seed))


def test_adamw_gives_the_numbers_of_torch() -> None:
    local, other = weights(), weights()
    ours = make_optimiser(Config(), local, placed_whole(local))
    groups = [
        {"params": [p for p in other.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in other.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), foreach=True)
    steps(ours, local, range(3))
    for seed in range(3):
        gradients(other, seed)
        for group in theirs.param_groups:
            group["lr"] = 1e-3 * (1 + seed)
        theirs.step()
    assert all(torch.equal(local[n], other[n]) for n in local)
    moments = ours.moments()
    assert set(moments) == {"exp_avg", "exp_avg_sq"} and set(moments["exp_avg"]) == set(local)
    assert all(torch.equal(moments[k][n], theirs.state[other[n]][k]) for k in moments for n in local)


def test_what_decays_is_judged_by_the_whole_and_empty_parts_pass() -> None:
    local = {"row": torch.ones(3), "none": torch.ones(0, 4), "vector": torch.ones(3)}
    placed = {"row": Placed(None, (), torch.Size((2, 3)), 0), "none": Placed(None, (), torch.Size((2, 4)), 0)}
    placed["vector"] = Placed(None, (), torch.Size((3,)), 0)
    optimiser = make_optimiser(Config(), local, placed)
    for p in local.values():
        p.grad = torch.zeros_like(p)
    optimiser.step(0.5)
    assert torch.equal(local["row"], torch.full((3,), 0.95)) and torch.equal(local["vector"], torch.ones(3))


def test_muon_and_adamw_divide_the_parameters() -> None:
    local = weights()
    optimiser = make_optimiser(Config("muon"), local, placed_whole(local))
    moments = optimiser.moments()
    assert set(moments) == {"exp_avg", "exp_avg_sq", "momentum"}
    assert set(moments["exp_avg"]) == set(moments["exp_avg_sq"]) == set(local) - set(moments["momentum"])
    assert "trunk.layers.0.moe.experts.up" in moments["momentum"] and "tower.w_out" in moments["exp_avg"]
    assert all(t.shape == local[n].shape and not t.any() for kind in moments.values() for n, t in kind.items())
    before = {n: p.clone() for n, p in local.items()}
    steps(optimiser, local, range(1))
    assert all(not torch.equal(before[n], local[n]) for n in local)
    assert all(t.any() for kind in optimiser.moments().values() for t in kind.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_copied_moments_go_on_exactly(name: OptimiserName) -> None:
    local = weights()
    one = make_optimiser(Config(name), local, placed_whole(local))
    steps(one, local, range(3))
    again = {n: p.clone() for n, p in local.items()}
    two = make_optimiser(Config(name), again, placed_whole(again))
    for kind, by_name in two.moments().items():
        for parameter, tensor in by_name.items():
            tensor.copy_(one.moments()[kind][parameter])
    two.set_step(3)
    for optimiser, mine in ((one, local), (two, again)):
        steps(optimiser, mine, range(3, 5))
    assert all(torch.equal(local[n], again[n]) for n in local)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown optimiser 'sgd'"):
        make_optimiser(Config("sgd"), {}, {})  # type: ignore[arg-type]
