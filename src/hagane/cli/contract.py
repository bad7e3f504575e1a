"""`hagane contract`: keys, contracts, and the records of sites: keygen, new, pin, sign, show, check, site."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from hagane.cli import contract_site
from hagane.cli.contract_text import contract_text, print_terms
from hagane.cli.site import memory_of
from hagane.seal import (
    SignedContract,
    TrustStore,
    check_name,
    generate_key,
    load_contract,
    load_private,
    load_site,
    permit,
    public_of,
    read_contract,
    request_at,
    root_key,
    sign_contract,
    signature_path,
    utc_today,
)
from hagane.seal.keys import write_new
from hagane.terms import ConfigError, Contract, ContractError, Protection, digest_bytes
from hagane.terms.files import write_whole

T = TypeVar("T")
File = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Keygen:
    """Make a key pair for an owner: OWNER.pem stays with the owner, OWNER.pub goes to the sites that trust it."""

    owner: str
    """Name of the member, like member-cars."""
    out: Path = Path("keys")
    """Folder of both files."""


@dataclass(frozen=True)
class New:
    """Write a contract to edit, with a comment on every line."""

    file: File
    """The file to write; it must not exist."""
    owner: str = "member-cars"
    """The member that owns the data."""
    dataset: tuple[str, ...] = ("road-demo",)
    """Data sets it is about."""
    country: tuple[str, ...] = ("JP",)
    """Countries where the data may be read."""
    site: tuple[str, ...] = ("consortium-lab",)
    """Sites where it may be read."""
    purpose: tuple[str, ...] = ("anchor", "member-training", "evaluate")
    """What it may be used for."""
    protection: Protection = "jail"
    """How the data must be kept: sealed and opened only in a jail, or as plain files."""
    may_merge: tuple[str, ...] = ()
    """Members that may merge what was trained on it."""
    may_serve: tuple[str, ...] = ()
    """Members that may serve what was trained on it."""
    serial: int = 1
    """Its number; higher than that of the contract it replaces."""
    days: int = 365
    """Days from today to its last day."""


@dataclass(frozen=True)
class Pin:
    """Write the digests of the data sets, as a site's catalog has them, into a contract: it is then about exactly
    that content. The owner signs it after that; a contract that was signed already gets the next serial."""

    file: File
    """The contract."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


@dataclass(frozen=True)
class Sign:
    """Sign a contract with its owner's key: writes FILE.sig beside it."""

    file: File
    """The contract."""
    key: Path
    """The owner's private key (PEM)."""


@dataclass(frozen=True)
class Show:
    """Print the terms of a contract, and whether they are signed and still run. Exit code 1 if not."""

    file: File
    """The contract."""
    trust: Path = Path("trust")
    """Folder of the owners' public keys."""


@dataclass(frozen=True)
class Check:
    """Ask `permit`: may this site use the data for this purpose? Exit code 1 when refused."""

    file: File
    """The contract."""
    purpose: str
    """What for; one of the words that `hagane contract show` lists."""
    site: Path = Path("site.toml")
    """The site that asks."""
    trust: Path = Path("trust")
    """Folder of the owners' public keys."""
    dataset: str = ""
    """One data set; empty asks for each that the contract names."""
    owner: str = ""
    """Owner of the data; empty means the contract's."""
    digest: str = ""
    """Content digest of the data; empty means the one that the contract names, if it names one."""
    jailed: bool = False
    """Ask as a process in a jail would."""
    today: str = ""
    """Date of the request, YYYY-MM-DD (UTC); empty means today."""


def keygen(argv: list[str]) -> int:
    """Run `hagane contract keygen`."""
    o = _options(Keygen, "keygen", argv)
    check_name(o.owner)
    private, trust = o.out / f"{o.owner}.pem", TrustStore(o.out)
    if trust.path_of(o.owner).exists():
        raise ContractError(
            "the file exists and is not overwritten", where=str(trust.path_of(o.owner)), next_step="use another --out"
        )
    public = trust.add(o.owner, public_of(generate_key(private)))
    print(f"{private}  private key of {o.owner}: keep it; who holds it signs as {o.owner}")
    print(f"{public}  public key: bring it to each site's trust folder by a way they trust")
    return 0


