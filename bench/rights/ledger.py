"""A ledger of many entries: verifying it beside a plain sha256 of the same bytes, and proving one entry.

    python bench/rights/ledger.py [--entries 1000000] [--signed] [--out FILE.json]

Rounds of all four are taken in turns in one process: `sha256` reads the same file through one hash; `two calls` is what
RFC 9162 asks of hashlib at the least, one call for each leaf and one for each node, on bytes that lie ready in memory;
`verify` is `Ledger.verify`. Medians of CPU seconds (wall in brackets) and ratios; proofs are wall milliseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import Entry, Ledger, Signer, check_proof
from hagane.seal.entry import write_line

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


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(path: Path, entries: int, rounds: int) -> dict[str, object]:
    ledger, floor = Ledger(path), two_calls(path)
    scale = entries / 20_000
    rows: dict[str, list[tuple[float, float]]] = {"sha256": [], "two calls": [], "verify": []}
    for _ in range(rounds):
        rows["sha256"].append(seconds(lambda: plain(path)))
        cpu, wall = seconds(floor)
        rows["two calls"].append((cpu * scale, wall * scale))
        rows["verify"].append(seconds(ledger.verify))
    cpu_s = {name: statistics.median(cpu for cpu, _ in row) for name, row in rows.items()}
    wall_s = {name: statistics.median(wall for _, wall in row) for name, row in rows.items()}
    first = seconds(lambda: ledger.prove(0))
    root, rng, proofs = ledger.root(), random.Random(9162), []
    for _ in range(200):
        index = rng.randrange(entries)
        fresh = Ledger(path)  # a process that has read nothing yet
        start = time.perf_counter()
        proof = fresh.prove(index)
        proofs.append((time.perf_counter() - start) * 1000)
        assert check_proof(proof, root)
    proofs.sort()
    return {
        "entries": entries,
        "bytes": path.stat().st_size,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "verify_over_sha256": statistics.median(
            v[0] / s[0] for v, s in zip(rows["verify"], rows["sha256"], strict=True)
        ),
        "verify_over_two_calls": statistics.median(
            v[0] / s[0] for v, s in zip(rows["verify"], rows["two calls"], strict=True)
        ),
        "first_proof_cpu_s": first[0],
        "proof_ms": {"median": statistics.median(proofs), "p99": proofs[197], "most": proofs[-1]},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.0f}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--signed", action="store_true", help="entries signed by a host key")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        write(path, o.entries, o.signed)
        found = {"signed": o.signed, **measure(path, o.entries, o.rounds)}
    text = json.dumps(found, indent=1)
    print(text)
    if o.out:
        o.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
