"""A ledger of many entries: verifying it beside a plain sha256 of the same bytes, and proving one entry.

Rounds of all three are taken in turns, in one process: `sha256` reads the same file through one hash; `two calls` is
what RFC 9162 asks of hashlib at the least, one call for each leaf and one for each node, on bytes that lie ready in
memory; `verify` is `Ledger.verify`.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.rights.measured import Figure
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import Entry, Ledger, Signer, check_proof
from hagane.seal.entry import write_line
from hagane.terms import HaganeError

T0_NS = 1_790_000_000 * 10**9


def write(path: Path, entries: int, signed: bool) -> None:
    """A ledger of reads; each block of lines is written at once."""
    signer = Signer("plant-7", Ed25519PrivateKey.generate()) if signed else None
    digest = hashlib.sha256(b"content").hexdigest()
    with path.open("wb") as f:
        for i in range(entries):
            body = {
                "dataset": f"road-{i % 97}", "contract_sha256": digest, "content_sha256": digest,
                "purpose": "anchor", "site": "plant-7",
            }  # fmt: skip
            f.write(write_line(Entry(i, "read", T0_NS + i, body), signer))


def plain(path: Path) -> None:
    with path.open("rb") as f:
        hashlib.file_digest(f, "sha256")


def two_calls(path: Path) -> Callable[[], None]:
    with path.open("rb") as f:
        lines = [f.readline() for _ in range(20_000)]
    node, sha256 = bytes(65), hashlib.sha256

    def run() -> None:
        for line in lines:
            sha256(line).digest()
            sha256(node).digest()

    return run


def cpu_s(run: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(folder: Path, entries: int = 1_000_000, rounds: int = 5, signed: bool = False) -> list[Figure]:
    """Rows of the table.

    Args:
        folder: new.
        entries: of the ledger.
        rounds: of all three ways, in turns.
        signed: each entry by a host key.

    Raises:
        HaganeError: a proof does not lead to the root.
    """
    folder.mkdir()
    path = folder / "ledger.jsonl"
    write(path, entries, signed)
    ledger, floor = Ledger(path), two_calls(path)
    scale = entries / 20_000
    rows: dict[str, list[float]] = {"sha256": [], "two calls": [], "verify": []}
    for _ in range(rounds):
        rows["sha256"].append(cpu_s(lambda: plain(path)))
        rows["two calls"].append(cpu_s(floor) * scale)
        rows["verify"].append(cpu_s(ledger.verify))
    plain_s, calls_s, verify_s = (statistics.median(row) for row in rows.values())
    over_plain, over_calls = (
        statistics.median(v / s for v, s in zip(rows["verify"], rows[name], strict=True))
        for name in ("sha256", "two calls")
    )
    first_s = cpu_s(lambda: ledger.prove(0))
    root, rng = ledger.root(), random.Random(9162)
    proofs_ms = sorted(prove(path, rng.randrange(entries), root) for _ in range(200))
    of = f"{entries:,} entries, {path.stat().st_size / 1e6:.0f} MB"
    return [
        Figure("ledger: verify / plain sha256 of the file", "x", over_plain,
               f"{of}; CPU, median of {rounds}: {verify_s:.3g} and {plain_s:.3g} s"),
        Figure("ledger: verify / the two hash calls an entry that RFC 9162 asks for", "x", over_calls,
               f"{of}; CPU, median of {rounds}: {verify_s:.3g} and {calls_s:.3g} s"),
        Figure("ledger: a proof of one entry", "ms", statistics.median(proofs_ms),
               f"{of}; wall, median of 200, each by a fresh reader; 99%: {proofs_ms[197]:.3g}; "
               f"the first of all {first_s:.2g} CPU s", 5.0),
    ]  # fmt: skip


def prove(path: Path, index: int, root: str) -> float:
    """Wall milliseconds of one proof, by a reader that has read nothing yet.

    Raises:
        HaganeError: the proof does not lead to the root.
    """
    fresh, begin = Ledger(path), time.perf_counter()
    proof = fresh.prove(index)
    took_ms = (time.perf_counter() - begin) * 1e3
    if not check_proof(proof, root):
        raise HaganeError(f"the proof of entry {index} does not lead to the ledger's root", where=str(path))
    return took_ms
