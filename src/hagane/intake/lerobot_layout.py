"""The LeRobot v3.0 layout on disk: features, schemas, and the small files of `meta/`.

Read from the peer's source and from sets that lerobot 0.4.4 wrote; see also bench/lerobot_peer.py, which opens
ours in the peer's own loader.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hagane.terms import ConfigError, LogError

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VALID, AGE = ".valid", ".age_s"
"""Endings of the features beside a channel's own: whether a row counts, and how old its sample is."""
CHUNK_SIZE = 1000
FILE_BYTES = 100 << 20

_TYPES = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Feature:
    """One column of a LeRobot set.

    Raises:
        ConfigError: unknown dtype, an empty shape, names that do not fit.
    """

    dtype: str
    """float32, float64, int64, int32, uint8, bool, string, image or video."""
    shape: tuple[int, ...] = (1,)
    """Shape of one frame's value; (1,) is a scalar column, images are [height, width, 3]."""
    names: tuple[str, ...] = ()
    """Names of the columns, or none."""

    def __post_init__(self) -> None:
        if self.dtype not in (*_TYPES, "image", "video"):
            raise ConfigError(f"a LeRobot feature cannot be of dtype {self.dtype!r}")
        if not self.shape or any(n < 1 for n in self.shape):
            raise ConfigError(f"a LeRobot feature needs a shape of positive sizes, not {self.shape}")
        if self.is_picture != (len(self.shape) == 3) or len(self.shape) == 2:
            raise ConfigError(f"{self.dtype} of shape {self.shape}: flatten arrays, give pictures as [H, W, C]")

    @property
    def is_picture(self) -> bool:
        """True for image and video."""
        return self.dtype in ("image", "video")

    @property
    def width(self) -> int:
        """Columns of a numeric feature."""
        return self.shape[0]


FRAME_FEATURES: dict[str, Feature] = {
    "timestamp": Feature("float32"),
    "frame_index": Feature("int64"),
    "episode_index": Feature("int64"),
    "index": Feature("int64"),
    "task_index": Feature("int64"),
}
"""Present in every set; the writer fills them."""


def check_features(features: Mapping[str, Feature]) -> None:
    """Refuse names that LeRobot cannot hold.

    Raises:
        ConfigError: a slash, a reserved or an empty name, or no feature at all.
    """
    if not features:
        raise ConfigError("a LeRobot set needs at least one feature")
    for name in features:
        if name in FRAME_FEATURES or not name or "/" in name:
            raise ConfigError(f"a LeRobot feature cannot be called {name!r}")


def feature_name(channel: str) -> str:
    """The feature of an observed channel: "observation.<channel>", with a slash (which LeRobot forbids) as "|"."""
    return "observation." + channel.replace("/", "|")


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Schema of the data files, with the `huggingface` metadata that the peer's loader reads."""
    fields: list[pa.Field] = []
    table: dict[str, Any] = {}
    for name, f in {**features, **FRAME_FEATURES}.items():
        if f.dtype == "video":
            continue
        if f.dtype == "image":
            fields.append(pa.field(name, _IMAGE))
            table[name] = {"_type": "Image"}
        elif f.shape == (1,):
            fields.append(pa.field(name, _TYPES[f.dtype]))
            table[name] = {"dtype": f.dtype, "_type": "Value"}
        else:
            fields.append(pa.field(name, pa.list_(_TYPES[f.dtype], f.width)))
            table[name] = {"feature": {"dtype": f.dtype, "_type": "Value"}, "length": f.width, "_type": "List"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": table}})})


def info_table(
    features: Mapping[str, Feature],
    fps: int,
    robot_type: str,
    episodes: int,
    frames: int,
    tasks: int,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Contents of meta/info.json; `extra` goes under the key "hagane", which the peer ignores."""
    described = {
        name: {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names) or None}
        for name, f in {**features, **FRAME_FEATURES}.items()
    }
    videos = any(f.dtype == "video" for f in features.values())
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type or None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK_SIZE,
        "data_files_size_in_mb": FILE_BYTES >> 20,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if videos else None,
        "features": described,
        **({"hagane": dict(extra)} if extra else {}),
    }


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """meta/tasks.parquet: what pandas writes for a frame indexed by the task's text with a column task_index."""
    text = "__index_level_0__"
    columns = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": None, "field_name": text, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    names = {
        "name": None,
        "field_name": None,
        "pandas_type": "unicode",
        "numpy_type": "object",
        "metadata": {"encoding": "UTF-8"},
    }
    pandas = {
        "index_columns": [text],
        "column_indexes": [names],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), (text, pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table({"task_index": list(range(len(tasks))), text: list(tasks)}, schema=schema)


def read_features(info: Mapping[str, Any], where: str) -> dict[str, Feature]:
    """Features of a set from its info.json, without the ones that every set has.

    Raises:
        LogError: they are not well formed.
    """
    features = {}
    try:
        for name, f in info["features"].items():
            if name in FRAME_FEATURES:
                continue
            names = f.get("names")
            if isinstance(names, dict):  # older sets group names: {"motors": [...]}
                names = [n for group in names.values() for n in group]
            shape = tuple(int(n) for n in f["shape"]) or (1,)
            if f["dtype"] not in ("image", "video") and len(shape) > 1:
                shape = (math.prod(shape),)
            features[str(name)] = Feature(str(f["dtype"]), shape, tuple(str(n) for n in names or ()))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as e:
        what = f"features are not as LeRobot describes them: {e}"
        raise LogError(what, where=where, next_step="copy the set again from its source") from None
    return features


def check_template(template: object, places: tuple[str, ...], where: str) -> str:
    """A path template of info.json, refused when it could lead out of the set's folder.

    Raises:
        LogError: it is no text, absolute, has "..", or other places than these ("name" or "name:03d").
    """
    if isinstance(template, str) and not template.startswith("/") and ".." not in template:
        rest = re.sub(rf"\{{({'|'.join(places)})(:0[1-9]d)?\}}", "", template)
        if "{" not in rest and "}" not in rest:
            return template
    what = f"the path template {template!r} is not one of LeRobot"
    raise LogError(what, where=where, next_step="copy the set again from its source")
