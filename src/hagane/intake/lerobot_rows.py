"""Between Episodes and LeRobot rows: which feature holds which channel, and whole sets from episodes.

Channel `c` becomes "observation.c" with "observation.c.valid" and "observation.c.age_s" beside it; all action
channels side by side are "action" (commands), "action.applied" and "action.valid". A set channel of n places with
d columns is one feature of n * d columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_grid import Grid, align, instruction
from hagane.intake.lerobot_layout import AGE as AGE
from hagane.intake.lerobot_layout import VALID, Feature, feature_name
from hagane.intake.lerobot_write import LeRobotWriter
from hagane.intake.picture import encode_png
from hagane.terms import Channel, Embodiment, Episode, Reading


def embodiment_features(embodiment: Embodiment) -> dict[str, Feature]:
    """Features of a set of this machine."""
    features: dict[str, Feature] = {}
    for c in embodiment.observe:
        if c.kind == "text":
            continue
        name = feature_name(c.name)
        if c.kind == "image":
            features[name] = Feature("image", c.shape, ("height", "width", "channels"))
        else:
            features[name] = Feature("float32", (c.places * c.columns,), column_names(c))
        features[name + VALID] = Feature("bool", (c.places,))
        features[name + AGE] = Feature("float32")
    names = tuple(n for c in embodiment.act for n in column_names(c))
    features["action"] = Feature("float32", (embodiment.action_width,), names)
    features["action.applied"] = Feature("float32", (embodiment.action_width,), names)
    features["action" + VALID] = Feature("bool")
    return features


def column_names(channel: Channel) -> tuple[str, ...]:
    """Names of a channel's columns: "speed", or "arm.0", "arm.1", or "agents.3.0" for a set's place and column."""
    if channel.kind == "set":
        return tuple(f"{channel.name}.{i}.{k}" for i in range(channel.places) for k in range(channel.columns))
    return (channel.name,) if channel.columns == 1 else tuple(f"{channel.name}.{k}" for k in range(channel.columns))


def grid_rows(grid: Grid, embodiment: Embodiment) -> dict[str, NDArray[Any]]:
    """LeRobot columns of an aligned episode."""
    rows: dict[str, NDArray[Any]] = {}
    for name, reading in grid.observe.items():
        key = feature_name(name)
        if embodiment.channel(name).kind == "image":
            rows[key] = _every_picture(reading, embodiment.channel(name))
        else:
            rows[key] = _squeezed(reading.values.reshape(len(grid), -1))
        rows[key + VALID] = _squeezed(reading.valid.reshape(len(grid), -1))
        rows[key + AGE] = reading.age_s
    rows["action"] = _squeezed(side_by_side(grid.command, embodiment))
    rows["action.applied"] = _squeezed(side_by_side(grid.applied, embodiment))
    rows["action" + VALID] = np.all([grid.command[c.name].valid for c in embodiment.act], axis=0)
    return rows


def _every_picture(reading: Reading, channel: Channel) -> NDArray[Any]:
    """Pictures for a peer's reader, which wants one in every row: a black one where there is none."""
    if reading.values.dtype != object:
        return reading.values
    black = encode_png(np.zeros(channel.shape, np.uint8))
    return np.array([v if ok else black for v, ok in zip(reading.values, reading.valid, strict=True)], object)


def side_by_side(readings: Mapping[str, Reading], embodiment: Embodiment) -> NDArray[np.float32]:
    """[K, A] the action channels' columns in file order."""
    return np.concatenate([readings[c.name].values for c in embodiment.act], 1).astype(np.float32, copy=False)


def fps_of(embodiment: Embodiment) -> int:
    """LeRobot's whole frames a second; the true rate stands in info.json under "hagane"."""
    return max(1, round(embodiment.rate_hz))


def facts_of(embodiment: Embodiment) -> dict[str, Any]:
    """What info.json keeps for hagane."""
    return {"embodiment": embodiment.name, "rate_hz": embodiment.rate_hz}


def write_episodes(root: Path, embodiment: Embodiment, episodes: Iterable[Episode]) -> Path:
    """Write episodes as a LeRobot v3.0 set on the control grid, as a machine's own recorder would.

    Interrupted, it goes on when called again with the same episodes: closed ones are not written twice.

    Raises:
        StoreError: a finished set lies there, no episode, or the disk refuses.
        LogError: an episode without samples, or of another shape.
    """
    writer = LeRobotWriter(
        root,
        embodiment_features(embodiment),
        fps_of(embodiment),
        robot_type=embodiment.name,
        extra=facts_of(embodiment),
    )
    done = writer.episodes
    for number, episode in enumerate(episodes):
        if number >= done:
            writer.add_episode(grid_rows(align(episode, embodiment), embodiment), instruction(episode, embodiment))
    return writer.finish()


def _squeezed(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, 0] if values.shape[1] == 1 else values