def new(argv: list[str]) -> int:
    """Run `hagane contract new`."""
    o = _options(New, "new", argv)
    today = utc_today()
    contract = Contract(
        owner=o.owner,
        datasets=o.dataset,
        residency=o.country,
        sites=o.site,
        purposes=o.purpose,
        until=today + timedelta(days=o.days),
        issued=today,
        serial=o.serial,
        protection=o.protection,
        may_merge=o.may_merge,
        may_serve=o.may_serve,
    )
    text = contract_text(contract)
    read_contract(text.encode(), str(o.file))
    write_new(o.file, text.encode(), 0o644)
    print(f"{o.file}: edit it, then: hagane contract sign {o.file} --key {o.owner}.pem")
    return 0


def pin(argv: list[str]) -> int:
    """Run `hagane contract pin`."""
    from hagane.cli.site import open_catalog

    o = _options(Pin, "pin", argv)
    old = read_contract(_bytes(o.file), str(o.file))
    catalog = open_catalog(o.home, noted=False)
    records = {name: catalog.record(name) for name in old.datasets}
    if strange := [r for r in records.values() if r.owner != old.owner]:
        raise ContractError(
            f"data set {strange[0].name!r} belongs to {strange[0].owner}, not to {old.owner}", where=str(o.file)
        )
    new = replace(old, digests={name: r.digest for name, r in records.items()})
    if new != old and signature_path(o.file).exists():
        new = replace(new, serial=old.serial + 1, issued=utc_today())
    for name, digest in new.digests.items():
        print(f"{name}  {digest}")
    if new == old:
        print(f"{o.file}: says so already")
        return 0
    try:
        write_whole(o.file, [contract_text(new).encode()])
    except OSError as e:
        raise ContractError(f"cannot be written: {e.strerror}", where=str(o.file)) from None
    print(f"{o.file}: serial {new.serial}; sign it: hagane contract sign {o.file} --key {old.owner}.pem")
    return 0


def sign(argv: list[str]) -> int:
    """Run `hagane contract sign`."""
    o = _options(Sign, "sign", argv)
    print(f"{sign_contract(o.file, load_private(o.key))}: signed; the two files belong together")
    return 0


def show(argv: list[str]) -> int:
    """Run `hagane contract show`."""
    o = _options(Show, "show", argv)
    try:
        signed = load_contract(o.file, TrustStore(o.trust))
    except ContractError as e:
        # the terms can be looked at even when nobody vouches for them; a file that is no contract raises again
        toml = _bytes(o.file)
        print_terms(read_contract(toml, str(o.file)), digest_bytes(toml))
        print(f"  signed      NO: {e}")
        return 1
    print_terms(signed.contract, signed.digest)
    print(f"  signed      by {signed.contract.owner}, key {signed.key_id[:16]}...")
    today, contract = utc_today(), signed.contract
    early, over = today < contract.issued, today > contract.until
    says = f"NO: expired on {contract.until}" if over else f"until {contract.until}"
    print(f"  runs        {f'NO: not before {contract.issued}' if early else says}")
    return int(over or early)


def check(argv: list[str]) -> int:
    """Run `hagane contract check`."""
    o = _options(Check, "check", argv)
    trust = TrustStore(o.trust)
    site, memory = load_site(o.site, root_key(trust)), memory_of(o.site.parent)
    signed: SignedContract = load_contract(o.file, trust)
    terms, refused = signed.contract, False
    for dataset in (o.dataset,) if o.dataset else terms.datasets:
        asked = (dataset, o.digest or terms.digests.get(dataset, ""), o.owner or terms.owner, o.purpose)
        request = request_at(site, memory, *asked, jailed=o.jailed, today=_day(o.today))
        decision = permit(signed, request)
        refused |= not decision.allowed
        print(f"{'allowed' if decision.allowed else 'refused'}: {dataset}: {decision.reason}")
    return int(refused)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "keygen": keygen,
    "new": new,
    "pin": pin,
    "sign": sign,
    "show": show,
    "check": check,
    "site": contract_site.main,
}


def main(argv: list[str]) -> int:
    """Run `hagane contract VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane contract {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane contract: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2


def _options(kind: type[T], verb: str, argv: list[str]) -> T:
    return tyro.cli(kind, args=argv, prog=f"hagane contract {verb}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ContractError(f"the contract cannot be read: {e.strerror}", where=str(path)) from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text) if text else utc_today()
    except ValueError:
        raise ConfigError(f"no date: {text!r}", where="--today", next_step="write it as 2026-11-24") from None
