"""A site's books, opened for an audit: the ledger verified and joined, the heads that others countersigned, contracts.

Nothing private is needed: public keys and files alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hagane.cli.audit_checkpoint import contracts_in
from hagane.cli.site import site_of
from hagane.seal import Head, Ledger, SignedContract, Site, TrustStore, load_contract
from hagane.seal.evidence import Evidence, check_signatures, prove
from hagane.seal.history import Witnessed, verify_history, witnessed_heads
from hagane.seal.keys import read_public
from hagane.seal.lineage import Lineage, follow
from hagane.terms import ConfigError, ContractError


@dataclass(frozen=True)
class Where:
    """Which books, and with which keys."""

    home: Path = Path()
    """The site's folder: site.toml, ledger.jsonl, trust/, catalog/."""
    site_key: Path | None = None
    """The site's public host key (PEM): the signatures of its entries are checked."""
    heads: Path | None = None
    """Folder of exchange with countersigned heads."""
    witness_keys: Path | None = None
    """Folder of the witnesses' public keys, MEMBER.pub each."""
    quorum: int = 1
    """Witnesses that must have countersigned a head before it counts."""


@dataclass(frozen=True)
class Books:
    """A site's ledger, verified."""

    site: Site
    """The site's own record."""
    ledger: Ledger
    """The ledger."""
    head: Head
    """Its head now."""
    lineage: Lineage
    """What it says, joined."""
    witnessed: tuple[Witnessed, ...]
    """Heads that others countersigned, smallest first."""
    contracts: dict[str, SignedContract | ContractError]
    """By sha256: contracts at hand, or why one does not count."""
    signatures: tuple[int, int] | None
    """(Signed entries, unsigned ones after the first signed); None when they were not checked."""

    def prove(self, indices: Iterable[int]) -> tuple[Evidence, ...]:
        """Inclusion proofs of entries, each checked."""
        return prove(self.ledger, indices, self.head, self.witnessed)

    @property
    def covered(self) -> int:
        """Entries that others countersigned."""
        return self.witnessed[-1].head.size if self.witnessed else 0

    def words(self) -> list[str]:
        """What the books rest on."""
        seen = ", ".join(name for name, _ in self.witnessed[-1].by) if self.witnessed else ""
        lines = [f"ledger      {self.ledger.path}, {self.head.size} entries, root {self.head.root}"]
        lines.append(f"  witnessed {self.covered} entries, by {seen}" if seen else "  witnessed none: all are pending")
        if self.signatures is not None:
            signed, bare = self.signatures
            lines.append(f"  signed    {signed} entries by {self.site.name}; {bare} unsigned after the first of them")
        return lines


def open_books(o: Where) -> Books:
    """Verify a site's ledger and join it.

    Raises:
        ConfigError: no ledger here, keys that are missing for what is asked.
        CorruptError: the ledger is damaged, cut or rewritten, or an entry is signed by another.
    """
    site, path = site_of(o.home), o.home / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError("no ledger here", where=str(path), next_step="give --home the folder of a site")
    ledger = Ledger(path)
    witnessed: tuple[Witnessed, ...] = ()
    if o.heads is not None:
        if o.site_key is None or o.witness_keys is None:
            raise ConfigError("--heads needs --site-key and --witness-keys", where="hagane audit")
        if not o.heads.is_dir():
            raise ConfigError("no such folder", where=str(o.heads), next_step="check the path")
        key = read_public(o.site_key)
        witnessed = witnessed_heads(o.heads, site.name, key, TrustStore(o.witness_keys), o.quorum)
    head = verify_history(ledger, witnessed)
    signatures = check_signatures(ledger, site.name, read_public(o.site_key)) if o.site_key else None
    trust = TrustStore(o.home / "trust")
    contracts: dict[str, SignedContract | ContractError] = {}
    for folder in ("contracts", "catalog"):
        for digest, file in contracts_in(o.home / folder).items():
            contracts.setdefault(digest, _contract(file, trust))
    return Books(site, ledger, head, follow(ledger.entries()), witnessed, contracts, signatures)


def _contract(path: Path, trust: TrustStore) -> SignedContract | ContractError:
    try:
        return load_contract(path, trust)
    except ContractError as e:
        return e
