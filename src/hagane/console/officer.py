"""The officer's page: whose data a site holds, under which terms, where it went, and how sure that is. One file, in
Japanese and English, for somebody who reads no logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from hagane.console.officer_words import BEYOND, CLASSES, PROTECTION, PURPOSES, Both
from hagane.console.page import short
from hagane.console.report import render_page, write_page
from hagane.seal import Entry, Head, SignedContract, Site
from hagane.seal.lineage import Lineage, SetTrace, checkpoint_in
from hagane.terms import Contract, ContractError

_MOST_ROWS = 500


@dataclass(frozen=True)
class OfficerFacts:
    """What the page is made of; all of it verified by whoever hands it over."""

    site: Site
    """The site."""
    lineage: Lineage
    """Its ledger, joined."""
    head: Head
    """Its ledger's head."""
    covered: int
    """Entries that other members countersigned."""
    witnesses: tuple[tuple[str, int], ...]
    """(Member, Unix seconds) of the newest countersigned head."""
    contracts: Mapping[str, SignedContract | ContractError]
    """By sha256, or why one does not count."""
    signatures: tuple[int, int] | None
    """(Entries signed by the site, unsigned ones after the first); None when they were not checked."""
    today: date
    """Day that contracts are judged at."""


@dataclass(frozen=True)
class SetCard:
    """One data set, ready to print."""

    name: str
    """Its name."""
    owner: str
    """Its owner; "" when no contract at hand says."""
    contract: Contract | None
    """Its newest contract at hand."""
    digest: str
    """sha256 of that contract."""
    state: str
    """held, expired, withdrawn, erased or unknown."""
    purposes: tuple[Both, ...]
    """What the contract grants."""
    class_: Both
    """What withdrawing means."""
    protection: Both
    """How it is kept."""
    reads: tuple[tuple[Both, int, str, str], ...]
    """(Purpose, times read, first day, last day)."""
    sites: tuple[str, ...]
    """Where it was read."""
    runs: tuple[tuple[str, bool], ...]
    """(Run, whether it holds the data only by way of a run that it started from)."""
    models: tuple[str, ...]
    """Ids of checkpoints with it behind them."""
    machines: tuple[str, ...]
    """Machines that run such checkpoints."""


def write_officer_page(out: Path, facts: OfficerFacts) -> None:
    """Write the page, whole or not at all.

    Raises:
        StoreError: the page cannot be written.
    """
    html = render_page("officer.html.j2", ("report.css", "officer.css"), ("digests.js", "officer.js"), context(facts))
    write_page(out, html.encode("utf-8", errors="replace"))


def context(facts: OfficerFacts) -> dict[str, Any]:
    """Everything that the template names."""
    lineage = facts.lineage
    cards = [_card(facts, lineage.sets[name]) for name in sorted(lineage.sets)]
    refusals = [e for one in lineage.sets.values() for e in one.of("refusal")]
    machines = _machines(lineage)
    left = [_left(e) for e in lineage.exports[-_MOST_ROWS:]]
    return {
        "site": facts.site,
        "head": facts.head,
        "cards": cards,
        "owners": len({c.owner for c in cards if c.owner}),
        "machines": machines,
        "machine_count": len({m["machine"] for m in machines}),
        "models": len(lineage.made),
        "left": left,
        "left_count": sum(not row["refused"] for row in left),
        "refusals": [_refusal(e) for e in _in_order(refusals)],
        "erased": [_erased(lineage, one, e) for one in lineage.sets.values() for e in one.of("erase")],
        "withdrawn": [(one.name, day(e)) for one in lineage.sets.values() for e in one.of("withdrawal")],
        "covered": facts.covered,
        "pending": facts.head.size - facts.covered,
        "witnesses": [(name, _date(seconds)) for name, seconds in facts.witnesses],
        "signatures": facts.signatures,
        "sites": sorted(lineage.sites | {facts.site.name}),
        "problems": lineage.problems() + _without_contract(cards),
        "today": facts.today.isoformat(),
        "beyond": BEYOND,
        "short": short,
    }


def _card(facts: OfficerFacts, one: SetTrace) -> SetCard:
    digest, contract = _contract(facts, one)
    down = facts.lineage.descendants(one.name)
    runs = {r.name: False for r in facts.lineage.runs.values() if one.name in {*r.stated, *r.read}}
    runs |= {run.name: True for run, by_way_of in down.values() if by_way_of and run.name not in runs}
    machines = {str(e.body.get("machine")) for e in facts.lineage.deployments if checkpoint_in(e) in down}
    counts: Counter[str] = Counter()
    days: dict[str, list[str]] = {}
    for e in one.of("read", "ask"):
        purpose = str(e.body.get("purpose"))
        counts[purpose] += 1
        days.setdefault(purpose, []).append(day(e))
    words = contract.purposes if contract else ()
    return SetCard(
        one.name,
        contract.owner if contract else next((str(e.body.get("owner") or "") for e in one.of("refusal")), ""),
        contract,
        digest,
        _state(facts, one, contract),
        tuple(_words(PURPOSES, p) for p in words),
        _words(CLASSES, contract.withdrawal if contract else ""),
        _words(PROTECTION, contract.protection if contract else ""),
        tuple((_words(PURPOSES, p), n, days[p][0], days[p][-1]) for p, n in counts.items()),
        tuple(sorted({str(e.body["site"]) for e in one.of("read") if e.body.get("site")})),
        tuple(runs.items()),
        tuple(down),
        tuple(sorted(machines)),
    )


