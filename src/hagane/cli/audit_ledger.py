"""`hagane audit verify|head|witness`: check a ledger, sign its head, countersign another member's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.site import site_of
from hagane.seal import Head, Ledger, Signer, TrustStore, load_private, public_of
from hagane.seal.evidence import check_signatures
from hagane.seal.history import (
    Witnessed,
    note_witnessed,
    noted,
    publish,
    verify_history,
    witness_newest,
    witnessed_heads,
)
from hagane.seal.keys import read_public
from hagane.seal.witness import Witness
from hagane.terms import ConfigError

Place = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Verify:
    """Check every byte of a ledger, and that it still holds what somebody remembered or witnesses countersigned."""

    ledger: Place
    """The ledger (JSON lines)."""
    size: int = 0
    """Entries it had when it was last seen."""
    root: str = ""
    """Its root then: what this command printed."""
    heads: Path | None = None
    """Folder of exchange with countersigned heads."""
    site: str = ""
    """Name of the site whose ledger it is."""
    site_key: Path | None = None
    """The site's public host key (PEM)."""
    witness_keys: Path | None = None
    """Folder of the witnesses' public keys, MEMBER.pub each."""
    quorum: int = 1
    """Witnesses that must have countersigned a head before it counts."""


@dataclass(frozen=True)
class SignHead:
    """Check this site's ledger, sign its head, and lay it out for witnesses."""

    key: Path
    """The site's private host key (PEM)."""
    home: Path = Path()
    """The site's folder: site.toml and ledger.jsonl."""
    heads: Path = Path("heads")
    """Folder of exchange: hand it to the witnesses, and take their files into it."""
    witness_keys: Path | None = None
    """Folder of the witnesses' public keys: notes in the ledger what they countersigned since, before signing."""


@dataclass(frozen=True)
class Countersign:
    """Countersign the newest head of another site, if it continues the last one that was signed here."""

    heads: Place
    """Folder of exchange, as the site handed it over."""
    site: str
    """Name of the site whose ledger it is."""
    site_key: Path
    """The site's public host key (PEM)."""
    name: str
    """The member that countersigns."""
    key: Path
    """The member's private key (PEM)."""
    memory: Path = Path("witness")
    """Folder in which the member remembers what it signed: keep it."""


def verify(argv: list[str]) -> int:
    """Run `hagane audit verify`."""
    o = tyro.cli(Verify, args=argv, prog="hagane audit verify")
    if not o.ledger.is_file():
        raise ConfigError("no such ledger", where=str(o.ledger), next_step="check the path")
    if bool(o.size) != bool(o.root):
        raise ConfigError("--size and --root belong together", where="hagane audit verify")
    if o.quorum < 1:
        raise ConfigError("--quorum is at least 1", where="hagane audit verify")
    ledger = Ledger(o.ledger)
    heads: tuple[Witnessed, ...] = ()
    if o.heads is not None:
        if not o.site or o.site_key is None or o.witness_keys is None:
            raise ConfigError("--heads needs --site, --site-key and --witness-keys", where="hagane audit verify")
        heads = witnessed_heads(o.heads, o.site, read_public(o.site_key), TrustStore(_folder(o.witness_keys)), o.quorum)
    head = verify_history(ledger, heads, Head(o.size, o.root) if o.root else None)
    kinds: Counter[str] = Counter()
    signed = 0
    for entry in ledger.entries():
        kinds[entry.kind] += 1
        signed += entry.envelope is not None
    print(f"{o.ledger}: sound, {head.size} entries ({', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))})")
    if o.site_key is not None and o.site:
        good, bare = check_signatures(ledger, o.site, read_public(o.site_key))
        print(f"{good} entries are signed by {o.site}, each checked; {bare} after the first of them are not signed")
    print(f"{signed} of them are signed" + ("" if signed else ": whoever could write the file could have written them"))
    if o.root:
        print(f"its first {o.size} entries are those remembered")
    if heads:
        names = ", ".join(name for name, _ in heads[-1].by)
        print(
            f"its first {heads[-1].head.size} entries are those that {names} countersigned: none was cut or rewritten"
        )
        print(f"entries after these: {head.size - heads[-1].head.size}; whether others were cut off cannot be known")
    elif o.heads is not None:
        print("no head is countersigned by enough witnesses: whether entries were cut off cannot be known")
    print("remember this; a cut or rewritten history shows only against it:")
    print(f"  hagane audit verify {o.ledger} --size {head.size} --root {head.root}")
    return 0


def head(argv: list[str]) -> int:
    """Run `hagane audit head`."""
    o = tyro.cli(SignHead, args=argv, prog="hagane audit head")
    signer = Signer(site_of(o.home).name, load_private(o.key))
    ledger = Ledger(o.home / "ledger.jsonl", signer=signer)
    if o.witness_keys is not None:
        trust = TrustStore(_folder(o.witness_keys))
        seen = witnessed_heads(o.heads, signer.site, public_of(signer.key), trust)
        if seen and not noted(ledger, seen[-1]):
            print(f"entry {note_witnessed(ledger, seen[-1])}: {seen[-1].head.size} entries are witnessed")
    signed = publish(ledger, signer, o.heads)
    print(f"{o.heads}: head of {signed.head.size} entries, signed by {signer.site}; pending until a witness signs it")
    return 0


def witness(argv: list[str]) -> int:
    """Run `hagane audit witness`."""
    o = tyro.cli(Countersign, args=argv, prog="hagane audit witness")
    member = Witness(o.memory, o.name, load_private(o.key))
    signed = witness_newest(_folder(o.heads), o.site, read_public(o.site_key), member)
    print(f"{o.heads}: {o.name} countersigned {signed.head.size} entries of {o.site}; give the folder back to the site")
    return 0


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError("no such folder", where=str(path), next_step="check the path")
    return path
