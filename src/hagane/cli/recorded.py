"""A recording of a drive, as an auditor reads it: its root, and the action at a time. Needs no machine file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.seal.merkle import Frontier, leaf_hash
from hagane.terms import APPLIED, LogError, canonical_json

GUARD = "/guard"


@dataclass(frozen=True)
class Action:
    """What one control step did."""

    time_ns: int
    """Time on the recording's clock."""
    values: Mapping[str, tuple[float | None, ...]]
    """Action channel to the values that were commanded; with `APPLIED` at its end, to those that the actuators did."""
    state: str
    """State of the guard; "" where it is not recorded."""
    changed: tuple[str, ...]
    """What the guard changed, in words."""


@dataclass(frozen=True)
class Recording:
    """What an MCAP file of our recorder says."""

    path: Path
    """The file."""
    machine: str
    """Name of the machine."""
    checkpoint: str
    """Id of the checkpoint that decided."""
    root: str
    """Merkle root (RFC 9162) over what it says of itself, then every message by topic and time, hex."""
    messages: int
    """Messages under the root."""
    actions: tuple[Action, ...]
    """Every control step, in the order of time."""

    def at(self, time_s: float) -> Action:
        """The action in force at a time: the last one that was given until then.

        Raises:
            LogError: before the first, after the last control step, or no time at all.
        """
        found = [a for a in self.actions if a.time_ns <= round(time_s * 1e9)] if math.isfinite(time_s) else []
        ends = f"{self.actions[0].time_ns / 1e9:g} to {self.actions[-1].time_ns / 1e9:g} s" if self.actions else "none"
        if not found or time_s * 1e9 > self.actions[-1].time_ns + 1e9:
            raise LogError(
                f"no action at {time_s:g} s", where=str(self.path), next_step=f"actions are there from {ends}"
            )
        return found[-1]


def read_recording(path: Path) -> Recording:
    """Read a recording, every checksum checked.

    Raises:
        LogError: no such file, damaged, cut, or not made by our recorder.
    """
    from hagane.intake.mcap_log import STREAM_SCHEMA
    from hagane.intake.mcap_scan import scan_mcap
    from hagane.intake.topic_log import TopicLog

    log = TopicLog(path)
    try:
        with path.open("rb") as file:
            scan_mcap(file, path.stat().st_size, log, lambda _: True, keep=False)
    except OSError as e:
        raise LogError(f"cannot be read: {e.strerror}", where=str(path), next_step="check the path") from None
    streams = {n: t for n, t in log.topics.items() if t.schema == STREAM_SCHEMA}
    acts = [n for n in streams if n + APPLIED in streams]
    if not acts or "embodiment" not in log.about:
        raise LogError("no recording of a drive", where=str(path), next_step="record with hagane drive --record")
    frontier = Frontier()
    frontier.add(leaf_hash(canonical_json(log.about)))
    # by topic and time: the order in which a recorder happened to write says nothing
    for name in sorted(log.topics):
        for time_ns, data in zip(log.topics[name].times_ns, log.topics[name].payloads, strict=True):
            frontier.add(leaf_hash(canonical_json([name, time_ns]) + b"\0" + data))
    try:
        actions = _actions(log.topics, acts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise LogError(f"its messages are not those of our recorder: {e}", where=str(path)) from None
    machine, checkpoint = log.about["embodiment"], log.about.get("checkpoint_id", "")
    return Recording(path, machine, checkpoint, frontier.root().hex(), frontier.size - 1, actions)


def _actions(topics: Mapping[str, Any], acts: list[str]) -> tuple[Action, ...]:
    steps: dict[int, dict[str, tuple[float | None, ...]]] = {}
    for name in [n + end for n in sorted(acts) for end in ("", APPLIED)]:
        for time_ns, data in zip(topics[name].times_ns, topics[name].payloads, strict=True):
            values = json.loads(data)["values"]
            steps.setdefault(time_ns, {})[name.lstrip("/")] = tuple(None if v is None else float(v) for v in values)
    guard = {}
    if GUARD in topics:
        guard = dict(zip(topics[GUARD].times_ns, map(json.loads, topics[GUARD].payloads), strict=True))
    out = []
    for time_ns in sorted(steps):
        said = guard.get(time_ns, {})
        words = [f"{i['kind']} at column {i['column']}" for i in said.get("interventions", ())]
        out.append(Action(time_ns, steps[time_ns], str(said.get("state", "")), tuple(words)))
    return tuple(out)
