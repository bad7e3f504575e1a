"""The page of a data set: one file that a person opens, with nothing in it that asks a network.

It shows what `hagane.catalog.look` gathered and what the doctor found. Pictures and curves are those of a few
episodes; the page says how many. All distributions and counts are over everything that was read.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hagane.catalog.look import Curve, Look, Sheet, Shown, histogram
from hagane.catalog.record import DatasetRecord
from hagane.catalog.symptoms import SEVERITIES, Diagnosis
from hagane.console.bars import bars, counts_of
from hagane.console.doctor_table import how_much, lag_cells, where
from hagane.console.draw import duration, number
from hagane.console.embed import safe_json
from hagane.console.page import short
from hagane.console.report import render_page, write_page
from hagane.intake.lerobot_sketch import Sketch
from hagane.seal import SignedContract
from hagane.terms import APPLIED, Channel, Embodiment

STYLES = ("uplot.min.css", "report.css", "dataset.css")
SCRIPTS = ("uplot.min.js", "paint_table.js", "digests.js", "dataset.js")
PICTURE_BYTES = 2_200_000
"""All pictures together, at most; fewer are shown where they would be more."""
_SHOWN_COLUMNS, _SHOWN_FINDINGS, _SHOWN_COPIES = 8, 200, 50
_BINS = 40


@dataclass(frozen=True)
class ColumnRow:
    """One column of a channel in the table of channels."""

    label: str
    """What the log calls it, or its number."""
    unit: str
    """Its unit."""
    numbers: tuple[str, ...]
    """mean, std, min, q01, q50, q99, max."""
    picture: Markup
    """Its histogram."""


@dataclass(frozen=True)
class AgeRow:
    """How old a channel is when the model sees it."""

    name: str
    """Channel."""
    known: str
    """Share of control steps that know it at all."""
    numbers: tuple[str, ...]
    """Median, 99% quantile and maximum age."""
    picture: Markup
    """Its histogram."""
    scale: tuple[str, str]
    """Ends of the histogram."""


def write_dataset_page(
    out: Path,
    found: Diagnosis,
    look: Look,
    embodiment: Embodiment,
    record: DatasetRecord | None = None,
    signed: SignedContract | None = None,
    copies: Sequence[tuple[str, str, str]] | None = None,
) -> None:
    """Write the page of a data set, or of a log that is not yet one (then without record and contract).

    Args:
        out: the file.
        found: what the doctor says.
        look: what was gathered beside it.
        embodiment: the machine.
        record: the data set's record.
        signed: its contract.
        copies: near-duplicates as (episode, other episode, how alike, in words); None where nobody looked for them.

    Raises:
        StoreError: the page cannot be written.
    """
    context = _context(found, look, embodiment, record, signed, copies)
    html = render_page("dataset.html.j2", STYLES, SCRIPTS, context)
    write_page(out, html.encode("utf-8", errors="replace"))


def _context(
    found: Diagnosis,
    look: Look,
    embodiment: Embodiment,
    record: DatasetRecord | None,
    signed: SignedContract | None,
    copies: Sequence[tuple[str, str, str]] | None,
) -> Mapping[str, Any]:
    shown, sheets = look.shown(), _affordable(look.sheets())
    severities = Counter(s.severity for s in found.symptoms)
    lengths = np.array(found.lengths_s)
    return {
        "title": record.name if record else Path(found.source).name,
        "found": found,
        "machine": embodiment,
        "record": record,
        "signed": signed,
        "today": date.today().isoformat(),
        "severities": [(s, severities[s]) for s in SEVERITIES],
        "symptoms": [(s, where(s), how_much(s)) for s in found.symptoms],
        "findings": found.findings[:_SHOWN_FINDINGS],
        "findings_left": len(found.findings) - _SHOWN_FINDINGS + found.findings_left_out,
        "sheets": _by_episode(sheets),
        "cameras": [c.name for c in look.cameras],
        "lengths": bars(*counts_of(lengths, _BINS), label="episodes by length") if len(lengths) else Markup(""),
        "lengths_words": tuple(duration(float(f(lengths))) for f in (np.min, np.median, np.max))
        if len(lengths)
        else (),
        "outcomes": found.outcomes,
        "copies": None if copies is None else copies[:_SHOWN_COPIES],
        "copies_left": len(copies or ()) - _SHOWN_COPIES,
        "shown": shown,
        "charts": [[c for curve in s.curves for c in _charts(curve, embodiment)] for s in shown],
        "channels": _channels(found, look, embodiment),
        "lags": [lag_cells(lag, embodiment) for lag in found.lags],
        "ages": _ages(look, embodiment),
        "data": safe_json({"shown": [_curves_json(s, embodiment) for s in shown]}),
        "number": number,
        "duration": duration,
        "short": short,
    }


def _affordable(sheets: list[Sheet]) -> list[Sheet]:
    """Sheets with every second picture left out until all fit."""
    every = 1
    while True:
        kept = [Sheet(s.episode, s.camera, s.pictures[::every]) for s in sheets]
        if sum(len(p) for s in kept for _, p in s.pictures) <= PICTURE_BYTES or every > 8:
            return kept
        every *= 2


def _by_episode(sheets: list[Sheet]) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Episode to rows of (camera, pictures as (time, data URI))."""
    rows: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {}
    for s in sheets:
        pictures = [(f"{t:.1f} s", _data_uri(p)) for t, p in s.pictures]
        rows.setdefault(s.episode, []).append((s.camera, pictures))
    return rows


