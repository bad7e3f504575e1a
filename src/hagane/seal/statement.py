"""The in-toto Statement that carries what a ledger's entry says.

A signed entry holds an in-toto Statement v1 (github.com/in-toto/attestation): its subjects are all that the facts name
by sha256, its predicate the facts with site, place and time. The predicate's type is a name under `.invalid` (RFC
2606), so that no reader tries to fetch it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hagane.seal.envelope import Envelope
from hagane.terms import ContractError, canonical_json, digest_value

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATES = "https://hagane.invalid/ledger/v1/"
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Statement:
    """What a site says in one entry of its ledger."""

    kind: str
    """Kind of the entry."""
    site: str
    """Name of the site that says it."""
    index: int
    """Place in the site's ledger, so that the signature cannot be used at another."""
    time_ns: int
    """When, Unix nanoseconds."""
    facts: Mapping[str, Any]
    """The entry's body, as JSON."""

    def payload(self) -> bytes:
        """The in-toto Statement as canonical JSON: the bytes that are signed."""
        named = sorted(_digests(self.facts, ()))
        if not named:  # a Statement is about something: then about its own facts
            named = [(self.kind, digest_value(self.facts))]
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in named],
                "predicateType": PREDICATES + self.kind,
                "predicate": {"site": self.site, "index": self.index, "time_ns": self.time_ns, "facts": self.facts},
            }
        )


def read_statement(envelope: Envelope) -> Statement:
    """The statement in an envelope; its signature is another question (`verify_envelope`).

    Raises:
        ContractError: no Statement of a ledger in exactly the form that `Statement.payload` writes.
    """
    try:
        table = json.loads(envelope.payload)
        said = table["predicate"]
        kind = table["predicateType"].removeprefix(PREDICATES)
        out = Statement(kind, said["site"], said["index"], said["time_ns"], said["facts"])
        exact = envelope.payload_type == PAYLOAD_TYPE and out.payload() == envelope.payload
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        exact = False
    if not exact:
        raise ContractError("the signed text is no statement of a ledger")
    return out


def _digests(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(dotted name, digest) of every text in the facts that is a sha256."""
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            yield ".".join(path), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _digests(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _digests(inner, (*path, str(place)))
