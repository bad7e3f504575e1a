"""`hagane catalog`: what data this site holds, under whose terms, and whether every byte is still right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hagane.terms import ConfigError, HaganeError

if TYPE_CHECKING:
    from hagane.catalog import Catalog

_USAGE = "usage: hagane catalog ls | show NAME | verify [NAME]   (hagane catalog ls --help for one of them)"
_SHOWN_COLUMNS = 8


@dataclass(frozen=True)
class Ls:
    """List the data sets of this site. Shows nothing of the data itself."""

    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class Show:
    """Show one data set: contract, outcomes, findings, and statistics (needs the purpose "view")."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set."""
    html: Path | None = None
    """Write a page instead: pictures, curves, distributions, ages, and what the doctor finds; one file, no network."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class Verify:
    """Check every stored byte against its digest, and every contract against its owner's key."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the data set; empty means all."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


def main(argv: list[str]) -> int:
    """Run `hagane catalog`.

    Raises:
        HaganeError: no such data set, refused by its contract, or damaged.
    """
    verbs: dict[str, Callable[[list[str]], int]] = {"ls": ls, "show": show, "verify": verify}
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if argv[0] not in verbs:
        raise ConfigError(f"there is no `hagane catalog {argv[0]}`", next_step=_USAGE)
    return verbs[argv[0]](argv[1:])


def ls(argv: list[str]) -> int:
    """`hagane catalog ls`."""
    catalog = _open(tyro.cli(Ls, args=argv, prog="hagane catalog ls").home)
    rows: list[tuple[str, ...]] = [
        ("name", "embodiment", "owner", "episodes", "steps", "hours", "findings", "digest", "contract")
    ]
    for r in catalog.ls():
        counts = (str(r.episodes), str(r.steps), f"{r.seconds / 3600:.2f}", str(r.findings))
        rows.append((r.name, r.embodiment, r.owner, *counts, r.digest[:12], r.contract_digest[:12] or "not verified"))
    _print_table(rows)
    for name in catalog.unfinished():
        print(f"{name}: adding it was interrupted; run the same intake again to go on")
    for name, problem in catalog.problems.items():
        print(f"{name}: cannot be used: {problem}")
    return 1 if catalog.problems else 0


def show(argv: list[str]) -> int:
    """`hagane catalog show NAME`."""
    o = tyro.cli(Show, args=argv, prog="hagane catalog show")
    catalog = _open(o.home)
    if o.html is not None:
        return _page(catalog, o.name, o.html)
    record, embodiment = catalog.record(o.name), catalog.embodiment(o.name)
    signed = catalog.contract(o.name)
    terms = signed.contract
    print(f"{record.name}: {record.episodes} episodes, {record.steps} steps at {embodiment.rate_hz:g} Hz")
    print(f"  machine   {embodiment.name} ({embodiment.domain}) of {record.owner}")
    print(f"  digest    {record.digest}")
    print(f"  contract  {signed.digest}, until {terms.until}, withdrawal {terms.withdrawal}")
    print(f"            for {', '.join(terms.purposes)} at {', '.join(terms.sites)} in {', '.join(terms.residency)}")
    outcomes = catalog.index.outcome_counts(o.name)
    print("  outcomes  " + ", ".join(f"{n} {kind or 'unknown'}" for kind, n in outcomes.items()))
    findings = catalog.index.finding_counts(o.name)
    print("  findings  " + (", ".join(f"{n} {kind}" for kind, n in findings.items()) or "none"))
    print()
    rows: list[tuple[str, ...]] = [("channel", "unit", "samples", "mean", "std", "min", "q01", "q99", "max")]
    stats = catalog.stats(o.name, "view")
    for channel in embodiment.channels():
        if channel.name not in stats:
            continue
        s, units = stats[channel.name], channel.unit or ("1",)
        for k in range(min(channel.columns, _SHOWN_COLUMNS)):
            values = (s.mean[k], s.std[k], s.low[k], s.q01[k], s.q99[k], s.high[k])
            label = channel.name if channel.columns == 1 else f"{channel.name}.{k}"
            rows.append((label, units[k % len(units)], str(s.count), *(f"{v:.4g}" for v in values)))
        if channel.columns > _SHOWN_COLUMNS:
            rows.append((f"{channel.name}: {channel.columns - _SHOWN_COLUMNS} columns more", *[""] * 8))
    _print_table(rows)
    return 0


def _page(catalog: Catalog, name: str, out: Path) -> int:
    from hagane.catalog.doctor import examine_set
    from hagane.catalog.look import Look
    from hagane.console.dataset_page import write_dataset_page
    from hagane.console.doctor_table import headline

    look = Look(catalog.embodiment(name))
    found = examine_set(catalog, name, [look])
    write_dataset_page(out, found, look, catalog.embodiment(name), catalog.record(name), catalog.contract(name))
    print(f"{headline(found)}\n  page: {out}")
    return 0


def verify(argv: list[str]) -> int:
    """`hagane catalog verify [NAME]`: checks all that it is asked to, then says what is wrong."""
    o = tyro.cli(Verify, args=argv, prog="hagane catalog verify")
    catalog = _open(o.home)
    names = [o.name] if o.name else sorted({r.name for r in catalog.ls()} | set(catalog.problems))
    bad = 0
    for name in names:
        try:
            print(f"{name}: {catalog.verify(name)} files and the contract are right")
        except HaganeError as e:
            bad += 1
            print(f"{name}: {e}")
    return 1 if bad else 0


def _open(home: Path) -> Catalog:
    from hagane.cli.site import open_catalog

    return open_catalog(home)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
