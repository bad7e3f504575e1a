"""A TFDS folder with RLDS episodes: features.json, dataset_info.json, and which shard holds which episode.

    features.json       a tree of {"featuresDict"}, {"sequence"}, {"tensor"}, {"image"}, {"text"}, ...; "steps" is a
                        sequence of steps, flattened in the records to names such as "steps/observation/image"
    dataset_info.json   {"name", "fileFormat", "splits": [{"name", "shardLengths", "filepathTemplate"}]}
    <name>-<split>.tfrecord-00000-of-00004

Sources: tensorflow/datasets (core/features/feature.py, core/example_serializer.py, core/proto/dataset_info.proto),
google-research/rlds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hagane.intake.files import read_bytes, refuse_outside
from hagane.intake.sources import nearest
from hagane.terms import LogError

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_DEPTH = 16


@dataclass(frozen=True)
class Leaf:
    """One feature of an episode or of a step."""

    kind: str
    """"number", "raw" (numbers as their bytes), "picture" (encoded) or "text"."""
    shape: tuple[int, ...]
    """Of one value; -1 where features.json leaves it open."""
    dtype: str
    """NumPy name of the type before it was written."""


@dataclass(frozen=True)
class Shard:
    """One tfrecord file."""

    path: Path
    """Where it lies."""
    split: str
    """Its split."""
    first: int
    """Number of its first episode in the split."""
    length: int
    """Episodes in it, by dataset_info.json."""


@dataclass(frozen=True)
class Folder:
    """What the two JSON files say."""

    name: str
    """Of the data set."""
    leaves: Mapping[str, Leaf]
    """By name in the records: "steps/action", "episode_metadata/success"."""
    shards: tuple[Shard, ...]
    """In order of splits and numbers."""


def open_folder(root: Path, split: str = "") -> Folder:
    """Read the two JSON files; `split` keeps the shards of one split.

    Raises:
        LogError: one is missing or not as TFDS writes it, another file format, or no such split.
    """
    features, info = _json(root, "features.json"), _json(root, "dataset_info.json")
    leaves: dict[str, Leaf] = {}
    _flatten(features, "", False, leaves, str(root / "features.json"))
    if not any(name.startswith("steps/") for name in leaves):
        raise LogError(
            "has no `steps`: these are no RLDS episodes",
            where=str(root / "features.json"),
            next_step="give an RLDS set",
        )
    where = str(root / "dataset_info.json")
    form = str(info.get("fileFormat") or "tfrecord")
    if form != "tfrecord":
        raise LogError(f"the shards are {form!r} files", where=where, next_step="write the set as tfrecord")
    shards: list[Shard] = []
    try:
        name = str(info["name"])
        splits = {str(s["name"]): s for s in info["splits"]}
        if split and split not in splits:
            raise LogError(f"the set has no split {split!r}", where=where, next_step=nearest(split, splits))
        for key, entry in splits.items():
            lengths = [int(n) for n in entry.get("shardLengths") or ()]
            if split not in ("", key) or not lengths or min(lengths) < 0:
                continue
            template = str(entry.get("filepathTemplate") or TEMPLATE)
            for k, length in enumerate(lengths):
                path = root / _shard_name(template, name, key, k, len(lengths), where)
                shards.append(Shard(path, key, sum(lengths[:k]), length))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        what = f"is not as TFDS writes it: {e!r}"
        raise LogError(what, where=where, next_step="copy the whole folder again") from None
    if not shards:
        raise LogError("names no shard", where=where, next_step="the set is not finished: write it again")
    return Folder(name, leaves, tuple(shards))


def _json(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    refuse_outside(path, root)
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as e:
        raise LogError(f"is no JSON: {e}", where=str(path), next_step="copy the whole folder again") from None
    if not isinstance(found, dict):
        raise LogError("is no JSON object", where=str(path), next_step="copy the whole folder again")
    return found


def _shard_name(template: str, name: str, split: str, k: int, count: int, where: str) -> str:
    words = {
        "{DATASET}": name,
        "{SPLIT}": split,
        "{FILEFORMAT}": "tfrecord",
        "{SHARD_X_OF_Y}": f"{k:05d}-of-{count:05d}",
        "{SHARD_INDEX}": f"{k:05d}",
        "{NUM_SHARDS}": f"{count:05d}",
    }
    filled = template
    for place, word in words.items():
        filled = filled.replace(place, word)
    if "/" in filled or "\\" in filled or "{" in filled or filled in ("", ".", ".."):
        raise LogError(
            f"the file template {template!r} is not one of TFDS", where=where, next_step="copy the whole folder again"
        )
    return filled


def _flatten(node: Any, name: str, nested: bool, leaves: dict[str, Leaf], where: str, depth: int = 0) -> None:
    """Leaves below a node. Sequences within a step are ragged: they have no fixed width and are left out."""
    odd = LogError(
        f"is not as TFDS writes it, at {name or 'the top'!r}", where=where, next_step="copy the whole folder again"
    )
    if depth > _MOST_DEPTH or not isinstance(node, dict):
        raise odd
    if "featuresDict" in node:
        inner = node["featuresDict"].get("features") if isinstance(node["featuresDict"], dict) else None
        if not isinstance(inner, dict):
            raise odd
        for key, child in inner.items():
            _flatten(child, f"{name}/{key}" if name else str(key), nested, leaves, where, depth + 1)
    elif "sequence" in node:
        inner = node["sequence"].get("feature") if isinstance(node["sequence"], dict) else None
        if name == "steps":
            _flatten(inner, name, True, leaves, where, depth + 1)
    elif leaf := _leaf(node):
        leaves[name] = leaf


def _leaf(node: dict[str, Any]) -> Leaf | None:
    if "text" in node:
        return Leaf("text", (), "str")
    kind = next((k for k in ("tensor", "image") if isinstance(node.get(k), dict)), "")
    about = node.get(kind) or {}
    dimensions = (about.get("shape") or {}).get("dimensions", ()) if isinstance(about.get("shape"), dict) else ()
    try:
        shape = tuple(int(n) for n in dimensions)
        dtype = str(about.get("dtype") or "uint8")
        if kind == "image":
            return Leaf("picture", shape, dtype)
        if kind == "tensor" and dtype == "string":
            return Leaf("text", shape, "str")
        raw = about.get("encoding") in ("bytes", 1)
        if kind != "tensor" or about.get("encoding") not in (None, "none", "bytes", 0, 1):
            return None
        return Leaf("raw" if raw else "number", shape, np.dtype(dtype).name)
    except (TypeError, ValueError, OverflowError):
        return None
