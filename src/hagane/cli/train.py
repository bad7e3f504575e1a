"""`hagane train`: one model on the catalog's data sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from hagane.cli.site import open_catalog
from hagane.terms import ConfigError, load_toml

if TYPE_CHECKING:
    from hagane.train import TrainConfig


@dataclass(frozen=True)
class Train:
    """Train one set of weights on data sets of the catalog, each read under its contract.

    Say what to train by one of --recipe, --config or --again. A run's folder holds its resolved configuration,
    metrics and checkpoints; a killed run goes on with --resume, with the losses it would have had.
    """

    run: Path = Path("runs/run")
    """Folder of the run."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""
    datasets: tuple[str, ...] = ()
    """Data sets to train on; empty means all of the catalog."""
    recipe: str = "demo"
    """A recipe by name (demo, tiny), or path/to/file.py:function."""
    config: Path | None = None
    """A TOML file with a whole configuration, instead of a recipe."""
    again: Path | None = None
    """Repeat the run in this folder, with its configuration."""
    resume: bool = False
    """Go on from the newest whole checkpoint of --run."""
    size: str = ""
    """Overrides the size: 1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    steps: int = 0
    """Overrides the number of optimiser steps."""
    seed: int | None = None
    """Overrides the seed."""
    init_vision: Path | None = None
    """Safetensors file whose patch embedding starts the image path."""


def main(argv: list[str]) -> int:
    """Run `hagane train`.

    Raises:
        HaganeError: refused data, a configuration that cannot run, a disk that is full.
    """
    o = tyro.cli(Train, args=argv, prog="hagane train")
    from hagane.console import TrainPanel
    from hagane.train import open_data, train

    catalog = open_catalog(o.home)
    config = resolve(o, tuple(r.name for r in catalog.ls()))
    data = open_data(catalog, config)
    with TrainPanel.for_stream(config.step.steps, title=o.run.name) as panel:
        record = train(o.run, config, data, resume=o.resume, report=panel.update)
    if catalog.ledger is not None:
        body = {"run": record.id, "checkpoint": record.checkpoint_id, "datasets": dict(record.datasets)}
        catalog.ledger.append("checkpoint", body)
    print(f"checkpoint {record.checkpoint_id[:16]} of run {record.id} at step {record.steps}, in {o.run}/checkpoints")
    return 0


def resolve(o: Train, known: tuple[str, ...]) -> TrainConfig:
    """The whole configuration of a run from its flags.

    Raises:
        ConfigError: two sources at once, or an override on a resumed run.
    """
    from hagane.train import TrainConfig, find_recipe, read_config

    overrides = bool(o.size or o.steps or o.seed is not None or o.init_vision)
    if o.resume:
        if o.config or o.again or overrides:
            raise ConfigError(
                "a resumed run keeps its configuration", next_step="drop the other options, or start anew"
            )
        return read_config(o.run)
    if o.config and o.again:
        raise ConfigError("say one of --config and --again")
    if o.again:
        config = read_config(o.again)
    elif o.config:
        config = load_toml(o.config, TrainConfig)
    else:
        config = find_recipe(o.recipe)(o.datasets or known)
    step = replace(config.step, steps=o.steps) if o.steps else config.step
    return replace(
        config,
        step=step,
        size=o.size or config.size,
        seed=config.seed if o.seed is None else o.seed,
        init_vision=str(o.init_vision) if o.init_vision else config.init_vision,
    )
