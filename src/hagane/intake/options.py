"""Options of an import, and the small shape that every log format has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hagane.terms import Embodiment, Episode


@dataclass(frozen=True)
class Options:
    """What a person may have to tell about a log. Every format takes what concerns it."""

    task: str = ""
    """Instruction in words, where the log has none."""
    dbc: Path | None = None
    """CAN definitions; None takes the only .dbc file beside the log."""
    bus: int | None = None
    """CAN bus number; None takes, for each message, the lowest bus that carries it."""
    gap_s: float = 0.0
    """A silence longer than this starts a new episode; 0 takes the format's own rule."""
    time_column: str = ""
    """Header of a CSV's time column; "" finds it."""
    episode_column: str = ""
    """Header of the CSV column that tells episodes apart; "" finds it."""
    day_first: bool | None = None
    """Order of 01/02/2026 in a CSV; None decides from the values, and refuses when they do not tell."""
    encoding: str = "utf-8"
    """Text encoding of a CSV."""
    keep_whole: bool = False
    """True takes what lies whole before the cut of a truncated log (drives of a CAN log, rows of a CSV, messages of
    an MCAP) and a finding says so; False refuses such a log."""


class LogFormat(Protocol):
    """A module of this room that has these two functions is a log format: a new one only adds a file."""

    def sniff(self, path: Path) -> bool:
        """True when the content (not only the name) of the file or folder is of this format; never raises."""
        ...

    def read(self, path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
        """The episodes in `path`, not yet checked.

        Raises:
            LogError: the bytes cannot be read; raised before the first episode is given.
        """
        ...
