"""Router use: which experts each machine's tokens went to, whose experts they are, and which were forbidden."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hagane.console.figures import in_order
from hagane.console.folder import RunFolder


@dataclass(frozen=True)
class Cell:
    """One expert of one layer, for one machine."""

    share: float | None
    """Share of the machine's routed tokens in this layer, 0 to 1; None when not recorded."""
    permitted: bool | None
    """Whether the machine's gate lets tokens reach this expert; None when the run does not say."""


@dataclass(frozen=True)
class RouterUse:
    """The newest expert loads of a run."""

    step: int
    """Step of the newest line that has loads."""
    layers: tuple[Mapping[str, tuple[Cell, ...]], ...]
    """For every layer: machine to a cell an expert."""
    owners: tuple[str, ...]
    """Owner of every expert; empty when the run does not say."""
    summed: bool
    """True when the run recorded one list for all layers together."""

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Owners in a row with how many experts each."""
        found: list[tuple[str, int]] = []
        for owner in self.owners:
            if found and found[-1][0] == owner:
                found[-1] = (owner, found[-1][1] + 1)
            else:
                found.append((owner, 1))
        return tuple(found)

    @property
    def top(self) -> float:
        """The largest share, for the colour scale."""
        cells = (c.share or 0.0 for layer in self.layers for row in layer.values() for c in row)
        return max(cells, default=0.0) or 1.0


def router_use(run: RunFolder) -> RouterUse | None:
    """The newest loads in the metrics (`experts/<embodiment>`); None when there are none."""
    newest: dict[str, list[list[float | None]]] = {}
    step, nested = 0, False
    for row in reversed(run.metrics):
        for key, value in row.items():
            name = key.removeprefix("experts/")
            if name != key and name not in newest and (layers := _layers(value)):
                newest[name] = layers
                nested = nested or isinstance(value[0], list)
                step = max(step, int(row["step"]))
    if not newest:
        return None
    width = max(len(layer) for layers in newest.values() for layer in layers)
    owners, machines = _ownership(run)
    owners = owners if len(owners) == width else ()
    depth = max(len(layers) for layers in newest.values())
    picked = [
        {name: _cells(name, newest[name][i], owners, machines) for name in in_order(newest) if i < len(newest[name])}
        for i in range(depth)
    ]
    return RouterUse(step, tuple(picked), owners, not nested)


def _cells(
    name: str, loads: Sequence[float | None], owners: Sequence[str], machines: Mapping[str, Sequence[str]]
) -> tuple[Cell, ...]:
    whole = sum(v for v in loads if v is not None) or 1.0
    allowed = machines.get(name)
    return tuple(
        Cell(None if v is None else v / whole, owners[i] in allowed if owners and allowed else None)
        for i, v in enumerate(loads)
    )


def _layers(value: object) -> list[list[float | None]]:
    """Loads as layers of experts: [E] is one layer of all, [L][E] is taken as it is; [] for anything else."""
    if not isinstance(value, list) or not value:
        return []
    rows = value if all(isinstance(v, list) for v in value) else [value]
    return [[_number(v) for v in row] for row in rows if row]


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _ownership(run: RunFolder) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Owner of each expert index, and the permitted owners of each machine, from the resolved configuration.

    The model keeps the consortium's experts first, then the members' by name (`ModelConfig.expert_owners`).
    """
    owners: tuple[str, ...] = ()
    machines: dict[str, tuple[str, ...]] = {}
    for document in _documents(run):
        for table in _tables(document):
            split = table.get("experts")
            if not owners and isinstance(split, dict) and split and all(isinstance(n, int) for n in split.values()):
                order = sorted(split, key=lambda o: (o != "consortium", o))
                owners = tuple(o for o in order for _ in range(min(split[o], 10_000)))
            if isinstance(table.get("owner"), str) and isinstance(table.get("name"), str) and "act" in table:
                lent = split if isinstance(split, list) and split else [table["owner"]]
                machines.setdefault(table["name"], ("consortium", *map(str, lent)))
    return owners, machines


def _documents(run: RunFolder) -> Iterator[object]:
    """The newest checkpoint's own description first (it has every owner resolved), then the run's configuration."""
    for path in sorted(run.path.glob("checkpoints/*/model.toml"), reverse=True)[:1]:
        yield _toml(path.read_text("utf-8", errors="replace"))
    yield _toml(run.config)


def _toml(text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _tables(value: object, depth: int = 0) -> Iterator[dict[str, Any]]:
    """All tables inside a document, outermost first."""
    if depth > 20:
        return
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _tables(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _tables(inner, depth + 1)
