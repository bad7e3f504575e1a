"""Data that travels inside the page: small, finite, and safe inside a script element."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from hagane.console.folder import Replay, ReplayEpisode

BUDGET_BYTES = 4_500_000


def safe_json(value: object) -> Markup:
    """JSON for `<script type="application/json">`: no text in it can close the element or open a comment."""
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def plain(value: object, digits: int = 6) -> Any:
    """The value with that many significant digits, two decimals at least; NaN and infinities become null."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # at least centimetres: a car kilometres from the origin must not jump
        whole = math.floor(math.log10(abs(value))) + 1 if value else 0
        short = round(value, max(digits - whole, 2)) if whole > 0 else float(f"{value:.{digits}g}")
        return int(short) if short == int(short) and abs(short) < 1e15 else short
    if isinstance(value, Mapping):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    return str(value)


def embed_replays(replays: Mapping[str, Replay], budget_bytes: int = BUDGET_BYTES) -> dict[str, Any]:
    """Replays as the players read them, thinned evenly until their JSON fits the budget.

    Thinning keeps every k-th frame and the last, and lowers `rate_hz` with it, so that time stays right; a
    replay that still does not fit loses its last episodes, and `left_out` says how many.
    """
    share = budget_bytes // max(1, len(replays))
    return {name: _fit(replay, share) for name, replay in replays.items()}


def _fit(replay: Replay, budget_bytes: int) -> dict[str, Any]:
    every, kept = 1, len(replay.episodes)
    while True:
        document = _replay(replay, every, kept)
        size = len(json.dumps(document, separators=(",", ":")))
        if size <= budget_bytes or (every >= 8 and kept <= 1):
            return document
        if every < 4 or kept <= 1:
            every *= 2
        else:
            kept = max(1, int(kept * budget_bytes / size))


def _replay(replay: Replay, every: int, kept: int) -> dict[str, Any]:
    statics: list[Any] = []
    episodes = [_episode(e, every, statics) for e in replay.episodes[:kept]]
    return {
        "kind": replay.kind,
        "rate_hz": plain(replay.rate_hz / every),
        "statics": statics,
        "left_out": len(replay.episodes) - kept,
        "thinned": every,
        "episodes": episodes,
    }


def _episode(episode: ReplayEpisode, every: int, statics: list[Any]) -> dict[str, Any]:
    """One episode; its static part is shared with the others that have the same."""
    frames = episode.frames
    static = plain(frames[0].get("static"), 5) if frames else None
    if static is not None and static not in statics:
        statics.append(static)
    picked = sorted({*range(0, len(frames), every), len(frames) - 1}) if frames else []
    return {
        "case": episode.case,
        "who": episode.who,
        "seed": episode.seed,
        "score": plain(episode.score),
        "static": None if static is None else statics.index(static),
        "frames": [{k: plain(v, 4) for k, v in frames[i].items() if k != "static"} for i in picked],
    }
