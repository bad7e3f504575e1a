"""Going on with a run: from its newest checkpoint, on the same data, or after a change of data that was written down.

Runs of months add and withdraw data. A change is a line of runs/<id>/changes.jsonl: from step N on the run draws from
other data sets or with other weights, and nothing else differs. Without that line, changed data is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hagane.model import Manifest, ModelConfig, latest
from hagane.model.weights import load_config, read_manifest
from hagane.terms import ConfigError, Embodiment, RunRecord, TrainingError, dump_toml
from hagane.train.config import TrainConfig
from hagane.train.run import read_config, read_lines, write_file

MIXTURE_FIELDS = ("datasets", "weights", "temperature")
"""Fields of `TrainConfig` that a change may touch."""
CARRIED_OUT = ("loader_workers", "layout", "compute", "spike", "watch_s")
"""Fields that say how a run is carried out, not what it computes: free at every start."""


@dataclass(frozen=True)
class Change:
    """A recorded change of data or mixture."""

    step: int
    """The first step that draws from the new mixture."""
    datasets: tuple[str, ...]
    """Data sets from then on."""
    added: tuple[str, ...]
    """Data sets that came."""
    withdrawn: tuple[str, ...]
    """Data sets that went."""
    data: str
    """Hash of the data from then on."""
    mixture: str
    """Hash of the mixture from then on."""


def checkpoint_of(folder: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        TrainingError: there is none.
    """
    found = latest(folder / "checkpoints")
    if found is None:
        raise TrainingError(
            "no complete checkpoint to resume from", where=str(folder), next_step="start without --resume"
        )
    return found


def shape_for(checkpoint: Path, embodiments: Sequence[Embodiment]) -> ModelConfig:
    """The shape of the checkpoint's weights, if it has a place for every machine in the data.

    Raises:
        TrainingError: a machine that the weights do not know, or know differently.
    """
    shape = load_config(checkpoint)
    known = {e.name: e for e in shape.embodiments}
    for machine in embodiments:
        if known.get(machine.name) != machine:
            what = "is described differently now" if machine.name in known else "is not known to these weights"
            raise TrainingError(
                f"machine {machine.name!r} {what}",
                where=str(checkpoint),
                next_step="start a new run for new machines: a change of data keeps the machines",
            )
    return shape


def without_mixture(config: TrainConfig) -> dict[str, object]:
    """What of a configuration never changes in the life of a run."""
    return {k: v for k, v in asdict(config).items() if k not in (*MIXTURE_FIELDS, *CARRIED_OUT)}


def same_run(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two configurations compute the same, on whatever ranks."""
    free = {name: getattr(one, name) for name in CARRIED_OUT}
    return one == replace(other, **free)


def change_mixture(
    folder: Path,
    config: TrainConfig,
    embodiments: Sequence[Embodiment],
    cursor: Mapping[str, str],
    note: Callable[[Change], None] = lambda change: None,
) -> Change:
    """Write down that a run goes on with another mixture from its newest checkpoint on.

    Killed on the way, the run does not go on before this is called again (see `check_cursor`).

    Args:
        folder: of the run.
        config: the new configuration.
        embodiments: machines in the new data.
        cursor: hashes of the new data and mixture, as the loader has them.
        note: called once nothing can be refused any more, before a file is written: no change is without it.

    Raises:
        TrainingError: the configurations differ in more than data and mixture, there is no checkpoint, or its
            weights do not know a machine.
    """
    before = read_config(folder)
    old, new = without_mixture(before), without_mixture(config)
    if odd := sorted(k for k in new if new[k] != old[k]):
        raise TrainingError(
            f"a run that goes on may change its data and mixture only, not {', '.join(odd)}",
            where=str(folder),
            next_step="start a new run, or keep these settings",
        )
    checkpoint = checkpoint_of(folder)
    shape_for(checkpoint, embodiments)
    step = read_manifest(checkpoint).step
    change = Change(
        step,
        config.datasets,
        tuple(sorted(set(config.datasets) - set(before.datasets))),
        tuple(sorted(set(before.datasets) - set(config.datasets))),
        cursor["data"],
        cursor["mixture"],
    )
    note(change)
    # a change that no step was made with yet is replaced
    lines = [asdict(c) for c in changes_of(folder) if c.step < step] + [asdict(change)]
    write_file(folder / "changes.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    write_file(folder / "config.toml", dump_toml(config).encode())
    return change


def changes_of(folder: Path) -> list[Change]:
    """Recorded changes of a run, in order.

    Raises:
        TrainingError: the file holds something else.
    """
    path = folder / "changes.jsonl"
    if not path.exists():
        return []
    try:
        return [_change(**line) for line in read_lines(path)]
    except (ValueError, TypeError):
        raise TrainingError(
            "a line is no recorded change of data", where=str(path), next_step="restore the file from a copy"
        ) from None


def _change(step: int, datasets: list[str], added: list[str], withdrawn: list[str], data: str, mixture: str) -> Change:
    return Change(step, tuple(datasets), tuple(added), tuple(withdrawn), data, mixture)


def check_cursor(folder: Path, manifest: Manifest, cursor: Mapping[str, str]) -> None:
    """Refuse to go on with other data, another mixture or other settings than the checkpoint's.

    Raises:
        TrainingError: they differ, and no change at this step says so; or one says something else.
    """
    odd = [what for what, digest in cursor.items() if manifest.cursor.get(what) != digest]
    changed = {c.step: {"data": c.data, "mixture": c.mixture} for c in changes_of(folder)}.get(manifest.step, {})
    if any(cursor[what] != digest for what, digest in changed.items()):
        raise TrainingError(
            f"the change of data recorded at step {manifest.step} is not what the configuration says",
            where=str(folder),
            next_step="it was interrupted, or config.toml was edited: repeat `--resume --config NEW.toml`",
        )
    if all(changed.get(what) == cursor[what] for what in odd):
        return
    raise TrainingError(
        f"the {' and the '.join(odd)} changed since this run's checkpoint at step {manifest.step}",
        where=str(folder),
        next_step="resume with the same data sets, mixture and settings; a change of data is recorded by "
        "`--resume --config NEW.toml`",
    )


def joined_record(manifest: Manifest, now: RunRecord) -> RunRecord:
    """The record of a run that goes on from a checkpoint: data that was read once stays in it.

    Raises:
        ConfigError: a data set of one name had other content before.
    """
    before = manifest.record
    if odd := sorted(n for n, d in now.datasets.items() if before.datasets.get(n, d) != d):
        raise ConfigError(f"data sets hold other content than this run read before: {', '.join(odd)}")
    return replace(
        now,
        datasets={**before.datasets, **now.datasets},
        contracts={**before.contracts, **now.contracts},
        owners={**before.owners, **now.owners},
        steps=manifest.step,
        checkpoint_id=manifest.id,
    )
