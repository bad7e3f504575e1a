"""`hagane catalog`: what data this site holds, under whose terms, and whether every byte is still right.

This file lists, shows and verifies; `catalog_look` samples and compares, `catalog_sets` finds copies, splits, exports.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hagane.cli.table import print_table, size_words
from hagane.terms import ConfigError, HaganeError, StoreError
from hagane.terms.embodiment import DOMAINS

if TYPE_CHECKING:
    from hagane.catalog import Catalog, DatasetRecord
    from hagane.terms import ChannelStats, Embodiment

_VERBS = {
    "ls": ("", "list the data sets"),
    "show": ("NAME", "one data set: terms, outcomes, findings, statistics"),
    "sample": ("NAME", "random control steps"),
    "diff": ("A B", "what differs between two data sets"),
    "duplicates": ("NAME ...", "episodes that are copies of each other"),
    "split": ("NAME ...", "what to train on and what to hold out"),
    "export": ("NAME", "as LeRobot v3 or Parquet, with Croissant"),
    "verify": ("[NAME]", "every stored byte against its digest"),
}
_USAGE = "usage: hagane catalog VERB ...   (hagane catalog VERB --help for one of them)"
_SHOWN_COLUMNS = 8


@dataclass(frozen=True)
class Ls:
    """List the data sets of this site. Shows nothing of the data itself."""

    owner: str = ""
    """Only those of this member."""
    domain: str = ""
    """Only those of machines of this domain: robot, vehicle, plant or game."""
    json: bool = False
    """One JSON object instead of a table."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class Show:
    """Show one data set: contract, outcomes, findings, and statistics (needs the purpose "view")."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set."""
    episodes: bool = False
    """List the episodes too, with how smooth each one is: spectral arc length and log dimensionless jerk."""
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
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE + "\n")
        print("\n".join(f"  {verb:<10} {args:<9} {line}" for verb, (args, line) in _VERBS.items()))
        return 0
    if argv[0] not in _VERBS:
        raise ConfigError(f"there is no `hagane catalog {argv[0]}`", next_step=f"{_USAGE}; verbs: {' | '.join(_VERBS)}")
    return _verbs()[argv[0]](argv[1:])


def _verbs() -> dict[str, Callable[[list[str]], int]]:
    from hagane.cli.catalog_look import diff, sample
    from hagane.cli.catalog_sets import duplicates, export, split

    named = (ls, show, sample, diff, duplicates, split, export, verify)
    return {f.__name__: f for f in named}


def ls(argv: list[str]) -> int:
    """`hagane catalog ls`."""
    o = tyro.cli(Ls, args=argv, prog="hagane catalog ls")
    if o.domain and o.domain not in DOMAINS:
        raise ConfigError(f"no domain {o.domain!r}", where="--domain", next_step=f"use one of {', '.join(DOMAINS)}")
    catalog = _open(o.home)
    problems = {name: str(problem) for name, problem in catalog.problems.items()}
    listed = []
    for r in catalog.ls():
        try:
            entry = _entry(catalog, r)
        except StoreError as e:  # damaged: told below the table
            problems[r.name] = str(e)
            continue
        if o.owner in ("", entry["owner"]) and o.domain in ("", entry["domain"]):
            listed.append(entry)
    keys = ("episodes", "steps", "hours", "findings", "bytes", "cache_bytes")
    total = {k: sum(entry[k] for entry in listed) for k in keys}
    if o.json:
        unfinished = list(catalog.unfinished())
        told = {"datasets": listed, "total": total, "unfinished": unfinished, "problems": problems}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 1 if problems else 0
    _print_listed(listed, total)
    for name in catalog.unfinished():
        print(f"{name}: adding it was interrupted; run the same intake again to go on")
    for name, problem in problems.items():
        print(f"{name}: cannot be used: {problem}")
    return 1 if problems else 0


def _entry(catalog: Catalog, r: DatasetRecord) -> dict[str, Any]:
    from hagane.catalog.contents import disk_bytes, folder_of

    return {
        "name": r.name,
        "embodiment": r.embodiment,
        "domain": r.domain if r.sealed else catalog.embodiment(r.name).domain,
        "owner": r.owner,
        "site": r.site,
        "episodes": r.episodes,
        "steps": r.steps,
        "hours": r.seconds / 3600,
        "findings": r.findings,
        "bytes": disk_bytes(folder_of(catalog, r.name)),
        "cache_bytes": sum(disk_bytes(p) for p in (catalog.root / "cache").glob(f"{r.name}-{r.digest[:16]}*")),
        "digest": r.digest,
        "contract": r.contract_digest,
    }


