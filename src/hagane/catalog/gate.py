"""Gate: every request to read goes through here, is judged by `permit`, and is written to the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, ClassVar

from hagane.seal import Ledger, Memory, SignedContract, Site, permit, request_at
from hagane.seal.memory import NEVER, ledger_day
from hagane.terms import Decision, Refused, Request


@dataclass(frozen=True)
class Gate:
    """Judges requests of one site."""

    jailed: ClassVar[bool] = False
    """Whether data is opened in a jail only."""
    site: Site
    """Where this process runs."""
    ledger: Ledger | None
    """Refusals and reads are appended to it; None keeps no record."""
    today: Callable[[], date]
    """The date (UTC) that contracts are judged at."""
    memory: Memory
    """What the site remembers of contracts and days."""
    run: str = field(default="", kw_only=True)
    """Run that reads; its entries name it."""

    def decide(self, signed: SignedContract | None, dataset: str, digest: str, owner: str, purpose: str) -> Decision:
        """What `permit` answers; nothing is written down."""
        return permit(signed, self._request(dataset, digest, owner, purpose))

    def require(self, signed: SignedContract, dataset: str, digest: str, owner: str, purpose: str) -> None:
        """Go on only if the contract permits it.

        Raises:
            Refused: it does not; the refusal is in the ledger.
        """
        request = self._request(dataset, digest, owner, purpose)
        decision = permit(signed, request)
        if not decision.allowed:
            raise self._refuse(request, decision)
        if self.ledger is not None:
            self.memory.take(signed, dataset, request.today)

    def require_any(self, signed: SignedContract | None, dataset: str, digest: str, owner: str) -> SignedContract:
        """The contract, if it grants at least one purpose here and today: data that nobody may read stays out.

        Args:
            signed: the contract.
            dataset: name of the data set.
            digest: its content; "" while it is not known: then it is taken to be what the contract says.
            owner: its owner.

        Raises:
            Refused: it grants nothing; the refusal is in the ledger.
        """
        if signed is not None and not digest:
            digest = signed.contract.digests.get(dataset, "")
        purposes = signed.contract.purposes if signed is not None else ("view",)
        requests = [self._request(dataset, digest, owner, purpose) for purpose in purposes]
        answers = [permit(signed, request) for request in requests]
        if signed is not None and any(decision.allowed for decision in answers):
            return signed
        raise self._refuse(requests[0], answers[0])

    def accept(self, signed: SignedContract, dataset: str, digest: str, owner: str) -> None:
        """Take a contract for data whose content is known: from now on no older one about it counts here.

        Raises:
            Refused: it grants nothing of this content here and today; the refusal is in the ledger.
        """
        self.require_any(signed, dataset, digest, owner)
        self.memory.take(signed, dataset, self.today())

    def note(self, kind: str, dataset: str, signed: SignedContract | None, body: Mapping[str, Any]) -> None:
        """Write down what was done with a data set."""
        if self.ledger is not None:
            about = {"contract": signed.digest if signed is not None else "", "site": self.site.name}
            self.ledger.append(kind, {"dataset": dataset, **about, **({"run": self.run} if self.run else {}), **body})

    def _request(self, dataset: str, digest: str, owner: str, purpose: str) -> Request:
        asked = (dataset, digest, owner, purpose)
        seen = ledger_day(self.ledger.path) if self.ledger is not None else NEVER
        return request_at(self.site, self.memory, *asked, jailed=self.jailed, today=self.today(), seen=seen)

    def _refuse(self, request: Request, decision: Decision) -> Refused:
        if self.ledger is not None:
            days = {"today": str(request.today), "last_day": str(request.last_day)}
            self.ledger.append("refusal", {**asdict(request), **days, "reason": decision.reason})
        return refused(request.dataset, request.owner, decision)


def refused(dataset: str, owner: str, decision: Decision) -> Refused:
    """The error of a refusal."""
    next_step = f"ask {owner} for a contract that grants this, or leave the data set out"
    return Refused(decision.reason, where=dataset, next_step=next_step)
