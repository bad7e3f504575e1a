"""A site's own files, as every verb finds them: site.toml, trust/, ledger.jsonl, catalog/ in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hagane.seal import Ledger, Memory, Site, TrustStore, load_site, root_key

if TYPE_CHECKING:
    from hagane.catalog import Catalog


def open_catalog(home: Path, *, noted: bool = True) -> Catalog:
    """The catalog of the site whose files lie in `home`; its reads and refusals go to the ledger.

    Args:
        home: the site's folder.
        noted: False for a further process of a verb that is noted already.

    Raises:
        HaganeError: no site.toml, or a catalog that cannot be used.
    """
    from hagane.catalog import Catalog

    ledger = Ledger(home / "ledger.jsonl") if noted else None
    return Catalog.open(home / "catalog", site_of(home), TrustStore(home / "trust"), ledger)


def site_of(home: Path) -> Site:
    """The site's own record, its signature checked if it has one.

    Raises:
        HaganeError: no site.toml, one that is not well formed, or one whose signature is bad.
    """
    return load_site(home / "site.toml", root_key(TrustStore(home / "trust")))


def memory_of(home: Path) -> Memory:
    """What the site remembers of contracts and days: the file that its catalog keeps."""
    return Memory(home / "catalog" / "memory.json")
