"""`hagane jail run --peer`: sites' keys and records, joined to the jail's way to other nodes."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.exceptions import InvalidSignature

from hagane.jail import JailRecord, Link, Peer, Seen, Shown, Vouching, meet, wiring
from hagane.seal import (
    Site,
    TrustStore,
    key_id_of,
    load_private,
    load_site,
    public_of,
    public_pem,
    read_public,
    root_key,
    signature_path,
    utc_today,
)
from hagane.terms import ConfigError, ContractError, canonical_json, code_digest

PORT = 7468
"""Where keepers listen when no flag says otherwise."""
_FILES = ("site.toml", "site.toml.sig", "host.pub")


@dataclass(frozen=True)
class Away:
    """Where a jail stands among the nodes, as flags said it."""

    link: Link
    """Its way to the others."""
    places: dict[Peer, tuple[str, int]]
    """Every peer, and host and port of its keeper."""
    listen: tuple[str, int]
    """Our own."""
    site: Site
    """Who vouches for us."""
    keys: Vouching
    """Our key, and how others' are verified."""
    wait_s: float
    """Until all must have met, seconds."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Addresses of the others' jails."""
        return tuple(str(p) for p in self.link.peers)

    def meet(self, record: JailRecord) -> tuple[Seen, ...]:
        """Show our jail's record to every peer, and demand theirs."""
        own = Shown(self.site.name, self.link.address, code_digest(), record)
        return meet(own, self.places, self.listen, self.keys, self.wait_s)

    @contextmanager
    def wired(self) -> Iterator[Callable[[int], None]]:
        """What `start` takes as `wire`."""
        with wiring(self.link) as wire:
            yield wire


def away(
    peers: tuple[str, ...], address: str, card: str, listen: str, site: Path, host_key: Path | None, wait_s: float
) -> Away:
    """Read the flags.

    Raises:
        ConfigError: one is missing or not of its form.
        ContractError: our own record or key would not count elsewhere.
    """
    if not (address and card and host_key):
        missing = "--address" if not address else "--host-key" if card else "--card"
        raise ConfigError(f"--peer needs {missing} too", where="hagane jail run", next_step="see --help")
    places = dict(_peer(p) for p in peers)
    if len(places) < len(peers):
        raise ConfigError("a peer is listed twice", where="--peer")
    link = Link(card, _address(address, "--address"), tuple(p.address for p in places))
    own, keys = site_keys(site, host_key)
    return Away(link, places, _place(listen, "--listen"), own, keys, wait_s)


def site_keys(folder: Path, host_key: Path) -> tuple[Site, Vouching]:
    """A site, and how its keeper signs jail records and verifies those of other sites of the consortium.

    Others are shown the site's record with the signature of the consortium's root, and the host's public key.

    Args:
        folder: of the site: site.toml, its signature, trust/consortium-root.pub.
        host_key: the private key whose id the record names as `host_key`.

    Raises:
        ConfigError, ContractError: something is missing, or would not count elsewhere.
    """
    path, root = folder / "site.toml", root_key(TrustStore(folder / "trust"))
    private = load_private(host_key)
    site = load_site(path, root)
    _demand(site, key_id_of(public_of(private)), site.name, str(path))
    parts = (path.read_bytes(), signature_path(path).read_bytes(), public_pem(public_of(private)))
    credential = canonical_json([base64.b64encode(p).decode() for p in parts])

    def verify(name: str, credential: bytes, signature: bytes, message: bytes) -> str:
        with TemporaryDirectory() as text:
            here = Path(text)
            for file, data in zip(_FILES, _parts(credential), strict=True):
                (here / file).write_bytes(data)
            try:
                public = read_public(here / _FILES[2])
                key = key_id_of(public)
                _demand(load_site(here / _FILES[0], root), key, name, name)
                public.verify(signature, message)
            except InvalidSignature:
                raise ContractError("it is not of the key that it names", where=name) from None
        return key

    return site, Vouching(credential, private.sign, verify)


def _demand(site: Site, key: str, name: str, where: str) -> None:
    if site.name != name:
        raise ContractError(f"the record is of site {site.name!r}", where=where)
    if not site.signed_on(utc_today()):
        raise ContractError(
            "the site's record is not signed by the consortium's root, or has run out",
            where=where,
            next_step="`hagane contract site show` says which; the root signs with `hagane contract site sign`",
        )
    if site.host_key != key:
        raise ContractError(
            "the host key is not the one of the site's record", where=where, next_step="give the key that it names"
        )


def _parts(credential: bytes) -> list[bytes]:
    try:
        parts = [base64.b64decode(p, validate=True) for p in json.loads(credential)]
    except (ValueError, TypeError, RecursionError, binascii.Error):
        parts = []
    if len(parts) != len(_FILES):
        raise ContractError("it shows no site record with its signature and key")
    return parts


def _peer(text: str) -> tuple[Peer, tuple[str, int]]:
    site, equals, rest = text.partition("=")
    address, at, place = rest.partition("@")
    if not (site and equals and at):
        raise ConfigError(
            f"no peer: {text[:80]!r}",
            where="--peer",
            next_step="write SITE=ADDRESS@HOST:PORT: lab-2=10.7.0.2@node2:7468",
        )
    return Peer(site, _address(address, "--peer")), _place(place, "--peer")


def _address(text: str, where: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise ConfigError(f"no IPv4 address: {text[:80]!r}", where=where) from None


def _place(text: str, where: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise ConfigError(f"no HOST:PORT: {text[:80]!r}", where=where, next_step="the port is 1 to 65535")
    return host, int(port or PORT)
