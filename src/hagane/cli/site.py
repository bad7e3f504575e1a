"""A site's own files, as every verb finds them: site.toml, trust/, ledger.jsonl, catalog/ in one folder."""

from __future__ import annotations

from pathlib import Path

from hagane.catalog import Catalog


def open_catalog(home: Path, *, noted: bool = True) -> Catalog:
    """The catalog of the site whose files lie in `home`; its reads and refusals go to the ledger.

    Args:
        home: the site's folder.
        noted: False for a further process of a verb that is noted already.

    Raises:
        HaganeError: no site.toml, or a catalog that cannot be used.
    """
    from hagane.seal import Ledger, TrustStore, load_site

    ledger = Ledger(home / "ledger.jsonl") if noted else None
    site = load_site(home / "site.toml")
    return Catalog.open(home / "catalog", site, TrustStore(home / "trust"), ledger)
