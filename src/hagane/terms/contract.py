"""Contract, Request, Decision: the words of the right to use data. `seal` decides with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, get_args

Purpose = Literal[
    "anchor", "member-training", "finetune", "evaluate", "distil", "serve", "view", "export",
    "merge", "statistics", "router",
]  # fmt: skip
PURPOSES: tuple[str, ...] = get_args(Purpose)
NOT_REMOVABLE: tuple[str, ...] = ("anchor", "statistics", "router")
"""Purposes whose result mixes owners for good: an owner that may withdraw exactly (class E) never grants them."""
WithdrawalClass = Literal["E", "R", "D"]
Protection = Literal["jail", "process"]


@dataclass(frozen=True)
class Contract:
    """An owner's terms for its data sets, written as TOML and signed (Ed25519).

    Purposes tell training a shared anchor ("anchor") from a member's own experts ("member-training"), figures pooled
    over owners ("statistics") from tuning the router that all of them share ("router"). Withdrawal classes: E exact
    (lives only in the member's own bundle), R re-tune the router, D revoke and retrain.

    What may be left out has the strictest meaning: a jail, nobody, any content of the named data sets.
    """

    owner: str
    """The member that owns the data."""
    datasets: tuple[str, ...]
    """Data set names."""
    residency: tuple[str, ...]
    """ISO 3166-1 alpha-2 countries where the data may be read."""
    sites: tuple[str, ...]
    """Names of sites where it may be read."""
    purposes: tuple[str, ...]
    """What it may be used for; see `PURPOSES`."""
    until: date
    """Last day of the contract (UTC)."""
    issued: date
    """Day it was written (UTC); nothing is granted before."""
    serial: int
    """Number of this contract, from 1: the owner's next one about the same data has a higher one. A site that saw a
    higher one refuses this one."""
    withdrawal: WithdrawalClass = "D"
    """What withdrawing means: E, R or D."""
    protection: Protection = "jail"
    """How it must be kept. "jail": sealed on disk, opened only in a jail on a site that the consortium's root signed.
    "process": plain files, and our own code asks before it reads them."""
    may_merge: tuple[str, ...] = ()
    """Members whose sites may merge what was trained on it; nobody if left out."""
    may_serve: tuple[str, ...] = ()
    """Members whose sites may serve what was trained on it; nobody if left out."""
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Content digest by data set name (sha256, hex): the data set must have exactly the content given."""
    version: int = 2
    """Version of this schema. 2: version 1 had no serial and no issue date, so a replayed one could not be told."""


@dataclass(frozen=True)
class Request:
    """Who wants to read which data set, where, what for, and when. Nothing has a default.

    `hagane.seal.request_at` makes one; the `last_...` fields are what the site remembers.
    """

    dataset: str
    """Data set name."""
    digest: str
    """Content digest that the catalog recorded for it; "" while it is not known."""
    owner: str
    """Owner that the catalog recorded for it."""
    purpose: str
    """One of `PURPOSES`."""
    country: str
    """Country of the site that asks."""
    site: str
    """Name of the site that asks."""
    operator: str
    """Member, or the consortium, that runs that site."""
    site_signed: bool
    """True when the site's record is signed by the consortium's root and still runs."""
    jailed: bool
    """True when the data will be opened in a jail only."""
    today: date
    """Date of the request (UTC)."""
    last_day: date
    """Newest day that the site has seen; `date.min` when it has seen none."""
    last_serial: int
    """Highest serial that the site has seen of this owner's contracts about this data set; 0 for none."""
    last_contract: str
    """Digest of the contract with that serial; "" for none."""


@dataclass(frozen=True)
class Decision:
    """The answer of `permit`."""

    allowed: bool
    """True only when every term of the contract allows it."""
    reason: str
    """Why, in words."""
