"""`hagane train`: one model on the catalog's data sets."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from hagane.cli.site import open_catalog
from hagane.terms import ConfigError, HaganeError, load_toml

if TYPE_CHECKING:
    from hagane.train import TrainConfig
    from hagane.train.changes import Change
    from hagane.train.skips import Skip


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
    """Go on from the newest whole checkpoint of --run; with --config, on the other data sets or weights that it names:
    the change is written down with its step. With --nproc, on another number of processes."""
    size: str = ""
    """Overrides the size: 1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    steps: int = 0
    """Overrides the number of optimiser steps."""
    seed: int | None = None
    """Overrides the seed."""
    init_vision: Path | None = None
    """Safetensors file whose patch embedding starts the image path."""
    nproc: int = 0
    """Processes on this machine, each with its share of the samples; 0 keeps the configuration's."""


def main(argv: list[str]) -> int:
    """Run `hagane train`.

    Raises:
        HaganeError: refused data, a configuration that cannot run, a disk that is full.
    """
    o = tyro.cli(Train, args=argv, prog="hagane train")
    # without a name server gloo warns at every start; it needs none
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from hagane.console import TrainPanel
    from hagane.train import change_mixture, open_data, train

    catalog = open_catalog(o.home)
    config = resolve(o, tuple(r.name for r in catalog.ls()))
    data = open_data(catalog, config)
    if o.resume and o.config:

        def note(change: Change) -> None:
            if catalog.ledger is not None:
                catalog.ledger.append("mixture", {"run": o.run.name, **asdict(change)})

        change = change_mixture(o.run, config, data.embodiments, data.train.cursor, note)
        print(f"from step {change.step} on: {', '.join(change.datasets)}")

    def left_out(skip: Skip) -> None:
        if catalog.ledger is not None:
            catalog.ledger.append("skip", {"run": o.run.name, **asdict(skip)})

    with ranks(o, config), TrainPanel.for_stream(config.step.steps, title=o.run.name) as panel:
        record = train(o.run, config, data, resume=o.resume, report=panel.update, note=left_out)
    if catalog.ledger is not None:
        body = {"run": record.id, "checkpoint": record.checkpoint_id, "datasets": dict(record.datasets)}
        catalog.ledger.append("checkpoint", body)
    print(f"checkpoint {record.checkpoint_id[:16]} of run {record.id} at step {record.steps}, in {o.run}/checkpoints")
    return 0


@contextmanager
def ranks(o: Train, config: TrainConfig) -> Iterator[None]:
    """Start the other processes of the layout and be rank 0; under torchrun or alone there is nothing to start."""
    from hagane.engine import join_ranks, leave_ranks

    world = config.layout.ranks
    if world == 1 or "RANK" in os.environ:
        if "RANK" in os.environ:
            join_ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"]))
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    spawn = get_context("spawn")
    others = [spawn.Process(target=other_rank, args=(n, port, o, config), daemon=True) for n in range(1, world)]
    for other in others:
        other.start()
    try:
        join_ranks(0, world, port)
        yield
    finally:
        leave_ranks()
        for other in others:
            other.join(timeout=10)
            if other.is_alive():
                other.kill()


def other_rank(number: int, port: int, o: Train, config: TrainConfig) -> None:
    """The work of a rank beside rank 0: the same steps, no files. It ends with rank 0, however that ends."""
    from hagane.engine import join_ranks, leave_ranks
    from hagane.train import open_data, train

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        data = open_data(open_catalog(o.home, noted=False), config)
        join_ranks(number, config.layout.ranks, port)
        train(o.run, config, data, resume=o.resume)
        leave_ranks()
    except (HaganeError, RuntimeError):
        # rank 0 meets the same error, or is gone, and says so
        os._exit(1)


def resolve(o: Train, known: tuple[str, ...]) -> TrainConfig:
    """The whole configuration of a run from its flags.

    Raises:
        ConfigError: two sources at once, or an override on a resumed run.
    """
    from hagane.train import TrainConfig, find_recipe, read_config

    if o.resume:
        if o.again or o.size or o.steps or o.seed is not None or o.init_vision:
            raise ConfigError(
                "a resumed run keeps its configuration", next_step="drop the other options, or start anew"
            )
        kept = load_toml(o.config, TrainConfig) if o.config else read_config(o.run)
        return with_ranks(kept, o.nproc)
    if o.config and o.again:
        raise ConfigError("say one of --config and --again")
    if o.again:
        config = read_config(o.again)
    elif o.config:
        config = load_toml(o.config, TrainConfig)
    else:
        config = find_recipe(o.recipe)(o.datasets or known)
    step = replace(config.step, steps=o.steps) if o.steps else config.step
    config = replace(
        config,
        step=step,
        size=o.size or config.size,
        seed=config.seed if o.seed is None else o.seed,
        init_vision=str(o.init_vision) if o.init_vision else config.init_vision,
    )
    return with_ranks(config, o.nproc)


def with_ranks(config: TrainConfig, nproc: int) -> TrainConfig:
    """The configuration on so many processes; 0 keeps its own."""
    return replace(config, layout=replace(config.layout, dp_replicate=nproc)) if nproc else config
