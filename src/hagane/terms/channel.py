"""Channel: one named stream of a machine, as its people describe it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from hagane.terms.errors import ConfigError

Kind = Literal["image", "vector", "set", "text"]
Role = Literal["state", "pv", "sp", "mv", "dv", "goal", "camera", "agents", "map", "instruction"]
Align = Literal["latest", "linear", "nearest"]

KINDS: tuple[str, ...] = get_args(Kind)
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class History:
    """How many past samples of a channel the model sees.

    `steps` samples, `stride` control steps apart, the newest first being "now":
    ages 0, stride, 2 * stride, ... control steps.
    """

    steps: int = 1
    """How many samples, at least 1."""
    stride: int = 1
    """Control steps between two samples, at least 1."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.stride < 1:
            raise ConfigError(f"history needs steps >= 1 and stride >= 1, not {self.steps}, {self.stride}")

    @property
    def span(self) -> int:
        """Control steps from the oldest sample to now: (steps - 1) * stride."""
        return (self.steps - 1) * self.stride


@dataclass(frozen=True)
class Channel:
    """One stream of values that a machine observes or acts with.

    Shapes per sample: vector [d]; set [n, d] (n places, each valid or not); image [height, width, 3]
    uint8; text has none. `unit`, `low`, `high` and `source` hold one entry for all columns or one a column.

    Raises:
        ConfigError: unknown kind or role, a shape that does not fit the kind, a column list of another length.
    """

    name: str
    """Name, unique in its embodiment; in logs and on the wire too."""
    kind: Kind = "vector"
    """image, vector, set (n x d with validity: agents, lane points) or text."""
    shape: tuple[int, ...] = (1,)
    """Shape of one sample."""
    unit: tuple[str, ...] = ("1",)
    """SI unit, or the plant's own (UCUM spelling); "1" has no dimension."""
    rate_hz: float = 0.0
    """Native rate; 0 means the embodiment's control rate."""
    role: Role = "state"
    """state, pv, sp, mv, dv (disturbance), goal, camera, agents, map, instruction."""
    low: tuple[float, ...] = ()
    """Lowest physical value a column; empty when unknown."""
    high: tuple[float, ...] = ()
    """Highest physical value a column; empty when unknown."""
    history: History = field(default_factory=History)
    """Past samples that the model sees; on an action channel, past applied actions."""
    align: Align = "latest"
    """How native-rate samples meet control times: latest before (causal), linear, nearest (labels only)."""
    delay_s: float = 0.0
    """Known measurement delay, seconds: a reading at t describes t - delay_s."""
    max_age_s: float = 0.0
    """Older readings count as invalid; 0 means no limit (the age still reaches the model)."""
    source: tuple[str, ...] = ()
    """What the logs call each column ("SPEED.VALUE", "topic.field", a CSV header); empty means `name`."""

    def __post_init__(self) -> None:
        where = f"channel {self.name!r}"
        if self.kind not in KINDS:
            raise ConfigError(f"unknown kind {self.kind!r}", where=where, next_step=f"use one of {', '.join(KINDS)}")
        if self.role not in ROLES:
            raise ConfigError(f"unknown role {self.role!r}", where=where, next_step=f"use one of {', '.join(ROLES)}")
        ranks = {"image": 3, "vector": 1, "set": 2, "text": 0}
        if self.kind == "text":
            object.__setattr__(self, "shape", ())
        if len(self.shape) != ranks[self.kind] or any(n < 1 for n in self.shape):
            raise ConfigError(
                f"a {self.kind} needs {ranks[self.kind]} positive dimensions, not {self.shape}", where=where
            )
        for label in ("unit", "low", "high"):
            n = len(getattr(self, label))
            if n not in (0, 1, self.columns):
                raise ConfigError(f"{label} has {n} entries for {self.columns} columns", where=where)
        if any(a >= b for a, b in zip(self.low, self.high, strict=False)):
            raise ConfigError("low must be below high in every column", where=where)

    @property
    def columns(self) -> int:
        """Columns of one row: d of a vector or set, 3 of an image, 1 of a text."""
        return self.shape[-1] if self.shape else 1

    @property
    def places(self) -> int:
        """n of a set; 1 for the other kinds."""
        return self.shape[0] if self.kind == "set" else 1
