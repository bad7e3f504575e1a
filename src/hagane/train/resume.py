"""Where a run goes on: its newest whole checkpoint, an older one if that is damaged, its start if it saved none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from hagane.engine import Engine, load_engine
from hagane.model import Manifest
from hagane.model.weights import complete, manifest_of, step_of, verify_files
from hagane.terms import CheckpointError, CorruptError, TrainingError


def checkpoints_of(folder: Path, note: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Whole checkpoints of a run, newest first; empty when the run ended before it saved one.

    Args:
        folder: of the run.
        note: hears of each checkpoint that is passed over.

    Raises:
        TrainingError: the run saved some, and none is left.
    """
    saved, whole = saved_step(folder), []
    for path in reversed(complete(folder / "checkpoints")):
        try:
            # names, the manifest's own digest, and what the model is built from; other bytes are compared when loaded
            verify_files(path, manifest_of(path), ["model.toml"])
            whole.append(path)
        except (CheckpointError, CorruptError) as e:
            note(f"passed over {path.name}: {e.where}: {e.what}")
    if not whole and saved:
        raise TrainingError(
            f"the run had saved step {saved}, and no whole checkpoint of it is left",
            where=str(folder / "checkpoints"),
            next_step="put the folder back from a copy, or start a new run; nothing is trained over it",
        )
    if whole and step_of(whole[0]) < saved:
        note(f"step {saved}, the newest that was saved, is not there as a whole: going on from {whole[0].name}")
    return whole


def saved_step(folder: Path) -> int:
    """The step of the newest checkpoint that a run's record names; 0 for none."""
    try:
        return int(json.loads((folder / "record.json").read_text("utf-8"))["steps"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        raise TrainingError(
            "is no record of a run", where=str(folder / "record.json"), next_step="restore the file from a copy"
        ) from None


def load_newest(checkpoints: Sequence[Path], engine: Engine, note: Callable[[str], None]) -> Manifest:
    """Load the first of the checkpoints whose bytes are those that were saved. All ranks call it.

    Raises:
        CorruptError: every one of them is damaged.
        CheckpointError: made for another model.
    """
    for path, older in zip(checkpoints, [*checkpoints[1:], None], strict=True):
        try:
            return load_engine(path, engine)
        except CorruptError as e:
            if older is None:
                raise
            note(f"passed over {path.name}: {e.where}: {e.what}; going on from {older.name}")
    raise AssertionError("no checkpoint was given")
