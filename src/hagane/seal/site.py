"""Site: where data is read. Its record is a small TOML file that the operator writes and the consortium's root signs.

A signature says that the consortium believes the record. It does not prove that the machines stand in that country.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.contracts import is_digest
from hagane.seal.countries import COUNTRIES, is_country
from hagane.seal.keys import TrustStore, read_public
from hagane.seal.names import ROOT, check_name
from hagane.seal.signed_file import check_payload, check_signer, signature_path, write_signature
from hagane.terms import ConfigError, ContractError, parse_toml

PAYLOAD_TYPE = "application/vnd.hagane.site+toml"


@dataclass(frozen=True)
class Site:
    """A place with machines that read data, under one operator and one country's law.

    Raises:
        ConfigError: a name that is not safe, a country code that is not assigned, or a key id that is none.
    """

    name: str
    """Name of the site, as contracts list it."""
    country: str
    """ISO 3166-1 alpha-2 code of the country it stands in."""
    operator: str
    """The member, or the consortium, that runs it."""
    host_key: str = ""
    """Id of the public key that the site signs its statements with (sha256, hex); "" for none."""
    until: date | None = None
    """Last day that the record counts as signed (UTC); a record without one cannot be signed."""
    fabric: str = ""
    """On a cluster, how its network is cut off from others (InfiniBand pkey, VLAN): the operator's word."""
    signed: bool = field(default=False, init=False)
    """True only from `load_site`: the signature of the consortium's root was verified. A changed copy is not signed."""

    def __post_init__(self) -> None:
        check_name(self.name, "site name")
        check_name(self.operator)
        if not is_country(self.country):
            near = difflib.get_close_matches(str(self.country).upper()[:2], sorted(COUNTRIES), 3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise ConfigError(
                f"no country has the code {self.country!a}",
                where=f"site {self.name!r}",
                next_step=f'use an ISO 3166-1 alpha-2 code in capitals, as "JP"{hint}',
            )
        if self.host_key and not is_digest(self.host_key):
            raise ConfigError(
                f"`host_key` is no key id: {self.host_key[:80]!a}",
                where=f"site {self.name!r}",
                next_step="`hagane contract site new --host-key KEY.pub` writes it",
            )

    def signed_on(self, day: date) -> bool:
        """True when the root's signature was verified and the record still runs on a day."""
        return self.signed and self.until is not None and day <= self.until


def root_key(trust: TrustStore) -> Path:
    """Where the public key of the consortium's root lies, whether or not it exists: trust/consortium-root.pub."""
    return trust.path_of(ROOT)


def load_site(path: Path, trust_root: Path | None = None) -> Site:
    """Read `site.toml` strictly and verify its signature, if it has one.

    Args:
        path: the record; its signature, if any, is `<path>.sig`.
        trust_root: file of the root's public key (`root_key`). None, or no such file: nobody can vouch for a site
            here, so the site is not `signed`.

    Raises:
        ConfigError: missing file, unknown or missing key, bad name or country.
        ContractError: there is a signature, and it is damaged, of other bytes, or not the root's.
    """
    data = _read(path)
    site = read_site(data, str(path))
    try:
        signature = signature_path(path).read_bytes()
    except FileNotFoundError:
        return site
    except OSError as e:
        raise ContractError(f"the signature cannot be read: {e.strerror}", where=str(signature_path(path))) from None
    check_payload(data, signature, PAYLOAD_TYPE, what="site record", where=str(path))
    if trust_root is None or not trust_root.exists():
        return site
    return _vouched(site, signature, read_public(trust_root), str(path))


def read_site(data: bytes, where: str = "site.toml") -> Site:
    """A site's record from TOML bytes; whoever signed it, it is not `signed`.

    Raises:
        ConfigError: as `load_site`.
    """
    try:
        return parse_toml(data.decode("utf-8"), Site, where=where)
    except (UnicodeDecodeError, RecursionError):
        raise ConfigError("not UTF-8 text in TOML", where=where) from None


def sign_site(path: Path, private_key: Ed25519PrivateKey) -> Path:
    """Sign the exact bytes of a site's record with the root's key; returns the signature file beside it.

    Raises:
        ConfigError: the record is not well formed, or lacks what a signed one must say: `host_key` and `until`.
        ContractError: the signature cannot be written.
    """
    data = _read(path)
    site = read_site(data, str(path))
    missing = [name for name in ("host_key", "until") if not getattr(site, name)]
    if missing:
        raise ConfigError(
            f"a site without `{missing[0]}` cannot be signed", where=str(path), next_step=f"add `{missing[0]} = ...`"
        )
    return write_signature(path, PAYLOAD_TYPE, data, private_key)


def _vouched(site: Site, signature: bytes, root: Ed25519PublicKey, where: str) -> Site:
    check_signer(signature, root, "the consortium's root", what="site record", where=where)
    vouched = replace(site)
    object.__setattr__(vouched, "signed", True)  # not a parameter, so that no file and no caller can claim it
    return vouched


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), next_step="write it: hagane contract site new") from None
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", where=str(path)) from None
