"""`hagane catalog sample` and `hagane catalog diff`: looking at data sets on a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hagane.cli.keeper import kept_view
from hagane.cli.table import print_table

if TYPE_CHECKING:
    from hagane.catalog.diff import Change, Difference
    from hagane.catalog.drift import Drift
    from hagane.catalog.sample import Sample
    from hagane.terms import Channel, Embodiment, Reading

_SHOWN_COLUMNS = 8
_SHOWN_PLACES = 3
_MOST_ROWS = 20


@dataclass(frozen=True)
class SampleOptions:
    """Show random control steps of a data set (needs the purpose "view")."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set."""
    n: int = 5
    """How many."""
    seed: int = 0
    """The same seed draws the same steps."""
    out: Path | None = None
    """Write them to a file as well: .parquet, or .jsonl without pictures."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class DiffOptions:
    """Compare two data sets (needs the purpose "view" for both). Exit code 0 when machine and episodes are the same,
    1 when not."""

    first: Annotated[str, tyro.conf.Positional]
    """Name of a data set."""
    second: Annotated[str, tyro.conf.Positional]
    """Name of another."""
    drift: float = 0.1
    """Show columns whose distributions are at least this far apart (0 to 1)."""
    json: bool = False
    """One JSON object with everything instead of tables."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


def sample(argv: list[str]) -> int:
    """`hagane catalog sample NAME`.

    Raises:
        HaganeError: no such data set, refused, damaged, or a file that cannot be written.
    """
    from hagane.catalog.sample import sample_steps, write_samples
    from hagane.cli.site import open_catalog

    o = tyro.cli(SampleOptions, args=argv, prog="hagane catalog sample")
    if (code := kept_view(["catalog", "sample", *argv], o.home, (o.name,))) is not None:
        return code
    catalog = open_catalog(o.home)
    samples, machine = sample_steps(catalog, o.name, o.n, o.seed), catalog.embodiment(o.name)
    if o.out is not None:
        write_samples(samples, machine, o.out)
    for s in samples:
        _print_sample(s, machine)
    if o.out is not None:
        print(f"{o.out}: {len(samples)} samples")
    return 0


def _print_sample(s: Sample, machine: Embodiment) -> None:
    print(f"{s.episode}, step {s.step} at {s.time_ns / 1e9:.3f} s: {s.task or 'no instruction'}")
    rows: list[tuple[str, ...]] = [("channel", "unit", "value", "age s")]
    for channel in machine.channels():
        reading = s.readings.get(channel.name) or s.commands.get(channel.name)
        if reading is not None:
            units = ", ".join(dict.fromkeys(channel.unit or ("1",)))
            rows.append((channel.name, units, _value(channel, reading), f"{float(reading.age_s[0]):.3f}"))
    print_table(rows, "  ")
    print()


def _value(channel: Channel, reading: Reading) -> str:
    if not reading.valid.any():
        return "not valid"
    if channel.kind == "image":
        return f"picture of {channel.shape[0]}x{channel.shape[1]}"
    if channel.kind == "set":
        there = reading.values[0][reading.valid[0]]
        shown = "  ".join(_numbers(row) for row in there[:_SHOWN_PLACES])
        return f"{len(there)} of {channel.places}: {shown}" + (" ..." if len(there) > _SHOWN_PLACES else "")
    return _numbers(reading.values[0])


def _numbers(row: Any) -> str:
    shown = " ".join(f"{v:.4g}" for v in row[:_SHOWN_COLUMNS])
    return f"[{shown}{' ...' if len(row) > _SHOWN_COLUMNS else ''}]"


def diff(argv: list[str]) -> int:
    """`hagane catalog diff A B`.

    Raises:
        HaganeError: no such data set, refused, or damaged.
    """
    from hagane.catalog.diff import compare
    from hagane.cli.site import open_catalog

    o = tyro.cli(DiffOptions, args=argv, prog="hagane catalog diff")
    if (code := kept_view(["catalog", "diff", *argv], o.home, (o.first, o.second))) is not None:
        return code
    found = compare(open_catalog(o.home), o.first, o.second)
    if o.json:
        print(json.dumps(_without_nan(asdict(found)), indent=1, ensure_ascii=False))
    else:
        _print_difference(found, o.drift)
    return 0 if found.same else 1


def _print_difference(d: Difference, least: float) -> None:
    if d.same:
        print(f"{d.first} and {d.second} hold the same machine and the same episodes")
    _print_changes("", d.facts, d)
    _print_changes("machine", d.machine, d)
    if d.same:
        return
    s = d.shared
    print(f"shared: {s.content} episodes in every bit, {s.sources} logs")
    if s.sources:
        print(f"        from them {d.first} has {s.first_from_them} episodes, {d.second} has {s.second_from_them}")
    for title, counts in (("task", d.tasks), ("finding", d.findings)):
        differ = [(word or "none", str(a), str(b)) for word, a, b in counts if a != b]
        if differ:
            print()
            print_table([(title, d.first, d.second), *differ[:_MOST_ROWS]])
            if len(differ) > _MOST_ROWS:
                print(f"... {len(differ) - _MOST_ROWS} more")
    _print_drift(d, least)


def _print_changes(title: str, changes: tuple[Change, ...], d: Difference) -> None:
    if changes:
        print_table([(title, d.first, d.second), *((c.what, _short(c.first), _short(c.second)) for c in changes)])
        print()
    elif title:
        print("machine: the same\n")


def _short(words: str) -> str:
    return words if len(words) <= 40 else words[:37] + "..."


def _print_drift(d: Difference, least: float) -> None:
    far = sorted((x for x in d.drift if isnan(x.distance) or x.distance >= least), key=_by_distance)
    print()
    if not d.drift:
        print("statistics: no column in common")
        return
    if not far:
        print(f"statistics: none of {len(d.drift)} columns differs by {least:g} or more")
        return
    rows: list[tuple[str, ...]] = [("column", "distance", "mean", "mean", "std", "std", "perhaps")]
    for x in far:
        numbers = (f"{v:.4g}" for v in (*x.means, *x.stds))
        rows.append((x.column, "-" if isnan(x.distance) else f"{x.distance:.3f}", *numbers, x.hint))
    print_table(rows)
    print(f"{len(far)} of {len(d.drift)} columns; distance is Kolmogorov-Smirnov's, 0 the same to 1 nothing in common")


def _by_distance(x: Drift) -> float:
    return -2.0 if isnan(x.distance) else -x.distance


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and isnan(value) else value
