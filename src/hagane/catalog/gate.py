"""Gate: every request to read goes through here, is judged by `permit`, and is written to the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from hagane.seal import Ledger, SignedContract, Site, permit
from hagane.terms import Decision, Refused, Request


@dataclass(frozen=True)
class Gate:
    """Judges requests of one site."""

    site: Site
    """Where this process runs."""
    ledger: Ledger | None
    """Refusals and reads are appended to it; None keeps no record."""
    today: Callable[[], date]
    """The date that contracts are judged at."""

    def decide(self, signed: SignedContract | None, dataset: str, owner: str, purpose: str) -> Decision:
        """What `permit` answers; nothing is written down."""
        return permit(signed, self._request(dataset, owner, purpose))

    def require(self, signed: SignedContract | None, dataset: str, owner: str, purpose: str) -> None:
        """Go on only if the contract permits it.

        Raises:
            Refused: it does not; the refusal is in the ledger.
        """
        decision = self.decide(signed, dataset, owner, purpose)
        if not decision.allowed:
            self._refuse(self._request(dataset, owner, purpose), decision)

    def require_any(self, signed: SignedContract | None, dataset: str, owner: str) -> SignedContract:
        """The contract, if it grants at least one purpose here and today: data that nobody may read stays out.

        Raises:
            Refused: it grants nothing; the refusal is in the ledger.
        """
        purposes = signed.contract.purposes if signed is not None else ("view",)
        answers = [(p, self.decide(signed, dataset, owner, p)) for p in purposes]
        if signed is not None and any(decision.allowed for _, decision in answers):
            return signed
        purpose, decision = answers[0]
        raise self._refuse(self._request(dataset, owner, purpose), decision)

    def note(self, kind: str, dataset: str, signed: SignedContract | None, body: Mapping[str, Any]) -> None:
        """Write down what was done with a data set."""
        if self.ledger is not None:
            contract = signed.digest if signed is not None else ""
            self.ledger.append(kind, {"dataset": dataset, "contract": contract, "site": self.site.name, **body})

    def _request(self, dataset: str, owner: str, purpose: str) -> Request:
        return Request(dataset, owner, purpose, self.site.country, self.site.name, self.today())

    def _refuse(self, request: Request, decision: Decision) -> Refused:
        if self.ledger is not None:
            body = {**asdict(request), "today": str(request.today), "reason": decision.reason}
            self.ledger.append("refusal", body)
        raise self._refused(request.dataset, request.owner, decision)

    @staticmethod
    def _refused(dataset: str, owner: str, decision: Decision) -> Refused:
        next_step = f"ask {owner} for a contract that grants this, or leave the data set out"
        return Refused(decision.reason, where=dataset, next_step=next_step)