def _print_listed(listed: list[dict[str, Any]], total: dict[str, Any]) -> None:
    head = ("name", "embodiment", "domain", "owner", "episodes", "steps", "hours", "findings", "size", "cache")
    rows = [(*head, "digest", "contract")]
    for e in [*listed, {**total, "name": f"{len(listed)} data sets"}]:
        words = [str(e.get(k, "")) for k in head[:6]]
        words += [f"{e['hours']:.2f}", str(e["findings"]), size_words(e["bytes"]), size_words(e["cache_bytes"])]
        contract = (e["contract"][:12] or "not verified") if "contract" in e else ""
        rows.append((*words, e.get("digest", "")[:12], contract))
    print_table(rows)


def show(argv: list[str]) -> int:
    """`hagane catalog show NAME`."""
    from hagane.catalog.contents import episodes_of

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
    print(f"            serial {terms.serial}, issued {terms.issued}, protection {terms.protection}")
    print(f"            for {', '.join(terms.purposes)} at {', '.join(terms.sites)} in {', '.join(terms.residency)}")
    facts, stats = episodes_of(catalog, o.name), catalog.stats(o.name, "view")
    for title, counts in (
        ("outcomes", Counter(e.outcome or "unknown" for e in facts)),
        ("findings", Counter(kind for e in facts for kind in e.findings)),
    ):
        print(f"  {title}  " + (", ".join(f"{n} {word}" for word, n in sorted(counts.items())) or "none"))
    print()
    _print_stats(embodiment, stats)
    if o.episodes:
        print()
        _print_episodes(catalog, o.name)
    return 0


def _print_stats(embodiment: Embodiment, stats: Mapping[str, ChannelStats]) -> None:
    rows: list[tuple[str, ...]] = [("channel", "unit", "samples", "mean", "std", "min", "q01", "q99", "max")]
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
    print_table(rows)


def _print_episodes(catalog: Catalog, name: str) -> None:
    from hagane.catalog.contents import episodes_of
    from hagane.catalog.smoothness import jerky, set_smoothness

    facts, scores = episodes_of(catalog, name), set_smoothness(catalog, name, "view")
    tasks = [e.task for e in facts]
    marks = [jerky([getattr(s, k) for s in scores], tasks) for k in ("state_sparc", "action_sparc")]
    rows: list[tuple[str, ...]] = [
        ("episode", "steps", "seconds", "outcome", "findings", "smooth", "of actions", "jerk", "of actions", "", "task")
    ]
    for k, (e, s) in enumerate(zip(facts, scores, strict=True)):
        values = (s.state_sparc, s.action_sparc, s.state_ldlj, s.action_ldlj)
        mark = "jerky" if any(m[k] for m in marks) else ""
        words = (str(e.steps), f"{e.seconds:.1f}", e.outcome or "unknown", str(len(e.findings)))
        rows.append((e.id, *words, *("-" if isnan(v) else f"{v:.2f}" for v in values), mark, e.task))
    print_table(rows)
    print("smooth: spectral arc length (SPARC), jerk: log dimensionless jerk; nearer 0 is smoother")
    print("jerky: 3.5 robust deviations less smooth than the other episodes of the same task")


def _page(catalog: Catalog, name: str, out: Path) -> int:
    from hagane.catalog.doctor import examine_set
    from hagane.catalog.duplicates import catalog_signatures, find_copies
    from hagane.catalog.look import Look
    from hagane.console.dataset_page import write_dataset_page
    from hagane.console.doctor_table import headline

    look = Look(catalog.embodiment(name))
    found = examine_set(catalog, name, [look])
    copies = [
        (c.first[1], c.second[1], "is a copy of" if c.kind == "same" else "is nearly")
        for c in find_copies(catalog_signatures(catalog, [name]))
    ]
    machine, record, signed = catalog.embodiment(name), catalog.record(name), catalog.contract(name)
    write_dataset_page(out, found, look, machine, record, signed, copies)
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
