"""Read a run folder. Parts may be missing or damaged: then the page says so, and shows the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from hagane.console.story import Story
from hagane.terms import ConfigError, RunRecord, Scorecard

T = TypeVar("T")


@dataclass(frozen=True)
class ReplayEpisode:
    """One recorded episode of a replay."""

    case: str = ""
    """Task or world variant."""
    who: str = ""
    """The controller, as in the score card's rows."""
    seed: int | None = None
    """Seed of the world."""
    score: float | None = None
    """Final score."""
    frames: tuple[dict[str, Any], ...] = ()
    """`Drawing.values`, one a control step; what never changes stands in the first under "static"."""


@dataclass(frozen=True)
class Replay:
    """`replays/<embodiment>.json`."""

    embodiment: str
    """The machine."""
    kind: str
    """The painter: `Drawing.kind`."""
    rate_hz: float = 10.0
    """Frames a second of world time."""
    episodes: tuple[ReplayEpisode, ...] = ()
    """Recorded episodes."""


@dataclass(frozen=True)
class RunFolder:
    """Everything a report can be made of. Empty parts are named in `notes`."""

    path: Path
    """The folder, runs/<id>."""
    config: str = ""
    """config.toml as text."""
    record: RunRecord | None = None
    """record.json."""
    metrics: tuple[Mapping[str, Any], ...] = ()
    """Lines of metrics.jsonl."""
    cards: Mapping[str, Scorecard] = field(default_factory=dict)
    """Score cards by embodiment."""
    replays: Mapping[str, Replay] = field(default_factory=dict)
    """Replays by embodiment."""
    story: Story = field(default_factory=Story)
    """story.json."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Part of the page to what is missing or damaged there, in words."""


def read_run(path: Path) -> RunFolder:
    """Read what there is of a run.

    Raises:
        ConfigError: there is no such folder, or nothing in it belongs to a run.
    """
    if not path.is_dir():
        raise ConfigError("no such run folder", where=str(path), next_step="give a folder like runs/<id>")
    notes: dict[str, str] = {}
    known = ("config.toml", "record.json", "metrics.jsonl", "scorecards", "replays", "story.json")
    if not any((path / name).exists() for name in known):
        raise ConfigError(
            "nothing in this folder belongs to a run", where=str(path), next_step=f"expected some of {', '.join(known)}"
        )
    return RunFolder(
        path=path,
        config=_config(path / "config.toml", notes),
        record=_one(path / "record.json", RunRecord, "record", notes),
        metrics=_metrics(path / "metrics.jsonl", notes),
        cards=_many(path / "scorecards", Scorecard, "scores", notes),
        replays=_many(path / "replays", Replay, "replays", notes),
        story=_story(path / "story.json", notes),
        notes=notes,
    )


def _config(path: Path, notes: dict[str, str]) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        notes["config"] = "config.toml is missing or not text: this run cannot be repeated from its folder"
        return ""


def _load(path: Path, kind: type[T]) -> T:
    """JSON into a dataclass; raises ValueError with a reason in words. NaN is read, as Python writes it."""
    try:
        return msgspec.convert(json.loads(path.read_text("utf-8")), kind, strict=False)
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"{path.name} cannot be read: {e}") from None


def _one(path: Path, kind: type[T], part: str, notes: dict[str, str]) -> T | None:
    if not path.exists():
        notes[part] = f"{path.name} is missing"
        return None
    try:
        return _load(path, kind)
    except ValueError as e:
        notes[part] = str(e)
        return None


def _many(folder: Path, kind: type[T], part: str, notes: dict[str, str]) -> dict[str, T]:
    found: dict[str, T] = {}
    bad: list[str] = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found[path.stem] = _load(path, kind)
        except ValueError as e:
            bad.append(str(e))
    if bad:
        notes[part] = "; ".join(bad)
    elif not found:
        notes[part] = f"no file in {folder.name}/"
    return found


def _metrics(path: Path, notes: dict[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Lines with a step; a last line cut by a kill is left out, lines of steps done again replace the older."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        notes["curves"] = "metrics.jsonl is missing"
        return ()
    by_step: dict[float, Mapping[str, Any]] = {}
    bad = 0
    for line in lines:
        try:
            row = json.loads(line)
            step = float(row["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            bad += 1
            continue
        by_step[step] = {**by_step.get(step, {}), **row}
    if bad:
        notes["curves"] = f"{bad} of {len(lines)} lines of metrics.jsonl cannot be read and are left out"
    elif not by_step:
        notes["curves"] = "metrics.jsonl is empty"
    return tuple(by_step[s] for s in sorted(by_step))


def _story(path: Path, notes: dict[str, str]) -> Story:
    """Each part on its own, so that one damaged part does not cost the others."""
    if not path.exists():
        notes["story"] = "story.json is missing: this run was not made by the demo"
        return Story()
    try:
        whole = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        notes["story"] = f"story.json cannot be read: {e}"
        return Story()
    hints = get_type_hints(Story)
    parts: dict[str, Any] = {}
    for f in dataclasses.fields(Story):
        if isinstance(whole, dict) and whole.get(f.name) is not None:
            try:
                parts[f.name] = msgspec.convert(whole[f.name], hints[f.name], strict=False)
            except (ValueError, RecursionError) as e:
                notes[f.name] = f"part {f.name} of story.json cannot be read: {e}"
    return Story(**parts)
