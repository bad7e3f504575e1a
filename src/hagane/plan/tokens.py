"""Tokens: what members' hours and bytes of logs amount to, each from a source with a name.

One control step of one machine is one sample: the tokens of `model.slots.sample_layouts`. A token budget whose sources
are not named is refused: nobody can audit a number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hagane.catalog.record import DatasetRecord
from hagane.model import make_config
from hagane.plan.shape import sample_lengths
from hagane.plan.sources import Source, Status
from hagane.terms import Channel, ConfigError, Embodiment, load_toml
from hagane.terms.amount import SCALES, floor_count

JPEG_BYTES_PIXEL = 0.35
"""Bytes of a JPEG (quality 95) a pixel, of camera logs; for sources given in bytes without bytes_per_hour."""
NUMBER_BYTES = 12
"""Bytes of a logged number with its share of the time stamp."""


@dataclass(frozen=True)
class Counted:
    """A source in tokens."""

    source: Source
    """As it was named."""
    embodiment: Embodiment
    """Its machine."""
    hours: float
    """Hours, given or from bytes, or as the catalog has them."""
    sample_tokens: int
    """Tokens of one sample."""
    samples: float
    """Different samples."""
    checked: bool
    """True when a catalog was seen to hold it under that contract."""

    @property
    def unique(self) -> float:
        """Tokens, each sample once."""
        return self.samples * self.sample_tokens

    @property
    def tokens(self) -> float:
        """Tokens with all passes."""
        return self.unique * self.source.passes


@dataclass(frozen=True)
class Account:
    """What all sources come to."""

    counted: tuple[Counted, ...]
    """Every source."""

    @property
    def tokens(self) -> float:
        """All tokens."""
        return sum(c.tokens for c in self.counted)

    @property
    def sample_tokens(self) -> float:
        """Tokens of a sample, averaged over tokens: how far a token's attention reaches."""
        return sum(c.tokens * c.sample_tokens for c in self.counted) / self.tokens

    def share(self, status: Status) -> float:
        """Share of the tokens that are held, pledged or assumed."""
        return sum(c.tokens for c in self.counted if c.source.status == status) / self.tokens


def count_tokens(
    sources: Sequence[Source], size: str, folder: Path, records: Mapping[str, DatasetRecord] | None = None
) -> Account:
    """Convert sources to tokens.

    Args:
        sources: owners' logs.
        size: of the model: larger ones have more prompt and instruction tokens.
        folder: where embodiment files are looked for.
        records: data sets of a catalog by name; held sources must be among them, and count as they are there.

    Raises:
        ConfigError: an unknown embodiment, or a held source that the catalog does not have so.
    """
    machines: dict[str, Embodiment] = {}
    for source in sources:
        machines.setdefault(source.embodiment, find_embodiment(source.embodiment, folder))
    lengths = sample_lengths(make_config(size, tuple({m.name: m for m in machines.values()}.values())))
    return Account(tuple(_count(s, machines[s.embodiment], lengths, records) for s in sources))


def require(account: Account, tokens: float) -> None:
    """Refuse a budget that its sources do not cover.

    Raises:
        ConfigError: with what is missing.
    """
    if tokens > account.tokens * (1 + 1e-9):
        short = tokens - account.tokens
        raise ConfigError(
            f"the named sources hold {floor_count(account.tokens)} tokens; the budget of {floor_count(tokens)} "
            f"lacks {floor_count(short)}",
            where="--sources",
            next_step=f"name the sources of the rest, or plan for --tokens {floor_count(account.tokens)}",
        )


def refuse_unnamed(tokens: float) -> ConfigError:
    """The refusal of a token budget without sources."""
    return ConfigError(
        f"a budget of {floor_count(tokens)} tokens without sources cannot be audited",
        where="--tokens",
        next_step="name them with --sources FILE (owner, data set, hours or bytes, contract, purpose); "
        "examples/plan-sources.toml shows how",
    )


def parse_amount(text: str, what: str) -> float:
    """ "10t" to 1e13; "250b" to 2.5e11: k, m, b (10^9) and t (10^12).

    Raises:
        ConfigError: it is no such number.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if not found or not float(found[1]):
        raise ConfigError(f"{text!r} is no amount", where=what, next_step="write it as 500b or 10t")
    return float(found[1]) * dict(SCALES).get(found[2], 1.0)


def find_embodiment(name: str, folder: Path) -> Embodiment:
    """An embodiment file of the folder, or a shipped machine.

    Raises:
        ConfigError: there is neither.
    """
    if name.endswith(".toml"):
        return load_toml(folder / name, Embodiment)
    ours = Path(str(files("hagane")))
    shipped = {p.stem: p for room in ("worlds", "plan/machines") for p in sorted((ours / room).glob("*.toml"))}
    if name not in shipped:
        near = difflib.get_close_matches(name, shipped, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"no embodiment {name!r}", next_step=f"{hint}shipped: {', '.join(sorted(shipped))}; or name a .toml file"
        )
    return load_toml(shipped[name], Embodiment)


def log_bytes_per_hour(machine: Embodiment) -> float:
    """Bytes that an hour of a machine's log is estimated at: cameras as JPEG, numbers as they are stamped."""
    return sum(_channel_bytes(c) * (c.rate_hz or machine.rate_hz) * 3600 for c in machine.channels())


def _channel_bytes(channel: Channel) -> float:
    if channel.kind == "image":
        return JPEG_BYTES_PIXEL * channel.shape[0] * channel.shape[1]
    return NUMBER_BYTES * channel.columns * channel.places


def _count(
    source: Source, machine: Embodiment, lengths: Mapping[str, int], records: Mapping[str, DatasetRecord] | None
) -> Counted:
    hours = source.hours or source.bytes / (source.bytes_per_hour or log_bytes_per_hour(machine))
    steps = hours * 3600 * machine.rate_hz
    checked = source.status == "held" and records is not None
    if checked and records is not None:
        record = _held(source, machine, records)
        hours, steps = record.seconds / 3600, float(record.steps)
    return Counted(source, machine, hours, lengths[machine.name], steps / source.every, checked)


def _held(source: Source, machine: Embodiment, records: Mapping[str, DatasetRecord]) -> DatasetRecord:
    where = f"source {source.owner}/{source.dataset}"
    record = records.get(source.dataset)
    if record is None:
        raise ConfigError(
            "is called held, but this catalog has no such data set", where=where, next_step="see `hagane catalog ls`"
        )
    stated = (source.owner, machine.name, source.contract)
    found = (record.owner, record.embodiment, record.contract_digest)
    for what, mine, theirs in zip(("owner", "machine", "contract"), stated, found, strict=True):
        if mine != theirs:
            raise ConfigError(
                f"the catalog has another {what}: {theirs[:16] or 'none valid'}, not {mine[:16]}", where=where
            )
    if source.hours and source.hours > 1.01 * record.seconds / 3600:
        raise ConfigError(
            f"claims {source.hours:,.1f} hours; the catalog holds {record.seconds / 3600:,.1f}",
            where=where,
            next_step="name the rest as a source of its own, pledged or assumed",
        )
    return record
