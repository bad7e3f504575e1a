"""What the tests of seal share: a signed contract and its trust store, made in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import SignedContract, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import Contract, Request, dump_toml

CONTRACT = Contract(
    owner="member-cars",
    datasets=("road-demo", "road-2"),
    residency=("JP", "DE"),
    sites=("lab", "plant-7"),
    purposes=("anchor", "evaluate"),
    until=date(2027, 3, 31),
    issued=date(2026, 4, 1),
    serial=3,
    protection="process",
    may_serve=("member-cars",),
)
REQUEST = Request(
    dataset="road-demo",
    digest="",
    owner="member-cars",
    purpose="anchor",
    country="JP",
    site="lab",
    operator="consortium",
    site_signed=False,
    jailed=False,
    today=date(2026, 11, 24),
    last_day=date.min,
    last_serial=0,
    last_contract="",
)


@dataclass(frozen=True)
class Scene:
    """An owner with a key, a site that trusts it, and a signed contract."""

    key: Ed25519PrivateKey
    trust: TrustStore
    path: Path

    def load(self) -> SignedContract:
        return load_contract(self.path, self.trust)


def scene(folder: Path, **changes: object) -> Scene:
    """Key, trust store and signed contract; `changes` replace fields of CONTRACT."""
    contract = replace(CONTRACT, **changes)  # type: ignore[arg-type]
    key = generate_key(folder / "owner.pem")
    trust = TrustStore(folder / "trust")
    trust.add(contract.owner, public_of(key))
    path = folder / "contract.toml"
    path.write_text(dump_toml(contract), "utf-8")
    sign_contract(path, key)
    return Scene(key, trust, path)
