"""Options of an import, and the small shape that every log format has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from hagane.terms import ConfigError, Embodiment, Episode


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
    """A silence longer than this starts a new episode; 0 takes the format's own rule: 10 s for CAN, 10 minutes for
    historians and OPC UA, never for MCAP and ROS. The other formats hold one episode a file, record or group."""
    time_column: str = ""
    """Column with the time stamps of a CSV or Parquet file, or feature with those of an HDF5 file or RLDS set;
    "" finds it."""
    episode_column: str = ""
    """Column of a CSV or Parquet file that tells episodes apart; "" finds it."""
    day_first: bool | None = None
    """Order of 01/02/2026 in a CSV; None decides from the values, and refuses when they do not tell."""
    encoding: str = "utf-8"
    """Text encoding of a CSV; where UTF-8 fails, UTF-16 and CP932 (Shift-JIS) are found if there is no doubt."""
    timezone: str = ""
    """IANA name ("Asia/Tokyo") of stamps that carry no zone (CSV, Parquet, ASC, BLF, MDF); "" takes them as UTC. The
    span that is asked of an OPC UA server has its zone in its file or here, and is refused without one."""
    messages: Path | None = None
    """Folder (or file) of ROS message definitions (.msg) that a bag does not carry itself."""
    split: str = ""
    """Part of a set that is taken ("train": a TFDS or LeRobot split, a robomimic mask); "" takes all."""
    keep_whole: bool = False
    """True takes what lies whole before the cut of a truncated log (drives of a CAN log, rows of a table, messages
    of an MCAP or a ROS bag, records of an RLDS set, what can be read of an MDF), and a finding says so; False refuses
    such a log. HDF5, Parquet and LeRobot sets cannot be read without their end."""


_KEYS = {
    "bus": "bus",
    "gap-s": "gap_s",
    "time": "time_column",
    "episode": "episode_column",
    "day-first": "day_first",
    "encoding": "encoding",
    "timezone": "timezone",
    "messages": "messages",
    "split": "split",
}


def parse_options(pairs: Sequence[str], where: str = "--read") -> dict[str, Any]:
    """Fields of `Options` from key=value words, as people type them.

    Raises:
        ConfigError: an unknown key, or a value that is none.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in _KEYS or not equals:
            raise ConfigError(f"cannot use {pair!r}", where=where, next_step=f"keys are: {', '.join(_KEYS)}")
        try:
            found[_KEYS[key]] = _PARSERS.get(key, str)(value)
        except (ValueError, KeyError, OSError):
            # a folder of zones ("Europe") is an OSError
            raise ConfigError(f"{key} cannot be {value!r}", where=where, next_step=_ADVICE.get(key, "")) from None
    return found


def _bus(text: str) -> int:
    if not 0 <= (bus := int(text)) <= 255:
        raise ValueError(text)
    return bus


def _gap_s(text: str) -> float:
    if not 0 < (gap_s := float(text)) <= 1e9:  # NaN is not
        raise ValueError(text)
    return gap_s


_PARSERS: dict[str, Callable[[str], Any]] = {
    "bus": _bus,
    "gap-s": _gap_s,
    "day-first": {"yes": True, "no": False}.__getitem__,
    "timezone": lambda name: ZoneInfo(name).key,
    "messages": Path,
}
_ADVICE = {
    "day-first": "say yes or no",
    "bus": "give its number, 0 to 255",
    "gap-s": "give seconds, more than 0",
    "timezone": 'give an IANA name: "Asia/Tokyo"',
}


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
