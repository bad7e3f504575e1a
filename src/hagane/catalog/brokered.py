"""The gate inside a jail: the broker outside decides, and writes the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hagane.catalog.gate import Gate
from hagane.seal import SignedContract
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

    desk: Desk = field(kw_only=True)
    """The broker's client."""

    def require(self, signed: SignedContract, dataset: str, digest: str, owner: str, purpose: str) -> None:
        """As `Gate.require`; the broker asks `permit` of the contract that lies outside."""
        decision = self.desk.ask(dataset, purpose)
        if not decision.allowed:
            raise self._refused(dataset, owner, decision)

    def note(self, kind: str, dataset: str, signed: SignedContract | None, body: Mapping[str, Any]) -> None:
        """As `Gate.note`; of a read the broker has a note already."""
        if kind != "read":
            contract = signed.digest if signed is not None else ""
            self.desk.note(kind, {"dataset": dataset, "contract": contract, "site": self.site.name, **body})
