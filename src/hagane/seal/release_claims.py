"""What code inside a jail says of weights, taken over only in fixed forms: digests, plain names, counts, shares.

No free text passes. What is still free in these forms is a few hundred bytes, counted in the record's `free_bits`.
"""

from __future__ import annotations

from typing import Any

from hagane.seal.contracts import is_digest
from hagane.seal.names import is_name
from hagane.seal.tensorfile import read_strictly, refusal, shown

MOST_BYTES = 2**24
"""Longest file that is read here."""
ATTACKS = ("loss", "calibrated")
"""Membership-inference attacks whose figures are known."""
_SHARES = ("auc", "low", "high", "tpr_at_1_percent")
_NOT_OF_FORM = (ValueError, KeyError, TypeError, AttributeError)


def lineage_of(manifest: bytes) -> dict[str, Any]:
    """Where weights come from, out of a manifest that is not believed: digests, plain names and numbers alone.

    It stays a claim of the code that trained, but it can hold no text: what is free in it is counted (`free_bits`).

    Raises:
        Refused: it is no manifest, or a part is not of its form.
    """
    try:
        raw = read_strictly(manifest)
        record = raw["record"]
        claim: dict[str, Any] = {
            "checkpoint": as_sha256(raw.get("source") or raw["id"]),
            "step": as_count(raw["step"]),
            "run": as_name(record["id"]),
            "config_digest": as_sha256(record["config_digest"]),
            "code_digest": as_sha256(record["code_digest"]),
            "datasets": {as_name(k): as_sha256(v) for k, v in record["datasets"].items()},
            "contracts": {as_name(k): as_sha256(v) for k, v in record["contracts"].items()},
            "owners": {as_name(k): as_name(v) for k, v in record["owners"].items()},
            "seed": as_count(record["seed"]),
            "steps": as_count(record["steps"]),
        }
        if not set(claim["datasets"]) == set(claim["contracts"]) == set(claim["owners"]):
            raise ValueError("its tables are not about the same data sets")
    except _NOT_OF_FORM as e:
        raise refusal(f"it is no manifest of digests, names and counts: {shown(str(e))}", "manifest.json") from None
    return claim


def membership_of(data: bytes) -> dict[str, Any]:
    """Figures of a membership-inference check, as `hagane release membership` writes them.

    Raises:
        Refused: not of its form.
    """
    try:
        raw = read_strictly(data, floats=True)
        rows = [_row(row) for row in raw["rows"]]
        if set(raw) != {"checkpoint", "rows"} or not 1 <= len(rows) <= 1000:
            raise ValueError("it holds other parts")
        return {"checkpoint": as_sha256(raw["checkpoint"]), "rows": rows}
    except _NOT_OF_FORM as e:
        raise refusal(f"these are no figures of a membership check: {shown(str(e))}", "membership") from None


def _row(row: dict[str, Any]) -> dict[str, Any]:
    if set(row) != {"dataset", "attack", "members", "others", *_SHARES} or row["attack"] not in ATTACKS:
        raise ValueError("a row has other parts")
    named = {"dataset": as_name(row["dataset"]), "attack": str(row["attack"])}
    counts = {key: as_count(row[key]) for key in ("members", "others")}
    return {**named, **counts, **{key: as_share(row[key]) for key in _SHARES}}


def as_share(value: object) -> float:
    """A number from 0 to 1 with at most four decimals.

    Raises:
        ValueError: it is none.
    """
    if type(value) not in (int, float) or not 0 <= (share := float(value)) <= 1 or round(share, 4) != share:  # type: ignore[arg-type]
        raise ValueError(f"{value!a:.80} is no share of four decimals")
    return share


def as_sha256(value: object) -> str:
    """64 hex digits.

    Raises:
        ValueError: it is none.
    """
    if not is_digest(value):
        raise ValueError(f"{value!a:.80} is no sha256")
    return str(value)


def as_name(value: object) -> str:
    """A plain name (`is_name`).

    Raises:
        ValueError: it is none.
    """
    if not is_name(value):
        raise ValueError(f"{value!a:.80} is no plain name")
    return str(value)


def as_count(value: object) -> int:
    """A whole number from 0 that fits 63 bits.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!a:.80} is no count")
    return value
