"""`hagane contract`: keys, and contracts: keygen, new, sign, show, check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

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
    sign_contract,
)
from hagane.terms import PURPOSES, ConfigError, Contract, ContractError, Request, digest_bytes

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
    purpose: tuple[str, ...] = ("anchor", "member-training", "evaluate", "serve")
    """What it may be used for."""
    days: int = 365
    """Days from today to its last day."""


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
    today: str = ""
    """Date of the request, YYYY-MM-DD; empty means today."""


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
    text = contract_text(o, date.today() + timedelta(days=o.days))
    read_contract(text.encode(), str(o.file))
    try:
        o.file.parent.mkdir(parents=True, exist_ok=True)
        with o.file.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise ContractError("the file exists and is not overwritten", where=str(o.file)) from None
    except OSError as e:
        raise ContractError(f"cannot be written: {e.strerror}", where=str(o.file)) from None
    print(f"{o.file}: edit it, then: hagane contract sign {o.file} --key {o.owner}.pem")
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
        toml = _bytes(o.file, e)
        print_terms(read_contract(toml, str(o.file)), digest_bytes(toml))
        print(f"  signed      NO: {e}")
        return 1
    print_terms(signed.contract, signed.digest)
    print(f"  signed      by {signed.contract.owner}, key {signed.key_id[:16]}...")
    over = date.today() > signed.contract.until
    print(f"  runs        {'NO: expired on' if over else 'until'} {signed.contract.until}")
    return int(over)


def check(argv: list[str]) -> int:
    """Run `hagane contract check`."""
    o = _options(Check, "check", argv)
    site = load_site(o.site)
    signed: SignedContract = load_contract(o.file, TrustStore(o.trust))
    refused = False
    for dataset in (o.dataset,) if o.dataset else signed.contract.datasets:
        request = Request(dataset, o.owner or signed.contract.owner, o.purpose, site.country, site.name, _day(o.today))
        decision = permit(signed, request)
        refused |= not decision.allowed
        print(f"{'allowed' if decision.allowed else 'refused'}: {dataset}: {decision.reason}")
    return int(refused)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "keygen": keygen,
    "new": new,
    "sign": sign,
    "show": show,
    "check": check,
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


def contract_text(o: New, until: date) -> str:
    """A contract as TOML with a comment on every line."""
    return f"""\
# A contract: what the owner of data grants. What is not written here is not granted.
# Edit, then sign: hagane contract sign FILE --key KEY.pem. After signing, a changed letter makes it void.

owner = "{o.owner}"               # the member that owns the data and signs this
datasets = {_list(o.dataset)}     # names of the data sets
residency = {_list(o.country)}    # countries where the data may be read (ISO 3166-1 alpha-2)
sites = {_list(o.site)}           # sites where it may be read
# purposes: {", ".join(PURPOSES)}
# "anchor" trains the weights that all members share; "member-training" only the owner's own experts
purposes = {_list(o.purpose)}
until = {until.isoformat()}       # last day
# what withdrawing means: "E" exact (the data stays in the member's own bundle, so no "anchor"),
# "R" the router is tuned again without the member, "D" the weights are revoked and trained again
withdrawal = "D"
version = 1                       # of this form
"""


def print_terms(contract: Contract, digest: str) -> None:
    """Print a contract's terms, a line each."""
    print(f"contract of {contract.owner}, sha256 {digest[:16]}...")
    print(f"  data sets   {', '.join(contract.datasets)}")
    print(f"  purposes    {', '.join(contract.purposes)}")
    print(f"  countries   {', '.join(contract.residency)}")
    print(f"  sites       {', '.join(contract.sites)}")
    print(f"  last day    {contract.until}")
    print(f"  withdrawal  class {contract.withdrawal}")


def _options(kind: type[T], verb: str, argv: list[str]) -> T:
    return tyro.cli(kind, args=argv, prog=f"hagane contract {verb}")


def _bytes(path: Path, reason: ContractError) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise reason from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text) if text else date.today()
    except ValueError:
        raise ConfigError(f"no date: {text!r}", where="--today", next_step="write it as 2026-11-24") from None


def _list(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{w}"' for w in words) + "]"
