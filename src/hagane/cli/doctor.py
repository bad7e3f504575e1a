"""`hagane doctor`: what is wrong with a data set, or with a log before it comes in.

Exit code 0: nothing serious. 1: something serious was found, or the data could not be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro

from hagane.catalog import Catalog
from hagane.catalog.doctor import examine_log, examine_set
from hagane.catalog.look import Look
from hagane.catalog.symptoms import Diagnosis
from hagane.cli.keeper import kept_view
from hagane.cli.site import open_catalog
from hagane.intake import read_logs
from hagane.intake.options import parse_options
from hagane.terms import ConfigError, Embodiment, Episode, StoreError, load_toml


@dataclass(frozen=True)
class DoctorOptions:
    """Examine a data set of this site's catalog (purpose "view"), or a log given with --embodiment before it comes in.
    Exit code 1 when something serious was found."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Name of a data set; or, with --embodiment, the path of a log."""
    embodiment: Path | None = None
    """The machine (TOML) that the log is read for, as `hagane intake` reads it; nothing is stored."""
    json: Path | None = None
    """Write the whole diagnosis there: symptoms, lags, channels, every single finding."""
    html: Path | None = None
    """Write a page there: pictures, curves, distributions, ages, and the tables; one file, no network."""
    each: bool = False
    """Print every single finding, not only their sums."""
    dbc: Path | None = None
    """CAN definitions of a log; empty takes the only .dbc beside it."""
    read: tuple[str, ...] = ()
    """How a log is to be read where it does not say, as key=value (see `hagane intake --help`)."""
    keep_whole: bool = False
    """Examine what is whole of a truncated log; without it such a log is refused."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


def main(argv: list[str]) -> int:
    """Run `hagane doctor`.

    Raises:
        HaganeError: no such data set or log, refused by its contract, or damaged.
    """
    o = tyro.cli(DoctorOptions, args=argv, prog="hagane doctor")
    pages = tuple(p for p in (o.json, o.html) if p is not None)
    if o.embodiment is None and (code := kept_view(["doctor", *argv], o.home, (o.dataset,), pages)) is not None:
        return code
    catalog = _catalog(o) if o.embodiment is None else None
    embodiment = load_toml(o.embodiment, Embodiment) if o.embodiment is not None else None
    embodiment = embodiment or cast("Catalog", catalog).embodiment(o.dataset)
    looks = [Look(embodiment)] if o.html is not None else []
    found = _log(o, embodiment, looks) if catalog is None else examine_set(catalog, o.dataset, looks)
    _write(o, found, looks, embodiment, catalog)
    _print(found, embodiment, o.each)
    return 1 if found.serious else 0


def _log(o: DoctorOptions, embodiment: Embodiment, looks: list[Look]) -> Diagnosis:
    path, options = Path(o.dataset), parse_options(o.read)

    def episodes() -> Iterator[Episode]:
        # lazily: a folder whose reading is refused may still be examined by its own metadata
        yield from read_logs(path, embodiment, dbc=o.dbc, keep_whole=o.keep_whole, **options)

    return examine_log(path, embodiment, episodes(), looks)


def _catalog(o: DoctorOptions) -> Catalog:
    if o.dbc is not None or o.read or o.keep_whole:
        raise ConfigError("--dbc, --read and --keep-whole are for a log", next_step="give --embodiment, too")
    if not (o.home / "site.toml").exists() and Path(o.dataset).exists():
        step = "say with --embodiment which machine it is of"
        raise ConfigError("this is a log, not a data set", where=o.dataset, next_step=step)
    return open_catalog(o.home)


def _write(
    o: DoctorOptions, found: Diagnosis, looks: list[Look], embodiment: Embodiment, catalog: Catalog | None = None
) -> None:
    from hagane.console.dataset_page import write_dataset_page
    from hagane.console.doctor_table import json_of
    from hagane.terms.files import write_whole

    if o.json is not None:
        text = json.dumps(json_of(found), indent=1, ensure_ascii=False)
        try:
            write_whole(o.json, [text.encode("utf-8", "replace"), b"\n"])
        except OSError as e:
            what = f"the diagnosis cannot be written: {e.strerror}"
            raise StoreError(what, where=str(o.json), next_step="free space, or give another --json") from None
    if o.html is not None:
        record = catalog.record(o.dataset) if catalog is not None else None
        signed = catalog.contract(o.dataset) if catalog is not None else None
        write_dataset_page(o.html, found, looks[0], embodiment, record, signed)


def _print(found: Diagnosis, embodiment: Embodiment, each: bool) -> None:
    from rich.console import Console

    from hagane.console.doctor_table import finding_lines, headline, lag_table, symptom_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(headline(found), markup=False, highlight=False, soft_wrap=True)
    if each:
        for line in finding_lines(found):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.symptoms:
        console.print(symptom_table(found))
    if found.lags:
        console.print(lag_table(found, embodiment))
