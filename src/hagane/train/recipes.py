"""Recipes: plain functions that return a full `TrainConfig`. Engineers add theirs here or in a file of their own."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from hagane.engine import Layout, StepConfig
from hagane.terms import ConfigError
from hagane.train.config import TrainConfig

Recipe = Callable[[tuple[str, ...]], TrainConfig]


def demo(datasets: tuple[str, ...]) -> TrainConfig:
    """The demo's run: one 1m generalist on three machines, a few minutes on two cores.

    The L1 head, since it reaches the figures in less time than the flow head (LOG.md); the arm has the larger
    share, since five tasks with a hard one need the most samples.
    """
    return TrainConfig(
        datasets=datasets,
        weights={name: share_of(name) for name in datasets},
        head="l1",
        samples_per_step=160,
        step=StepConfig(steps=1400, lr=2e-3),
        layout=Layout(dp_replicate=2),
        save_every=200,
    )


def share_of(dataset: str) -> float:
    """Share of a data set in the demo's batches; others than the demo's count as one machine of average need."""
    return {"arm-demo": 0.5, "mill-demo": 0.3, "road-demo": 0.2}.get(dataset, 0.3)


def tiny(datasets: tuple[str, ...]) -> TrainConfig:
    """A minute's run for tests and first looks: it learns, it does not yet operate."""
    return TrainConfig(
        datasets=datasets,
        samples_per_step=48,
        step=StepConfig(steps=60, warmup=10),
        save_every=20,
        held_out_every=20,
        held_out_samples=96,
    )


RECIPES: dict[str, Recipe] = {"demo": demo, "tiny": tiny}


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or from `path/to/file.py:function`.

    Raises:
        ConfigError: there is none; the recipe itself raises it when it does not return a `TrainConfig`.
    """
    if name in RECIPES:
        return RECIPES[name]
    path, _, function = name.partition(":")
    if not function or not Path(path).is_file():
        raise ConfigError(
            f"no recipe {name!r}", next_step=f"use one of {', '.join(RECIPES)}, or path/to/file.py:function"
        )
    spec = importlib.util.spec_from_file_location(f"hagane_recipe_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    recipe = getattr(module, function, None)
    if not inspect.isfunction(recipe):
        raise ConfigError(f"no function {function!r}", where=path, next_step=f"define `def {function}(datasets)` there")

    def checked(datasets: tuple[str, ...]) -> TrainConfig:
        config = recipe(datasets)
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"{function!r} returned {type(config).__name__}, not a TrainConfig",
                where=path,
                next_step="see hagane/train/recipes.py for one that works",
            )
        return config

    return checked
