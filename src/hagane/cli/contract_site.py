"""`hagane contract site`: the record of a site, which the consortium's root signs: new, sign, show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.contract_text import print_site, site_text
from hagane.seal import (
    Site,
    TrustStore,
    key_id_of,
    load_private,
    load_site,
    read_public,
    read_site,
    root_key,
    sign_site,
    utc_today,
)
from hagane.seal.keys import write_new
from hagane.terms import ConfigError

File = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class New:
    """Write a site's record to edit, with a comment on every line."""

    file: File
    """The file to write; it must not exist."""
    name: str = "consortium-lab"
    """Name of the site, as contracts list it."""
    country: str = "JP"
    """Country its machines stand in (ISO 3166-1 alpha-2)."""
    operator: str = "consortium"
    """The member, or the consortium, that runs it."""
    host_key: Path | None = None
    """Public key that the site signs its statements with (`hagane contract keygen`)."""
    fabric: str = ""
    """On a cluster, how its network is cut off from others (pkey, VLAN)."""
    days: int = 365
    """Days from today to the last day that the root's signature counts."""


@dataclass(frozen=True)
class Sign:
    """Sign a site's record with the root's key: writes FILE.sig beside it."""

    file: File
    """The record."""
    key: Path
    """The root's private key (PEM): `hagane contract keygen --owner consortium-root`."""


@dataclass(frozen=True)
class Show:
    """Print a site's record, and whether the root signed it and it still runs. Exit code 1 if not."""

    file: File = Path("site.toml")
    """The record."""
    trust: Path = Path("trust")
    """Folder with the root's public key, consortium-root.pub."""


def new(argv: list[str]) -> int:
    """Run `hagane contract site new`."""
    o = tyro.cli(New, args=argv, prog="hagane contract site new")
    host_key = key_id_of(read_public(o.host_key)) if o.host_key else ""
    site = Site(o.name, o.country, o.operator, host_key, utc_today() + timedelta(days=o.days), o.fabric)
    text = site_text(site)
    if read_site(text.encode()) != site:
        raise ConfigError("the words given are not plain text", where=str(o.file))
    write_new(o.file, text.encode(), 0o644)
    print(f"{o.file}: edit it; the root signs it: hagane contract site sign {o.file} --key consortium-root.pem")
    return 0


def sign(argv: list[str]) -> int:
    """Run `hagane contract site sign`."""
    o = tyro.cli(Sign, args=argv, prog="hagane contract site sign")
    print(f"{sign_site(o.file, load_private(o.key))}: signed; the two files belong together")
    return 0


def show(argv: list[str]) -> int:
    """Run `hagane contract site show`."""
    o = tyro.cli(Show, args=argv, prog="hagane contract site show")
    root = root_key(TrustStore(o.trust))
    site = load_site(o.file, root)
    print_site(site)
    known = "no signature" if root.exists() else f"{root} is not here, so nobody can vouch for it"
    print(f"  signed      {'by the consortium' if site.signed else f'NO: {known}'}")
    runs = site.signed_on(utc_today())
    print(f"  runs        {'until' if runs else 'NO: until'} {site.until or 'no day'}")
    return int(not runs)


VERBS: dict[str, Callable[[list[str]], int]] = {"new": new, "sign": sign, "show": show}


def main(argv: list[str]) -> int:
    """Run `hagane contract site VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane contract site {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane contract site: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2
