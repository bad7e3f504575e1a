"""`hagane train`: one model on the catalog's data sets, by one process, by several here, or as ranks of torchrun."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from hagane.cli.house import asks_for_jail
from hagane.cli.inside import tell
from hagane.cli.keeper import kept
from hagane.cli.noted import note_run
from hagane.cli.opens import Opens, in_jail
from hagane.cli.sealed_run import is_sealed_run, read_sealed_run
from hagane.cli.site import open_catalog
from hagane.cli.wants import ask_wants, named_wants
from hagane.terms import ConfigError, HaganeError, RunRecord, TrainingError, digest_value, load_toml

if TYPE_CHECKING:
    from hagane.catalog import Catalog
    from hagane.engine import Seat
    from hagane.train import CatalogData, TrainConfig
    from hagane.train.changes import Change
    from hagane.train.skips import Skip


@dataclass(frozen=True)
class Train:
    """Train one set of weights on data sets of the catalog, each read under its contract.

    Say what to train by one of --recipe, --config or --again. A run's folder holds its resolved configuration,
    metrics and checkpoints; a killed run goes on with --resume, with the losses it would have had. SIGTERM or SIGUSR1
    ask it to save and stop, with exit code 0. The same command runs under torchrun, which a restart goes on by itself.
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
    """Go on from the newest whole checkpoint of --run, or from its start if it saved none; with --config, on the other
    data sets or weights that it names: the change is written down with its step. With --nproc, on other ranks."""
    size: str = ""
    """Overrides the size: 1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    steps: int = 0
    """Overrides the number of optimiser steps."""
    seed: int | None = None
    """Overrides the seed."""
    init_vision: Path | None = None
    """Safetensors file whose patch embedding starts the image path."""
    nproc: int = 0
    """Ranks on this machine; the configuration's layout is fitted to them. 0 keeps the layout's own number."""


@dataclass(frozen=True)
class Start:
    """How a run starts: as its flags say, or, started again by torchrun, from what the last attempt left."""

    config: TrainConfig
    """Resolved, on a layout of the ranks that are there."""
    resume: bool
    """Go on with what is in the run's folder."""
    change: bool
    """Write down the configuration's change of data first."""


def main(argv: list[str]) -> int:
    """Run `hagane train`.

    Raises:
        HaganeError: refused data, a configuration that cannot run, a disk that is full, ranks that differ or died.
    """
    o = tyro.cli(Train, args=argv, prog="hagane train")
    if (code := kept(["train", *argv], partial(opens_of, o, argv))) is not None:
        return code
    # without a name server gloo warns at every start; it needs none
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from hagane.engine import run_ranks, seat_from_env

    seat = seat_from_env()
    start = start_of(o, seat)
    try:
        if seat is None and start.config.layout.ranks > 1:
            run_ranks(be_rank, (o, start), start.config.layout.ranks)
        else:
            be_rank(o, start)
    except KeyboardInterrupt:
        say(f"stopped where it was: go on with `hagane train --resume --run {o.run}`")
        raise
    return 0


def opens_of(o: Train, argv: list[str]) -> Opens | None:
    """What this run opens and makes; None where no contract asks for a jail. A recipe is a program, and asked apart."""
    reads = tuple(p for p in (o.config, o.init_vision, Path(o.recipe.partition(":")[0])) if p and p.exists())
    begun = next((p for p in (o.again, o.run if o.resume else None) if p is not None and is_sealed_run(p)), None)
    if begun is not None and o.config is None:
        run = read_sealed_run(begun)
        names = tuple(s.dataset for s in run.sources)
        return Opens(o.home, run.purpose, names, runs=(begun,), reads=reads, makes=(o.run,))
    if begun is None and not asks_for_jail(o.home):
        return None
    recipe = None if o.config or o.again or o.resume or ":" not in o.recipe else Path(o.recipe.partition(":")[0])
    own = "" if o.config or o.again or o.resume else named_wants(o.recipe, o.datasets or known_sets(o), o.steps)
    wants = json.loads(own or ask_wants(argv, known_sets(o), recipe, o.home))
    more = tuple(Path(p) for p in wants["reads"])
    runs = (begun,) if begun is not None else ()
    return Opens(
        o.home,
        wants["purpose"],
        tuple(wants["datasets"]),
        runs=runs,
        reads=reads + more,
        makes=(o.run,),
        steps=wants["steps"],
    )


def print_wants(known: str, argv: list[str]) -> None:
    """Print which data sets a run wants, of the known ones with commas between, and what for, as JSON; nothing of them
    is opened."""
    o = tyro.cli(Train, args=argv, prog="hagane train")
    try:
        config = resolve(o, tuple(known.split(",")) if known else ())
    except HaganeError as e:
        print(e, file=sys.stderr)
        raise SystemExit(1) from None
    reads = [config.split] if config.split else []
    print(
        json.dumps(
            {"datasets": list(config.datasets), "purpose": config.purpose, "reads": reads, "steps": config.step.steps}
        )
    )


def known_sets(o: Train) -> tuple[str, ...]:
    """Names of all data sets here, where the flags name none."""
    if o.resume or o.config or o.again or o.datasets:
        return ()
    return tuple(r.name for r in open_catalog(o.home, noted=False).ls())