def _data_uri(jpeg: bytes) -> str:
    """A picture within the page; "" for none."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""


def _label(channel: Channel, column: int) -> str:
    """A column's name for people: the log's own word where it has one."""
    if len(channel.source) == channel.columns and "{" not in channel.source[column]:
        return channel.source[column]
    return channel.name if channel.columns == 1 else f"{channel.name}.{column}"


def _unit(channel: Channel, column: int) -> str:
    unit = channel.unit[column % len(channel.unit)] if channel.unit else "1"
    return "" if unit == "1" else unit


def _charts(curve: Curve, embodiment: Embodiment) -> list[dict[str, Any]]:
    """Charts of one stream: columns of one unit share a chart."""
    channel = embodiment.channel(curve.stream.removesuffix(APPLIED))
    units = list(dict.fromkeys(_unit(channel, k) for k in curve.columns))
    return [
        {
            "title": curve.stream,
            "unit": unit,
            "kind": "act" if channel in embodiment.act else "observe",
            "left_out": curve.left_out if unit == units[-1] else 0,
            "gaps": len(curve.gaps_s),
        }
        for unit in units
    ]


def _curves_json(shown: Shown, embodiment: Embodiment) -> dict[str, Any]:
    charts = []
    for curve in shown.curves:
        channel = embodiment.channel(curve.stream.removesuffix(APPLIED))
        for unit in dict.fromkeys(_unit(channel, k) for k in curve.columns):
            picked = [k for k in curve.columns if _unit(channel, k) == unit]
            charts.append(
                {
                    "unit": unit,
                    "labels": [_label(channel, k) for k in picked],
                    "t": curve.times_s.round(4).tolist(),
                    "v": [_short_floats(curve.values[:, k]) for k in picked],
                    "gaps": [list(g) for g in curve.gaps_s],
                }
            )
    return {"seconds": shown.seconds, "charts": charts}


def _short_floats(values: Any) -> list[float | None]:
    return [None if v != v else float(f"{v:.5g}") for v in values.tolist()]


def _channels(found: Diagnosis, look: Look, embodiment: Embodiment) -> list[dict[str, Any]]:
    values = look.values()
    out = []
    for facts in found.channels:
        sketch = values.get(facts.name)
        rows: list[ColumnRow] = []
        if sketch is not None:
            channel = embodiment.channel(facts.name)
            rows = [_row(channel, sketch, k) for k in range(min(channel.columns, _SHOWN_COLUMNS))]
        left = max(len(sketch.count) - _SHOWN_COLUMNS, 0) if sketch is not None else 0
        out.append({"facts": facts, "rows": rows, "left": left})
    return out


def _row(channel: Channel, sketch: Sketch, k: int) -> ColumnRow:
    quantiles = [float(sketch.quantile(q)[k]) for q in (0.01, 0.5, 0.99)]
    some = sketch.count[k] > 0
    numbers = [sketch.mean[k], sketch.std[k], sketch.low[k], *quantiles, sketch.high[k]] if some else [np.nan] * 7
    edges, shares = histogram(sketch, k, _BINS)
    picture = bars(edges, shares, label=f"distribution of {_label(channel, k)}")
    return ColumnRow(_label(channel, k), _unit(channel, k), tuple(_words(float(v)) for v in numbers), picture)


def _words(value: float) -> str:
    """Four significant digits: channels live on scales from 1e-6 to 1e6."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.4g}".replace("-", "−")


def _ages(look: Look, embodiment: Embodiment) -> list[AgeRow]:
    rows = []
    for name, (sketch, known) in look.ages().items():
        edges, shares = histogram(sketch, 0, _BINS, (0.0, 1 / embodiment.rate_hz))
        some = sketch.count[0] > 0
        ages = [float(sketch.quantile(q)[0]) for q in (0.5, 0.99)] + [float(sketch.high[0])] if some else []
        scale = (_age(float(edges[0])), _age(float(edges[-1]))) if some else ("", "")
        picture = bars(edges, shares, label=f"age of {name}")
        rows.append(AgeRow(name, f"{100 * known:.1f}%", tuple(_age(a) for a in ages), picture, scale))
    return rows


def _age(seconds: float) -> str:
    return f"{number(1e3 * max(seconds, 0), digits=0)} ms" if seconds < 1 else f"{number(seconds)} s"
