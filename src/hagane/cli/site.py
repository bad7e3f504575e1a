"""A site's own files, as every verb finds them: site.toml, trust/, ledger.jsonl, catalog/ in one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.cli.inside import broker
from hagane.seal import (
    Keyring,
    Ledger,
    Memory,
    Signer,
    Site,
    TrustStore,
    key_id_of,
    load_private,
    load_site,
    public_of,
    root_key,
)
from hagane.terms import ConfigError

if TYPE_CHECKING:
    from hagane.catalog import Catalog


def open_catalog(home: Path, *, noted: bool = True, jailed: bool = False) -> Catalog:
    """The catalog of the site whose files lie in `home`; its reads and refusals go to the ledger, in a jail by way of
    the broker, which judges them.

    Args:
        home: the site's folder.
        noted: False for a further process of a verb that is noted already.
        jailed: asked by the keeper, on behalf of the jail that it starts.

    Raises:
        HaganeError: no site.toml, or a catalog that cannot be used.
    """
    from hagane.catalog import Catalog

    site, trust, desk = site_of(home), TrustStore(home / "trust"), broker()
    if desk is not None:
        return Catalog.open(home / "catalog", site, trust, keys=desk, desk=desk)
    ledger = ledger_of(home) if noted else None
    return Catalog.open(home / "catalog", site, trust, ledger, jailed=jailed)


def keyring_of(home: Path) -> Keyring:
    """The site's wrapping keys. A passphrase is read from the descriptor that `HAGANE_PASSPHRASE_FD` names, or asked
    for at the terminal."""
    from hagane.cli.keys import passphrase_of

    fd = int(os.environ.get("HAGANE_PASSPHRASE_FD", "-1"))
    return Keyring(home / "keys", lambda owner: passphrase_of(owner, fd))


def site_of(home: Path) -> Site:
    """The site's own record, its signature checked if it has one.

    Raises:
        HaganeError: no site.toml, one that is not well formed, or one whose signature is bad.
    """
    return load_site(home / "site.toml", root_key(TrustStore(home / "trust")))


def ledger_of(home: Path) -> Ledger:
    """The site's ledger. Entries are signed where the site keeps its host key, in keys/host.pem.

    Raises:
        HaganeError: the host key cannot be read, or is not the one that the site's record names.
    """
    path = home / "keys" / "host.pem"
    if not path.exists():
        return Ledger(home / "ledger.jsonl")
    site, key = site_of(home), load_private(path)
    if site.host_key and site.host_key != key_id_of(public_of(key)):
        raise ConfigError(
            "this is not the host key that site.toml names", where=str(path), next_step="put the right key there"
        )
    return Ledger(home / "ledger.jsonl", signer=Signer(site.name, key))


def memory_of(home: Path) -> Memory:
    """What the site remembers of contracts and days: the file that its catalog keeps."""
    return Memory(home / "catalog" / "memory.json")