def be_rank(o: Train, start: Start) -> None:
    """A rank's whole work: of the only one, of one of torchrun's, or of one that `run_ranks` started."""
    from hagane.console import TrainPanel
    from hagane.engine import crew_of, device_for, seat_from_env
    from hagane.train import open_data, train
    from hagane.train.run import facts_of_rank

    config = start.config
    device = device_for(config.device)
    with crew_of(seat_from_env(), device, facts_of_rank(config, device.type), config.watch_s, end_rank) as crew:
        catalog = open_catalog(o.home, noted=crew.first)
        catalog.gate = replace(catalog.gate, run=o.run.name)
        with crew.first_alone("data"):
            crew.watch.at(0, "opening data", patient=True)
            data = open_data(catalog, config)
            if start.change and crew.first:
                note_change(o, config, data, catalog)
            if crew.first:
                note_start(o, start, data, catalog)
        crew.watch.at(0, "making the model")
        shown = (
            TrainPanel.for_stream(config.step.steps, title=o.run.name)
            if crew.first and not in_jail()
            else nullcontext()
        )
        with shown as panel:
            report = panel.update if panel is not None else partial(tell, "metrics")
            record = train(
                o.run,
                config,
                data,
                resume=start.resume,
                report=report,
                note=say,
                left_out=partial(note_skip, o, catalog),
                saved=partial(note_saved, catalog),
                crew=crew,
            )
        if crew.first:
            tell_end(o, config, record)


def end_rank(error: TrainingError | None) -> None:
    """End this process because the ranks hang; whoever started it here reads the message itself."""
    from hagane.engine import EXIT_STUCK

    if error is not None and parent_process() is None:
        say(str(error))
    sys.stdout.flush()
    # the main thread is inside a collective and will not come back
    os._exit(EXIT_STUCK)


def note_change(o: Train, config: TrainConfig, data: CatalogData, catalog: Catalog) -> None:
    """Write a change of data down, in the run's folder and in the ledger."""
    from hagane.train import change_mixture

    def note(change: Change) -> None:
        if catalog.ledger is not None:
            catalog.ledger.append("mixture", {"run": o.run.name, **asdict(change)})

    change = change_mixture(o.run, config, data.embodiments, data.train.cursor, note)
    print(f"from step {change.step} on: {', '.join(change.datasets)}")


def note_start(o: Train, start: Start, data: CatalogData, catalog: Catalog) -> None:
    """Note in the ledger with which code, data, contracts and shards the run begins or goes on."""
    from hagane.catalog.contents import files_of
    from hagane.train.run import make_record

    before = record_of(o.run) if start.resume else None
    lists = {n: [(f.path, f.sha256) for f in files_of(catalog, n)] for n in data.lineage}
    shards = {n: (digest_value(files), len(files)) for n, files in lists.items()}
    begun_from = {o.run.name: before.checkpoint_id} if before is not None and before.checkpoint_id else {}
    note_run(o.home, make_record(o.run, start.config, data.lineage), shards, begun_from)


def record_of(run: Path) -> RunRecord | None:
    """What a run wrote down of itself; None before it did."""
    path = run / "record.json"
    try:
        return RunRecord(**json.loads(path.read_text("utf-8"))) if path.exists() else None
    except (OSError, ValueError, TypeError) as e:
        raise TrainingError(f"the run's record cannot be read: {e}", where=str(path)) from None


def note_skip(o: Train, catalog: Catalog, skip: Skip) -> None:
    """Note in the ledger which batches a run left out."""
    if catalog.ledger is not None:
        catalog.ledger.append("skip", {"run": o.run.name, **asdict(skip)})


def note_saved(catalog: Catalog, record: RunRecord) -> None:
    """Note a whole checkpoint in the ledger; in a jail tell the keeper, which seals it now and notes it itself."""
    tell("checkpoint", {"step": record.steps})
    if catalog.ledger is not None:
        body = {"run": record.id, "checkpoint": record.checkpoint_id, "step": record.steps}
        catalog.ledger.append("checkpoint", {**body, "datasets": dict(record.datasets)})


def tell_end(o: Train, config: TrainConfig, record: RunRecord) -> None:
    """Say where the last checkpoint is."""
    print(f"checkpoint {record.checkpoint_id[:16]} of run {record.id} at step {record.steps}, in {o.run}/checkpoints")
    if record.steps < config.step.steps:
        print(f"stopped as asked, before step {config.step.steps}: go on with `hagane train --resume --run {o.run}`")


def say(text: str) -> None:
    """A message beside the panel."""
    print(f"hagane train: {text}", file=sys.stderr, flush=True)


def start_of(o: Train, seat: Seat | None) -> Start:
    """How the run starts.

    A restart by torchrun has the flags of the first start. It goes on with the run that those made, and only with it:
    a folder of another configuration is refused as at the first start.

    Raises:
        ConfigError: flags that contradict each other or the ranks that run; a layout that does not fit them.
    """
    from hagane.train import read_config
    from hagane.train.changes import same_run

    if seat is not None and o.nproc and o.nproc != seat.ranks:
        raise ConfigError(
            f"--nproc {o.nproc}, but torchrun started {seat.ranks} ranks", next_step="drop --nproc under torchrun"
        )
    config = resolve(o, known_sets(o))
    again = bool(seat and seat.attempt and (o.run / "config.toml").exists()) and same_run(read_config(o.run), config)
    fitted = on_ranks(config, seat.ranks if seat else o.nproc or config.layout.ranks)
    if fitted.layout != config.layout and (seat is None or seat.rank == 0):
        say(f"layout ({config.layout}) fitted to {fitted.layout.ranks} ranks: ({fitted.layout})")
    return Start(fitted, o.resume or again, bool(o.resume and o.config) and not again)


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
        return load_toml(o.config, TrainConfig) if o.config else read_config(o.run)
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


def on_ranks(config: TrainConfig, ranks: int) -> TrainConfig:
    """The configuration on so many ranks.

    Raises:
        ConfigError: its layout cannot be fitted to them; the message names the nearest that can.
    """
    from hagane.engine import fit_layout
    from hagane.model.sizes import size_named

    return replace(config, layout=fit_layout(config.layout, ranks, size_named(config.size)))
