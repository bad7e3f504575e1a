"""`hagane console report RUN`: the report page of a run, as one file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

USAGE = "usage: hagane console report RUN [--out FILE]"


@dataclass(frozen=True)
class Report:
    """Make the report page of a run: one self-contained HTML file."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, like runs/demo."""
    out: Path | None = None
    """Where to write the page; RUN/report.html if not given."""


def main(argv: list[str]) -> int:
    """Sub-verbs: report."""
    verbs = {"report": report}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in verbs:
        print(f"hagane console: no {argv[0]!r}; known: {', '.join(verbs)}\n{USAGE}", file=sys.stderr)
        return 2
    return verbs[argv[0]](argv[1:])


def report(argv: list[str]) -> int:
    """Write the page and say where it is."""
    from hagane.console import make_report

    args = tyro.cli(Report, args=argv, prog="hagane console report", description=Report.__doc__)
    path = make_report(args.run, args.out)
    print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB, one file; open it in a browser)")
    return 0
