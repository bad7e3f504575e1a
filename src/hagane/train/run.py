"""A run's folder: config.toml, record.json, metrics.jsonl, checkpoints/."""

from __future__ import annotations

import dataclasses
import errno
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hagane
from hagane.terms import RunRecord, TrainingError, code_digest, digest_value, dump_toml, load_toml
from hagane.terms.files import write_whole
from hagane.train.config import TrainConfig


def refuse_run(folder: Path) -> None:
    """A new run wants a folder of its own.

    Raises:
        TrainingError: the folder already holds a run.
    """
    if (folder / "config.toml").exists():
        raise TrainingError(
            "there is a run here already", where=str(folder), next_step="choose another --run, or add --resume"
        )


def begin_run(folder: Path, config: TrainConfig) -> None:
    """Make the folder and write the resolved configuration.

    Raises:
        TrainingError: the folder already holds a run, or cannot be made.
    """
    refuse_run(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise disk_error(e, folder) from None
    write_file(folder / "config.toml", dump_toml(config).encode())


def read_config(folder: Path) -> TrainConfig:
    """The resolved configuration of a run."""
    return load_toml(folder / "config.toml", TrainConfig)


def environment() -> dict[str, str]:
    """Versions of what a step's numbers may depend on."""
    import numpy
    import torch

    return {
        "hagane": hagane.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
    }


def facts_of_rank(config: TrainConfig, device: str) -> dict[str, str]:
    """What must be the same on every rank before the first step: code, versions, device kind, each setting."""
    settings = {f"setting {name}": value for name, value in _flat("", dataclasses.asdict(config)).items()}
    return {"code": code_digest()[:12], "device": device, **environment(), **settings}


def _flat(name: str, value: object) -> dict[str, str]:
    """Settings by dotted name, as text."""
    if not isinstance(value, Mapping):
        return {name: str(value)}
    return {k: v for key, inner in value.items() for k, v in _flat(f"{name}.{key}".lstrip("."), inner).items()}


def make_record(folder: Path, config: TrainConfig, lineage: Mapping[str, tuple[str, str, str]]) -> RunRecord:
    """The run's record; `lineage` holds (digest, contract digest, owner) by data set."""
    return RunRecord(
        id=folder.name,
        config_digest=digest_value(dataclasses.asdict(config)),
        code_digest=code_digest(),
        datasets={name: d for name, (d, _, _) in lineage.items()},
        contracts={name: c for name, (_, c, _) in lineage.items()},
        owners={name: o for name, (_, _, o) in lineage.items()},
        seed=config.seed,
        steps=0,
        environment=environment(),
    )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write record.json, whole or not at all."""
    write_file(folder / "record.json", json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True).encode())


def write_file(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: the file is the old one or the new one, never half of it.

    Raises:
        TrainingError: the disk is full or cannot be written.
    """
    try:
        write_whole(path, [data])
    except OSError as e:
        raise disk_error(e, path) from None


def disk_error(e: OSError, path: Path) -> TrainingError:
    """One message for a disk that cannot be written."""
    full = e.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free space" if full else "make the folder writable or choose another --run"
    return TrainingError(
        "the disk is full" if full else f"cannot be written: {e.strerror}",
        where=str(path),
        next_step=f"{remedy}, then go on with `hagane train --resume`; earlier checkpoints are whole",
    )


class MetricsFile:
    """metrics.jsonl: one JSON object a step; a resumed run goes on from its checkpoint's step."""

    def __init__(self, path: Path, from_step: int) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line["step"] <= from_step] if path.exists() else []
        write_file(path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            TrainingError: the disk is full or cannot be written.
        """
        try:
            with self.path.open("ab") as f:
                f.write(json.dumps(line).encode() + b"\n")
        except OSError as e:
            raise disk_error(e, self.path) from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file; a torn last line (a killed run) is left out."""
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)
