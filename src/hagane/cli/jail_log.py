"""`hagane jail log`: the text that a sealed run printed, for people to whom every contract behind it grants to view."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.sealed_run import REST, read_sealed_run
from hagane.cli.site import keyring_of, open_catalog
from hagane.cli.text import cleaned
from hagane.seal import OwnKeys, open_folder
from hagane.terms import StoreError

TEXTS = ("stdout.txt", "stderr.txt")


@dataclass(frozen=True)
class Log:
    """Show what a run in a jail printed last; every contract behind it must grant to view, and the ledger notes it."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, keys/, ledger.jsonl, catalog/."""


def main(argv: list[str]) -> int:
    """Run `hagane jail log`.

    Raises:
        Refused: a contract does not grant to view, or the run's key was erased.
        StoreError: no sealed run; CorruptError: it was changed.
    """
    o = tyro.cli(Log, args=argv, prog="hagane jail log")
    rest = o.run / "sealed" / REST
    if not (rest / "sealed.json").exists():
        raise StoreError("no sealed text lies here", where=str(o.run), next_step="name the folder of a sealed run")
    run, catalog = read_sealed_run(o.run), open_catalog(o.home, jailed=True)
    for source in run.sources:
        catalog.ask(source.dataset, "view")
    folder = open_folder(rest)
    keys = OwnKeys(folder, keyring_of(o.home))
    for name, stream in zip(TEXTS, (sys.stdout, sys.stderr), strict=True):
        if name in folder.files:
            stream.write(cleaned(folder.read(name, keys).decode("utf-8", "replace")))
    return 0
