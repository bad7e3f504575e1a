"""The gate inside a jail: the broker outside decides, and writes the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hagane.catalog.gate import Gate, refused
from hagane.seal import Ledger, Memory, SignedContract, Site
from hagane.terms import Decision


class Desk(Protocol):
    """What the broker's client does for a catalog."""

    def ask(self, dataset: str, purpose: str) -> Decision:
        """Whether a data set may be read for a purpose; noted. A yes opens the way to its keys."""
        ...

    def note(self, kind: str, body: Mapping[str, Any]) -> object:
        """Write down in the ledger what was done."""
        ...


@dataclass(frozen=True)
class BrokeredGate(Gate):
    """Judges nothing itself that counts: what code in a jail believes is no permission, keys are."""

    jailed: ClassVar[bool] = True
    desk: Desk
    """The broker's client."""

    def require(self, signed: SignedContract, dataset: str, digest: str, owner: str, purpose: str) -> None:
        """As `Gate.require`; the broker asks `permit` of the contract that lies outside."""
        decision = self.desk.ask(dataset, purpose)
        if not decision.allowed:
            raise refused(dataset, owner, decision)

    def accept(self, signed: SignedContract, dataset: str, digest: str, owner: str) -> None:
        """As `Gate.accept`; it is the keeper that remembers."""
        self.require_any(signed, dataset, digest, owner)

    def note(self, kind: str, dataset: str, signed: SignedContract | None, body: Mapping[str, Any]) -> None:
        """As `Gate.note`; of reads and of what comes in the keeper writes itself."""
        if kind not in ("read", "add"):
            contract = signed.digest if signed is not None else ""
            self.desk.note(kind, {"dataset": dataset, "contract": contract, "site": self.site.name, **body})


@dataclass(frozen=True)
class KeeperGate(Gate):
    """Judges outside, on behalf of the jail that the keeper starts."""

    jailed: ClassVar[bool] = True


def make_gate(
    site: Site, ledger: Ledger | None, today: Callable[[], date], memory: Path, desk: Desk | None, jailed: bool
) -> Gate:
    """The gate of a catalog.

    Args:
        site: where this process runs.
        ledger: gets refusals and reads where there is no desk.
        today: the date (UTC) that contracts are judged at.
        memory: file of what the site remembers of contracts and days.
        desk: who decides instead, in a jail.
        jailed: asked by a keeper, on behalf of the jail that it starts.
    """
    if desk is None:
        return (KeeperGate if jailed else Gate)(site, ledger, today, Memory(memory))
    return BrokeredGate(site, None, today, Memory(memory), desk)