def _contract(facts: OfficerFacts, one: SetTrace) -> tuple[str, Contract | None]:
    """The newest contract that an entry about the data set names and that is at hand and signed."""
    found = [str(e.body.get("contract") or "") for e in one.of("add", "renew", "read")]
    for digest in reversed(found):
        signed = facts.contracts.get(digest)
        if isinstance(signed, SignedContract) and one.name in signed.contract.datasets:
            return digest, signed.contract
    return (found[-1] if found else ""), None


def _state(facts: OfficerFacts, one: SetTrace, contract: Contract | None) -> str:
    if one.of("erase"):
        return "erased"
    if one.of("withdrawal"):
        return "withdrawn"
    if not one.of("add", "renew", "read"):
        return "refused" if one.of("refusal") else "unknown"
    if contract is None:
        return "unknown"
    return "expired" if facts.today > contract.until else "held"


def _without_contract(cards: Sequence[SetCard]) -> list[str]:
    """Data that is here, or in models, and whose signed contract is not at hand."""
    return [f"{c.name!r}: no contract signed by its owner is at hand" for c in cards if c.state == "unknown"]


def _machines(lineage: Lineage) -> list[dict[str, Any]]:
    """Deployments, one row a machine, checkpoint and limits, the newest first."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for e in lineage.deployments:
        checkpoint, limits = checkpoint_in(e), str(e.body.get("envelope_sha256") or "")
        runs, broken = lineage.behind(checkpoint)
        row = rows.setdefault(
            (str(e.body.get("machine")), checkpoint, limits),
            {
                "machine": str(e.body.get("machine")),
                "checkpoint": checkpoint,
                "limits": limits,
                "first": day(e),
                "run": next(iter(runs), ""),
                "sets": sorted({n for r in runs.values() for n in (*r.stated, *r.read)}),
                "broken": bool(broken),
                "times": 0,
            },
        )
        row["times"] += 1
        row["last"] = day(e)
    return list(rows.values())[::-1][:_MOST_ROWS]


def _left(entry: Entry) -> dict[str, Any]:
    body = entry.body
    return {
        "day": day(entry),
        "kind": "page" if entry.kind == "left" else "weights" if body.get("what") == "weights" else "data",
        "what": str(body.get("dataset") or ", ".join(_sets_in(body)) or body.get("what") or ""),
        "to": str(body.get("file") or body.get("out") or body.get("to") or ""),
        "digest": str(body.get("sha256") or body.get("manifest") or body.get("statement_sha256") or ""),
        "bytes": body.get("bytes") or body.get("size_bytes"),
        "refused": body.get("allowed") is False,
        "reason": str(body.get("reason") or ""),
        "entry": entry.index,
    }


def _refusal(entry: Entry) -> dict[str, Any]:
    purpose = str(entry.body.get("purpose"))
    return {
        "day": day(entry),
        "dataset": str(entry.body.get("dataset")),
        "owner": str(entry.body.get("owner") or ""),
        "purpose": _words(PURPOSES, purpose),
        "reason": str(entry.body.get("reason")),
        "entry": entry.index,
    }


def _erased(lineage: Lineage, one: SetTrace, entry: Entry) -> dict[str, Any]:
    down = lineage.descendants(one.name)
    return {
        "name": one.name,
        "day": day(entry),
        "entry": entry.index,
        "models": [(checkpoint, run.name) for checkpoint, (run, _) in down.items()],
        "left": [_left(e) for e in lineage.exports if e in one.of("export", "left") or _inside(e) in down],
    }


def _sets_in(body: Mapping[str, Any]) -> list[str]:
    """Data sets behind weights that left."""
    lineage = body.get("lineage")
    sets = lineage.get("datasets") if isinstance(lineage, Mapping) else None
    return sorted(map(str, sets)) if isinstance(sets, Mapping | list) else []


def _inside(entry: Entry) -> str:
    """Id of the checkpoint whose weights left; "" for what holds none."""
    lineage = entry.body.get("lineage")
    return str(lineage.get("checkpoint")) if isinstance(lineage, Mapping) else ""


def day(entry: Entry) -> str:
    """Day of an entry, UTC."""
    return _date(entry.time_ns // 10**9)


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _in_order(entries: Iterable[Entry]) -> Sequence[Entry]:
    return sorted(entries, key=lambda e: e.index)[-_MOST_ROWS:]


def _words(table: Mapping[str, Both], key: str) -> Both:
    return table.get(key, Both(key, key))
