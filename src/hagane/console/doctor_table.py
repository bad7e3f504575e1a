"""What the doctor found, as tables on a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hagane.catalog.lag import Lag
from hagane.catalog.symptoms import SEVERITIES, Diagnosis, Symptom
from hagane.console.draw import duration, number
from hagane.terms import Embodiment

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"serious": "bold red", "warning": "yellow", "note": "dim"}
JSON_VERSION = 1
"""Raised when a key of the JSON changes its meaning or goes; new keys may come without."""


def headline(d: Diagnosis) -> str:
    """Who, how much, and the sum, in one line."""
    counts = Counter(s.severity for s in d.symptoms)
    plural = {"serious": "serious", "warning": "warnings", "note": "notes"}
    told = ", ".join(f"{n} {plural[s] if n > 1 else s}" for s in SEVERITIES if (n := counts[s])) or "nothing found"
    episodes = "1 episode" if d.episodes == 1 else f"{d.episodes} episodes"
    return f"{d.source} ({d.embodiment}): {episodes}, {duration(d.seconds)}: {told}"


def symptom_table(d: Diagnosis) -> Table:
    """One row a symptom, the worst first: what, where, how much, what to do."""
    from rich.text import Text

    table = _table("", "what", "where", "how much", "what to do")
    for s in d.symptoms:
        cells = (Text(s.severity, STYLES[s.severity]), Text(s.kind), Text(where(s)), Text(how_much(s)))
        table.add_row(*cells, Text(s.advice))
    return table


def lag_table(d: Diagnosis, embodiment: Embodiment) -> Table:
    """One row an action column: what follows it, how late, and how sure that is."""
    from rich.text import Text

    table = _table("command", "followed by", "lag", "r", "sure")
    for lag in d.lags:
        table.add_row(*(Text(cell) for cell in lag_cells(lag, embodiment)))
    return table


def lag_cells(lag: Lag, embodiment: Embodiment) -> tuple[str, str, str, str, str]:
    """Command, response, lag, correlation and confidence in words."""
    command = _column(embodiment, lag.action, lag.column)
    if lag.lag_s is None:
        return command, "not identifiable: " + lag.why, "", "", ""
    how = "" if lag.follows == "level" else ", its rate"
    how += "" if lag.correlation > 0 else ", against it"
    sure = f"{100 * lag.confidence:.0f}% of parts agree"
    response = _column(embodiment, lag.response, lag.response_column)
    return command, response + how, seconds(lag.lag_s), f"{lag.correlation:.2f}", sure


def _column(embodiment: Embodiment, name: str, column: int) -> str:
    """A column as the embodiment numbers it, and as the log calls it where that says more."""
    channel = embodiment.channel(name)
    label = name if channel.columns == 1 else f"{name}.{column}"
    source = channel.source[column] if len(channel.source) == channel.columns else ""
    return f"{label} ({source})" if source and source != label else label


def where(s: Symptom) -> str:
    """Channel, and the first place: episode and second."""
    whole = "the set" if not s.episode else "episodes" if s.kind == "length" else "all channels"
    channel = whole if s.channel == "*" else s.channel
    if not s.episode:
        return channel
    more = f" and {s.episodes - 1} more" if s.episodes > 1 else ""
    at = f" at {s.time_ns / 1e9:.3f} s" if s.time_ns else ""
    return f"{channel}, {s.episode}{at}{more}"


def how_much(s: Symptom) -> str:
    """Details, with the share of samples where it says something."""
    share = f" ({100 * s.share:.2g}% of the channel)" if s.count and 0 < s.share < 1 else ""
    return s.detail + share


def seconds(value: float) -> str:
    """A lag in ms or s."""
    return f"{number(1e3 * value, digits=0)} ms" if abs(value) < 1 else f"{number(value, digits=2)} s"


def json_of(d: Diagnosis) -> dict[str, Any]:
    """The whole diagnosis with stable keys: times in ns and s, shares 0 to 1."""
    plain = asdict(d)
    for symptom, s in zip(plain["symptoms"], d.symptoms, strict=True):
        symptom["advice"] = s.advice
    return {"version": JSON_VERSION, "serious": d.serious, **plain}


def finding_lines(d: Diagnosis) -> Iterator[str]:
    """Every single finding, in the order of episodes."""
    for f in d.findings:
        yield f"  finding: {f}"
    if d.findings_left_out:
        yield f"  and {d.findings_left_out} findings more"


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in ("lag", "r") else "left")
    return table
