"""One line of a ledger: how an entry is written, read strictly, and how many are checked quickly.

    {"entry":{"index":7,"time_ns":1790000000000000000,"type":"read","what":{...}},"leaf":"<sha256>"}

The line is canonical JSON. The Merkle leaf is over the exact bytes between `{"entry":` and `,"leaf":`, so a line is
checked without parsing it, and a changed byte in it shows without any other record. A signed entry has
`"what_signed"`, a DSSE envelope of an in-toto Statement, in the place of `"what"`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hagane.seal.envelope import Envelope, envelope_table, read_envelope_table, sign_payload, verify_envelope
from hagane.seal.merkle import leaf_hash
from hagane.seal.statement import PAYLOAD_TYPE, Statement, read_statement
from hagane.terms import ContractError, canonical_json

_START, _MIDDLE, _END = b'{"entry":', b',"leaf":"', b'"}\n'
_TAIL = len(_MIDDLE) + 64 + len(_END)
_TIME_DIGITS = 19  # of Unix nanoseconds from 2001 to 2286
_NEW_LEAF = hashlib.sha256(b"\x00").copy


@dataclass(frozen=True)
class Entry:
    """One line of a ledger, its hash already checked."""

    index: int
    """Place in the ledger, from 0."""
    kind: str
    """What happened: "contract", "refusal", "run", "checkpoint"..."""
    time_ns: int
    """When, Unix nanoseconds; never before the entry above it."""
    body: Mapping[str, Any]
    """The facts, as JSON."""
    set_back_ns: int = 0
    """How far the clock stood before the ledger's time; the entry took the ledger's time instead."""
    envelope: Envelope | None = None
    """The signature as it was written; None when the site has no host key. Not verified yet: `signed_by`."""


class BadLineError(Exception):
    """A line is not one that was written here."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position
        """Place among the lines that were checked, from 0."""


@dataclass(frozen=True)
class Signer:
    """Who signs a ledger's entries."""

    site: str
    """Name of the site."""
    key: Ed25519PrivateKey
    """Its host key."""


def write_line(entry: Entry, signer: Signer | None = None) -> bytes:
    """An entry as a line, signed when there is a signer.

    Raises:
        TypeError, ValueError, RecursionError: the body is no JSON table, the kind no word, or both too deep.
    """
    if not isinstance(entry.kind, str) or not entry.kind or not isinstance(entry.body, Mapping):
        raise TypeError("kind must be a word and body a table")
    facts = json.loads(canonical_json(entry.body), parse_constant=_refuse)
    table: dict[str, Any] = {"index": entry.index, "time_ns": entry.time_ns, "type": entry.kind}
    if entry.set_back_ns:
        table["time_set_back_ns"] = entry.set_back_ns
    if signer is None:
        table["what"] = facts
    else:
        payload = Statement(entry.kind, signer.site, entry.index, entry.time_ns, facts).payload()
        table["what_signed"] = envelope_table(sign_payload(PAYLOAD_TYPE, payload, signer.key))
    data = canonical_json(table)
    line = _START + data + _MIDDLE + leaf_hash(data).hex().encode() + _END
    read_line(line)  # read back once before it is believed
    return line


def read_line(line: bytes) -> Entry:
    """The entry in a line: every byte must be the one that `write_line` writes.

    Raises:
        BadLineError: it is not.
    """
    try:
        data = line[len(_START) : -_TAIL]
        table = json.loads(data, parse_constant=_refuse)
        if canonical_json(table) != data or line != _line_of(data):
            raise ValueError("not the exact bytes")
        index, time_ns, kind = table.pop("index"), table.pop("time_ns"), table.pop("type")
        back = table.pop("time_set_back_ns", 0)
        if type(index) is not int or type(time_ns) is not int or type(back) is not int or type(kind) is not str:
            raise TypeError("a field of another type")
        if "what" in table:
            body, envelope = table.pop("what"), None
        else:
            signed = table.pop("what_signed")
            envelope = read_envelope_table(signed)
            said = read_statement(envelope)
            body = said.facts
            if envelope_table(envelope) != signed or (said.kind, said.index, said.time_ns) != (kind, index, time_ns):
                raise ValueError("signed for another place")
        if table or not isinstance(body, dict) or not kind or back < 0:
            raise ValueError("not an entry's fields")
    except (ValueError, KeyError, TypeError, RecursionError, ContractError):
        raise BadLineError(0) from None
    return Entry(index, kind, time_ns, body, back, envelope)


def signed_by(entry: Entry, site: str, key: Ed25519PublicKey) -> bool:
    """True when a site signed the entry with the host key whose public half is given."""
    if entry.envelope is None or not verify_envelope(entry.envelope, key):
        return False
    said = read_statement(entry.envelope)
    return said == Statement(entry.kind, site, entry.index, entry.time_ns, entry.body)


def check_lines(lines: Sequence[bytes], first: int, floor_ns: int) -> tuple[list[bytes], int]:
    """Leaf hashes of neighbouring lines, each checked against its own line, and the last time.

    Order and times are checked too. JSON is parsed only where the quick look does not decide: a line whose hash holds
    but that is no canonical JSON (nothing here writes one) is found when it is read.

    Raises:
        BadLineError: the first line that was changed, or is out of place.
    """
    found = _quickly(lines, first, floor_ns)
    if found is not None:
        return found
    leaves = []
    for position, line in enumerate(lines):
        try:
            entry = read_line(line)
        except BadLineError:
            raise BadLineError(position) from None
        if entry.index != first + position or entry.time_ns < floor_ns:
            raise BadLineError(position)
        floor_ns = entry.time_ns
        leaves.append(leaf_hash(line[len(_START) : -_TAIL]))
    return leaves, floor_ns


def _quickly(lines: Sequence[bytes], first: int, floor_ns: int) -> tuple[list[bytes], int] | None:
    """As `check_lines` where all lines have the usual form; None when one has not, whatever the reason."""
    heads = [b'{"entry":{"index":%d,"time_ns":' % i for i in range(first, first + len(lines))]
    width = len(heads[0])
    if len(heads[-1]) != width or [line[:width] for line in lines] != heads:
        return None
    times = [line[width : width + _TIME_DIGITS] for line in lines]
    digits = b"".join(times)
    commas = {line[width + _TIME_DIGITS : width + _TIME_DIGITS + 8] for line in lines}
    if not digits.isdigit() or digits[:1] == b"0" or len(digits) != _TIME_DIGITS * len(lines):
        return None
    if not commas <= {b',"type":', b',"time_s'} or sorted(times) != times or int(times[0]) < floor_ns:
        return None
    hashes, start, new = [], len(_START), _NEW_LEAF
    for line in lines:
        h = new()
        h.update(line[start:-_TAIL])
        hashes.append(h)
    tails = [b',"leaf":"%b"}\n' % h.hexdigest().encode() for h in hashes]
    if [line[-_TAIL:] for line in lines] != tails:
        return None
    return [h.digest() for h in hashes], int(times[-1])


def _line_of(data: bytes) -> bytes:
    return _START + data + _MIDDLE + leaf_hash(data).hex().encode() + _END


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
