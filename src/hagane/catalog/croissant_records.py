"""Croissant's record sets of an export: one a table, each field with its type, shape and units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hagane.intake.lerobot_layout import feature_name
from hagane.intake.lerobot_rows import AGE
from hagane.terms import Embodiment

PARQUET = ("application/vnd.apache.parquet", "application/x-parquet")
"""The registered media type, and the older one that the reference implementation knows."""


def record_sets(
    folder: Path, machine: Embodiment, to: str, layout: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Record sets of an exported folder, and the file sets they read from. Columns are read from the files."""
    tables: tuple[tuple[str, str, str, dict[str, list[str]]], ...]
    if to == "lerobot":
        tables = (
            ("frames", "one control step", "data/*/*.parquet", _grid_units(machine)),
            ("episodes", "one episode", "meta/episodes/*/*.parquet", {}),
        )
    else:
        what = "one time stamp" if layout == "wide" else "one value of one stream"
        tables = (
            ("samples", what, "episodes/*.parquet", {}),
            ("episodes", "one episode", "episodes.parquet", {"seconds": ["s"]}),
        )
    sets, resources = [], []
    for name, what, pattern, units in tables:
        source = f"{name}-files"
        resources.append(
            {
                "@type": "cr:FileSet",
                "@id": source,
                "name": source,
                "description": f"Tables with {what} a row.",
                "encodingFormat": list(PARQUET),
                "includes": pattern,
            }
        )
        schema = _union(pq.read_schema(path) for path in sorted(folder.glob(pattern)))
        sets.append(
            {
                "@type": "cr:RecordSet",
                "@id": name,
                "name": name,
                "description": f"Each record is {what}.",
                "field": [_field(name, f, source, units) for f in schema if _type(f.type)],
            }
        )
    return sets, resources


def _grid_units(machine: Embodiment) -> dict[str, list[str]]:
    """Units of a LeRobot set's columns."""
    units = {"timestamp": ["s"]}
    for c in machine.observe:
        name = feature_name(c.name)
        units[name] = _per_column(c.unit or ("1",), c.columns)
        units[name + AGE] = ["s"]
    action = [u for c in machine.act for u in _per_column(c.unit or ("1",), c.columns)]
    return {**units, "action": action, "action.applied": action}


def _per_column(units: tuple[str, ...], columns: int) -> list[str]:
    return [units[k % len(units)] for k in range(columns)]


def _union(schemas: Iterable[pa.Schema]) -> list[pa.Field]:
    """Columns of all files, by first appearance: an episode may lack a stream."""
    known: dict[str, pa.Field] = {}
    for schema in schemas:
        for f in schema:
            known.setdefault(f.name, f)
    return list(known.values())


def _field(table: str, f: pa.Field, source: str, units: Mapping[str, list[str]]) -> dict[str, Any]:
    told = {k.decode(): v.decode() for k, v in (f.metadata or {}).items()}
    unit = units.get(f.name) or ([told["unit"]] if "unit" in told else [])
    out: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{table}/{f.name}",
        "name": f.name,
        "description": _describe(f.name, told),
        "dataType": _type(f.type),
        "source": {"fileSet": {"@id": source}, "extract": {"column": f.name}},
    }
    if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type):
        size = f.type.list_size if pa.types.is_fixed_size_list(f.type) else -1
        out |= {"isArray": True, "arrayShape": str(size)}
    if unit:
        out["unitText"] = unit[0] if len(set(unit)) == 1 else unit
    return out


def _describe(name: str, told: Mapping[str, str]) -> str:
    if name.endswith(".valid"):
        return "Whether the reading counts; null where there is none."
    if name.endswith(AGE):
        return "How old the reading is at its control time."
    return f"{name}, role {told['role']}" if "role" in told else name


def _type(kind: pa.DataType) -> str:
    """The atomic data type, "" for what a record set leaves out (statistics in nested columns)."""
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _type(kind.value_type) if not pa.types.is_nested(kind.value_type) else ""
    if pa.types.is_struct(kind) or pa.types.is_binary(kind):
        return "sc:ImageObject"
    tests = (
        (pa.types.is_boolean, "sc:Boolean"),
        (pa.types.is_integer, "sc:Integer"),
        (pa.types.is_floating, "sc:Float"),
        (pa.types.is_string, "sc:Text"),
    )
    return next((name for test, name in tests if test(kind)), "")
