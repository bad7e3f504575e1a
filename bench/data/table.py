"""The results as a table for a terminal and for Markdown; the ratios and floors that the project is held to.

python bench/data/table.py bench/results/data-YYYY-MM-DD.json [--markdown]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

FLOOR_RATIO, FLOOR_SHARE = 12.0, 0.85


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Ours over the peer's, round by round (medians), and the share of the decode ceiling of the same rounds."""
    passes = result["passes"]
    rates = {n: [p["samples"] / p["cpu_s"] for p in told] for n, told in passes.items()}
    if "hagane" not in rates:
        return {}
    ours = rates.pop("hagane")

    def over(name: str) -> float:
        return round(statistics.median(a / b for a, b in zip(ours, rates[name], strict=True)), 3)

    found: dict[str, Any] = {f"over {n}": over(n) for n in rates if n != "ceiling"}
    modes = [n for n in rates if n.startswith("lerobot")]
    if modes:
        found["best mode of lerobot"] = max(modes, key=lambda n: statistics.median(rates[n]))
        found["over best mode of lerobot"] = over(found["best mode of lerobot"])
    if "ceiling" in rates:
        found["share of the decode ceiling"] = over("ceiling")
    return found


def text(result: dict[str, Any], markdown: bool = False) -> str:
    """The table."""
    heads = ["", "samples/CPU s", "min..max", "ours is", "B/sample", "MB/CPU s", "2 workers/s", "gives", "notes"]
    lines = [heads]
    for name, row in result["rows"].items():
        if "samples_per_cpu_s" in row:
            lines.append([name, *_cells(name, row, result["ratios"])])
        else:
            lines.append([name, "-", "", "", "", "", "", "", row.get("problem", "not measured")])
    ceiling = result.get("ceiling")
    if ceiling:
        at = 1 + list(result["rows"]).index("hagane")
        lines.insert(at + 1, ["decoding alone", *_span(ceiling), "", "", "", "", "uint8", "the ceiling"])
    kind = result["machine"]
    load = result["load_average"]
    head = f"{result['date']}, {kind['cpu']}, {kind['cores']} cores, Python {kind['python']}, "
    head += f"load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after"
    head += f", JPEGs of {result['data']['picture_bytes'] / 1000:.1f} KB"
    body = _markdown(lines) if markdown else _plain(lines)
    return "\n".join([head, "", *body, "", *_verdicts(result["ratios"])])


def _span(told: dict[str, float]) -> list[str]:
    return [f"{told['median']:,.0f}", f"{told['min']:,.0f}..{told['max']:,.0f}"]


def _cells(name: str, row: dict[str, Any], told: dict[str, Any]) -> list[str]:
    ratio = told.get(f"over {name}")
    workers = row.get("samples_per_s_2_workers")
    return [
        *_span(row["samples_per_cpu_s"]),
        f"{ratio:.1f} x" if ratio else "",
        f"{row['bytes_per_sample']:,}",
        f"{row['stored_mb_per_cpu_s']:.1f}",
        f"{workers['median']:,.0f}" if workers else "-",
        row["facts"]["dtype"],
        _notes(row),
    ]


def _notes(row: dict[str, Any]) -> str:
    facts = row["facts"]
    notes = [f"pictures {row['check']['worst_psnr_db']} dB at least"]
    if facts.get("video_backend") and facts.get("decoders"):
        notes.append(f"decoder {facts['video_backend']}")
    if facts.get("pictures_per_sample", 2) > 2:
        notes.append(f"decodes {facts['pictures_per_sample']} pictures a sample")
    notes += [facts[k] for k in ("order", "decoder") if k in facts]
    if "no_workers" in row:
        notes.append(f"no workers: {row['no_workers']}"[:60])
    return ", ".join(notes)


def _verdicts(told: dict[str, Any]) -> list[str]:
    lines = []
    if "over lerobot av1" in told:
        ratio, best = told["over lerobot av1"], told["over best mode of lerobot"]
        held = "held" if ratio >= FLOOR_RATIO else "MISSED"
        lines.append(f"{ratio:.1f} x LeRobot's default (floor {FLOOR_RATIO:g}: {held}); ")
        lines[-1] += f"{best:.1f} x its best mode here ({told['best mode of lerobot']})"
    if "share of the decode ceiling" in told:
        share = told["share of the decode ceiling"]
        held = "held" if share >= FLOOR_SHARE else "MISSED"
        lines.append(f"{100 * share:.1f}% of what decoding alone allows (floor {100 * FLOOR_SHARE:g}%: {held})")
    return lines


def _plain(lines: list[list[str]]) -> list[str]:
    wide = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    left = {0, 7, 8}
    return [
        "  ".join(c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, wide, strict=True)))
        for line in lines
    ]


def _markdown(lines: list[list[str]]) -> list[str]:
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return [rows[0], "|" + "---|" * len(lines[0]), *rows[1:]]


if __name__ == "__main__":
    print(text(json.loads(Path(sys.argv[1]).read_text("utf-8")), "--markdown" in sys.argv))
