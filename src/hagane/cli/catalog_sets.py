"""`hagane catalog duplicates`, `split` and `export`: what to train on, what to hold out, what to hand on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hagane.cli.keeper import kept_view
from hagane.cli.table import print_table, size_words
from hagane.terms import ConfigError

Names = Annotated[tuple[str, ...], tyro.conf.Positional]
_MOST_ROWS = 50


@dataclass(frozen=True)
class DuplicatesOptions:
    """Find episodes that are copies of each other, exactly or nearly, within and across data sets. Exit code 1 when
    there are any."""

    names: Names
    """Data sets, oldest first."""
    purpose: str = "view"
    """What the data is read for; the contracts must grant it."""
    json: bool = False
    """All pairs as JSON."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class SplitOptions:
    """Decide which episodes are held out, by whole episodes or whole sites; copies stay on one side."""

    names: Names
    """Data sets, oldest first: append new ones at the end, and nothing moves."""
    out: Path
    """The TOML file to write; it must not exist."""
    by: Literal["episode", "site"] = "episode"
    """Hold out episodes, or all episodes of some sites."""
    share: float = 0.05
    """Part of the episodes to hold out, about."""
    seed: int = 0
    """Another seed, another split."""
    purpose: str = "view"
    """What the data is read for; the contracts must grant it."""
    copies: bool = True
    """Look for copies; --no-copies reads no data and may put a copy on the other side."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a data set to a folder for use elsewhere (needs the purpose "export")."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set."""
    to: Literal["lerobot", "parquet"]
    """lerobot: v3.0 on the control grid; parquet: native-rate streams, a file an episode."""
    out: Path
    """The folder; it must not exist."""
    layout: Literal["wide", "long"] = "wide"
    """Of parquet: a row a time stamp, or a row a value."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


def duplicates(argv: list[str]) -> int:
    """`hagane catalog duplicates NAME ...`.

    Raises:
        HaganeError: no such data set, refused, or damaged.
    """
    from hagane.catalog.duplicates import catalog_signatures, copy_groups, find_copies
    from hagane.cli.site import open_catalog

    o = tyro.cli(DuplicatesOptions, args=argv, prog="hagane catalog duplicates")
    _named_once(o.names)
    if (code := kept_view(["catalog", "duplicates", *argv], o.home, o.names, purpose=o.purpose)) is not None:
        return code
    signatures = catalog_signatures(open_catalog(o.home), o.names, o.purpose)
    copies = find_copies(signatures)
    if o.json:
        print(json.dumps([asdict(c) for c in copies], indent=1))
        return int(bool(copies))
    if copies:
        rows = [("episode", "its copy", "how", "difference", "begins s", "overlap")]
        for c in copies[:_MOST_ROWS]:
            numbers = (f"{c.difference:.3f}", f"{c.lag_s:+.3f}", f"{100 * c.overlap:.0f}%")
            rows.append((" ".join(c.first), " ".join(c.second), c.kind, *numbers))
        print_table(rows)
        if len(copies) > _MOST_ROWS:
            print(f"... {len(copies) - _MOST_ROWS} more; --json has all")
    kinds = [sum(c.kind == kind for c in copies) for kind in ("same", "near")]
    many = sum(len(g) - 1 for g in copy_groups(copies))
    print(
        f"{len(signatures)} episodes: {kinds[0]} pairs the same, {kinds[1]} nearly; {many} episodes could be left out"
    )
    return int(bool(copies))


def split(argv: list[str]) -> int:
    """`hagane catalog split NAME ... --out FILE`.

    Raises:
        HaganeError: no such data set, refused, damaged, a side that would be empty, or a file that exists.
    """
    from hagane.catalog.duplicates import catalog_signatures, find_copies
    from hagane.catalog.split import make_split, save_split
    from hagane.cli.site import open_catalog

    o = tyro.cli(SplitOptions, args=argv, prog="hagane catalog split")
    if (code := kept_view(["catalog", "split", *argv], o.home, o.names, (o.out,))) is not None:
        return code
    _named_once(o.names)
    catalog = open_catalog(o.home)
    for name in o.names:
        catalog.ask(name, o.purpose)  # without copies, too: the file names the episodes
    copies = find_copies(catalog_signatures(catalog, o.names, o.purpose)) if o.copies else []
    made = make_split(catalog, o.names, o.by, o.share, o.seed, copies)
    save_split(made, o.out)
    rows = [("data set", "site", "episodes", "held")]
    rows += [(s.name, s.site or "not told", str(s.episodes), str(len(s.held))) for s in made.sets]
    print_table(rows)
    every, held = sum(s.episodes for s in made.sets), len(made.held)
    print(f"{o.out}: {held} of {every} episodes held out ({100 * held / every:.1f}%), by {o.by}, seed {o.seed}")
    if made.moved:
        print(f"{made.moved} episodes changed sides to be with their copies")
    return 0


def export(argv: list[str]) -> int:
    """`hagane catalog export NAME --to FORMAT --out FOLDER`.

    Raises:
        HaganeError: no such data set, refused, damaged, or a folder that exists; nothing is left there.
    """
    from hagane.catalog.export import export_set
    from hagane.cli.site import open_catalog

    o = tyro.cli(ExportOptions, args=argv, prog="hagane catalog export")
    if (code := kept_view(["catalog", "export", *argv], o.home, (o.name,), (o.out,), "export")) is not None:
        return code
    catalog = open_catalog(o.home)
    done = export_set(catalog, o.name, o.to, o.out, layout=o.layout)
    signed = catalog.contract(o.name)
    print(f"{done.folder}: {done.files} files, {size_words(done.size)}; manifest {done.digest[:16]}, in the ledger")
    print(f"  the contract of {signed.contract.owner} goes with it, until {signed.contract.until}: contract.toml")
    return 0


def _named_once(names: tuple[str, ...]) -> None:
    if not names:
        raise ConfigError("no data set named", next_step="hagane catalog ls lists them")
    if len(set(names)) < len(names):
        raise ConfigError("a data set is named twice", next_step="name each data set once")
