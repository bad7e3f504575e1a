"""`read_logs`: find the format of a log by its content, read it, check it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any, cast

import hagane.intake
from hagane.intake.checks import check_episode
from hagane.intake.files import refuse_outside, refuse_unreadable
from hagane.intake.options import LogFormat, Options
from hagane.terms import Embodiment, Episode, LogError

_NOT_LOGS = {".dbc", ".toml", ".sig", ".pem", ".pub", ".md", ".txt~"}


@cache
def formats() -> dict[str, LogFormat]:
    """Formats by name: every module of this room with `sniff` and `read`, and entry points "hagane.intake"."""
    found: dict[str, LogFormat] = {}
    for info in pkgutil.iter_modules(hagane.intake.__path__):
        module: Any = importlib.import_module(f"hagane.intake.{info.name}")
        if hasattr(module, "sniff") and hasattr(module, "read"):
            found[info.name] = cast(LogFormat, module)
    for point in entry_points(group="hagane.intake"):
        found[point.name] = point.load()
    return found


def format_of(path: Path) -> str:
    """Name of the format of one file or folder; "" when none knows it.

    Raises:
        LogError: two formats claim it, or it may not be looked at.
    """
    try:
        names = [name for name, form in formats().items() if form.sniff(path)]
    except OSError as e:
        raise LogError(f"cannot be read: {e.strerror}", where=str(path), next_step="check its rights") from None
    if len(names) > 1:
        raise LogError(f"looks like {' and like '.join(names)}", where=str(path), next_step="give a single file")
    return names[0] if names else ""


def read_logs(path: Path, embodiment: Embodiment, *, task: str = "", **options: Any) -> Iterator[Episode]:
    """Checked episodes of a log: a file, a folder of one format, or a folder of log files.

    One log is open at a time; whatever can be refused of the first is refused before its first episode is given.

    Args:
        path: the log.
        embodiment: whose channels are read.
        task: instruction in words, where the log has none.
        options: fields of `Options`.

    Raises:
        LogError: unknown format, damaged or truncated bytes, sources that the log lacks, two episodes of one id.
        ConfigError: an embodiment whose sources do not fit its shapes.
    """
    chosen = Options(task=task, **options)
    first, *rest = [(log, name, embodiment, chosen) for log, name in find_logs(path)]
    opened = read_checked(*first)
    return _unique(chain(opened, chain.from_iterable(read_checked(*log) for log in rest)), path)


def read_checked(log: Path, name: str, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """Checked episodes of one log of a known format.

    Raises:
        LogError: as `read_logs`.
    """
    episodes = formats()[name].read(log, embodiment, options)
    return (check_episode(e, embodiment) for e in episodes)


def find_logs(path: Path) -> list[tuple[Path, str]]:
    """Logs at a path, with their formats, in the order of names.

    Raises:
        LogError: there is nothing, nothing that any format knows, or a link that leads out of the folder.
    """
    if not path.exists():
        raise LogError("no such file or folder", where=str(path), next_step="check the path")
    if kind := _known(path, ""):
        return [(path, kind)]
    found = []
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or child.suffix.lower() in _NOT_LOGS:
            continue
        refuse_outside(child, path)
        if kind := _known(child, "take it out; "):
            found.append((child, kind))
    if not found:
        raise LogError("the folder holds no log", where=str(path), next_step=f"the formats are: {', '.join(formats())}")
    return found


def _known(path: Path, else_do: str) -> str:
    """Format of a file or folder; "" for a folder that is none itself.

    Raises:
        LogError: an empty file, or one that no format knows.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise LogError("the file is empty", where=str(path), next_step=f"{else_do}copy it again from the machine")
    kind = format_of(path)
    if not kind and not path.is_dir():
        if path.is_file():
            refuse_unreadable(path)
        next_step = f"{else_do}the formats are: {', '.join(formats())}"
        raise LogError("no known log format", where=str(path), next_step=next_step)
    return kind


def _unique(episodes: Iterable[Episode], path: Path) -> Iterator[Episode]:
    seen: set[str] = set()
    for episode in episodes:
        refuse_twice(episode.id, seen, path)
        yield episode


def refuse_twice(episode_id: str, seen: set[str], path: Path) -> None:
    """Note an episode's id.

    Raises:
        LogError: another one has it.
    """
    if episode_id in seen:
        raise LogError(f"two episodes are called {episode_id!r}", where=str(path), next_step="rename one of the files")
    seen.add(episode_id)
