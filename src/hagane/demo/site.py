"""The demo's consortium: a site, three members with keys and contracts, and one contract that must be refused."""

from __future__ import annotations

from pathlib import Path

from hagane.demo.members import MEMBERS, Member
from hagane.demo.teller import Teller
from hagane.seal import generate_key, key_id_of, public_of, public_pem

SITE = 'name = "consortium-lab"\ncountry = "JP"\noperator = "consortium"\n'
TERMS = (
    "--protection", "process", "--may-serve", "consortium",
    "--purpose", "anchor", "member-training", "evaluate", "serve",
)  # fmt: skip
"""What every member grants: plain files, so that the demo runs on any kernel and its logs can be looked at."""
ABROAD = "road-abroad"
"""A data set whose contract keeps it in another country."""


def found_site(home: Path) -> None:
    """Write the site's own record, and make the host key that signs the entries of its ledger."""
    home.mkdir(parents=True, exist_ok=True)
    public = public_of(generate_key(home / "keys" / "host.pem"))
    (home / "keys" / "host.pub").write_bytes(public_pem(public))
    (home / "site.toml").write_text(f'{SITE}host_key = "{key_id_of(public)}"\n', "utf-8")


def sign_contracts(teller: Teller, home: Path) -> None:
    """Every member makes a key, writes its terms and signs them; the site is told their public keys."""
    trust = home / "trust"
    trust.mkdir(exist_ok=True)
    for m in MEMBERS:
        with teller.quiet():
            teller.must("contract", "keygen", "--owner", m.name, "--out", str(home / "keys"))
            terms = ("--owner", m.name, "--dataset", m.dataset, *TERMS)
            teller.must("contract", "new", str(contract(home, m)), *terms)
        (trust / f"{m.name}.pub").write_bytes((home / "keys" / f"{m.name}.pub").read_bytes())
        teller.must("contract", "sign", str(contract(home, m)), "--key", str(home / "keys" / f"{m.name}.pem"))


def sign_abroad(teller: Teller, home: Path) -> Path:
    """member-cars signs a second contract, for data that must stay in another country."""
    path = home / "contracts" / "abroad.toml"
    terms = ("--owner", "member-cars", "--dataset", ABROAD, "--country", "DE", "--site", "consortium-lab", *TERMS)
    with teller.quiet():
        teller.must("contract", "new", str(path), *terms)
        teller.must("contract", "sign", str(path), "--key", str(home / "keys" / "member-cars.pem"))
    return path


def contract(home: Path, member: Member) -> Path:
    """Where a member's contract lies."""
    return home / "contracts" / f"{member.name}.toml"
