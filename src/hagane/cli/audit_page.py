"""What every audit prints: lines, problems, and the entries with their proofs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hagane.cli.audit_books import Books
from hagane.cli.recorded import Recording
from hagane.seal import Entry
from hagane.seal.lineage import checkpoint_in
from hagane.terms import ConfigError
from hagane.terms.files import write_whole


@dataclass
class Page:
    """What is printed, and what was found wrong."""

    problems: int = 0
    """Places where the chain does not join."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same for other programs."""

    def say(self, what: str, text: str) -> None:
        """A line."""
        print(f"{what:<11} {text}")

    def problem(self, text: str) -> None:
        """A line about something wrong."""
        self.problems += 1
        self.facts.setdefault("problems", []).append(text)
        print(f"  PROBLEM   {text}")


def print_evidence(books: Books, used: list[int], to: Path | None = None, page: Page | None = None) -> None:
    """Print the entries that were used with their proofs; write facts and proofs for others to check."""
    for line in books.words():
        print(line)
    found = books.prove(used)
    for one in found[:24]:
        print(f"  {one}")
    if len(found) > 24:
        print(f"  and {len(found) - 24} more entries, all proved")
    if to is not None:
        rows = [
            {"entry": e.index, "kind": e.kind, "leaf": e.proof.leaf, "path": list(e.proof.path)}
            | {"size": e.head.size, "root": e.head.root, "countersigned": list(e.by)}
            for e in found
        ]
        head = {"size": books.head.size, "root": books.head.root}
        told = {**(page.facts if page else {}), "head": head, "proofs": rows}
        try:
            write_whole(to, [json.dumps(told, indent=1).encode() + b"\n"])
        except OSError as e:
            raise ConfigError(f"cannot be written: {e.strerror}", where=str(to)) from None


def served_actions(books: Books, recording: Recording) -> tuple[list[Entry], list[str]]:
    """Entries that answer for a recording's actions, and why they do not, where so: then none of them is traced."""
    lineage, problems = books.lineage, []
    noted = [e for e in lineage.recordings if e.body.get("root_sha256") == recording.root]
    if not noted:
        problems.append("no entry names this recording's root: it was changed, or never noted")
    until = noted[0].index if noted else lineage.size
    served = [
        e
        for e in lineage.deployments
        if (e.body.get("machine"), checkpoint_in(e)) == (recording.machine, recording.checkpoint) and e.index < until
    ]
    if not served:
        problems.append(f"no deployment of this checkpoint on {recording.machine!r} was noted before the recording")
    if noted and checkpoint_in(noted[0]) != recording.checkpoint:
        problems.append("the entry names another checkpoint")
    return noted[:1] + served, problems


def when(entry: Entry) -> str:
    """Time of an entry, UTC."""
    return datetime.fromtimestamp(entry.time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
