"""`hagane audit report --officer`: the books of a site as one page for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from hagane.cli.audit_books import Where, open_books
from hagane.seal import utc_today
from hagane.terms import ConfigError


@dataclass(frozen=True)
class Report(Where):
    """Write what a site's books say as one self-contained page, in Japanese and English."""

    officer: bool = False
    """The page of a compliance officer: the one kind there is."""
    html: Path = Path("officer.html")
    """The file to write."""


def report(argv: list[str]) -> int:
    """Run `hagane audit report`."""
    o = tyro.cli(Report, args=argv, prog="hagane audit report")
    if not o.officer:
        raise ConfigError("for whom?", where="hagane audit report", next_step="add --officer")
    from hagane.console.officer import OfficerFacts, write_officer_page

    books = open_books(o)
    by = books.witnessed[-1].by if books.witnessed else ()
    facts = OfficerFacts(
        books.site, books.lineage, books.head, books.covered, by, books.contracts, books.signatures, utc_today()
    )
    write_officer_page(o.html, facts)
    problems = len(books.lineage.problems())
    print(f"{o.html}: {books.head.size} entries, {len(books.lineage.sets)} data sets; one file, open it in a browser")
    if problems:
        print(f"  PROBLEM   the record does not join in {problems} place(s): the page lists them first")
    return 0
