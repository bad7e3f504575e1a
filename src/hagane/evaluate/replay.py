"""Replays: the frames of a few episodes, to be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hagane.terms.files import write_whole
from hagane.worlds import Pilot, World, fly


def record_replay(
    world: World, pilots: Mapping[str, Pilot], seeds: Sequence[int], *, every: int = 1, cases: Sequence[str] = ()
) -> dict[str, Any]:
    """Frames of each pilot on each case for the seeds, as the report page reads them.

    Args:
        world: the world.
        pilots: row name to pilot.
        seeds: one episode each.
        every: control steps between frames.
        cases: empty takes all of the world's.
    """
    episodes, kind = [], world.embodiment.name
    for case in cases or world.cases:
        for who, pilot in pilots.items():
            outcome = fly(world, case, list(seeds), pilot, watch=range(len(seeds)), every=every)
            for i, seed in enumerate(seeds):
                frames = outcome.drawings[i]
                kind = frames[0].kind if frames else kind
                episodes.append(
                    {
                        "case": case,
                        "who": who,
                        "seed": int(seed),
                        "score": round(float(outcome.scores_N[i]), 3),
                        "frames": [dict(f.values) for f in frames],
                    }
                )
    rate_hz = world.embodiment.rate_hz / every
    return {"embodiment": world.embodiment.name, "kind": kind, "rate_hz": rate_hz, "episodes": episodes}


def save_replay(path: Path, replay: Mapping[str, Any]) -> None:
    """Write a replay as compact JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(replay, separators=(",", ":"), ensure_ascii=False).encode()])
