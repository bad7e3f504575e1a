"""Contract, Request, Decision: the words of the right to use data. `seal` decides with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

Purpose = Literal["anchor", "member-training", "finetune", "evaluate", "distil", "serve", "view", "export"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
WithdrawalClass = Literal["E", "R", "D"]


@dataclass(frozen=True)
class Contract:
    """An owner's terms for its data sets, written as TOML and signed (Ed25519).

    Purposes tell training a shared anchor ("anchor") from a member's own experts ("member-training").
    Withdrawal classes: E exact (lives only in the member's own bundle), R re-tune the router, D revoke and
    retrain.
    """

    owner: str
    """The member that owns the data."""
    datasets: tuple[str, ...]
    """Data set names (digests once they are known)."""
    residency: tuple[str, ...]
    """ISO 3166-1 alpha-2 countries where the data may be read."""
    sites: tuple[str, ...]
    """Names of sites where it may be read."""
    purposes: tuple[str, ...]
    """What it may be used for; see `PURPOSES`."""
    until: date
    """Last day of the contract."""
    withdrawal: WithdrawalClass = "D"
    """What withdrawing means: E, R or D."""
    version: int = 1
    """Version of this schema."""


@dataclass(frozen=True)
class Request:
    """Who wants to read which data set, where, what for, and when. Nothing has a default."""

    dataset: str
    """Data set name."""
    owner: str
    """Owner that the catalog recorded for it."""
    purpose: str
    """One of `PURPOSES`."""
    country: str
    """Country of the site that asks."""
    site: str
    """Name of the site that asks."""
    today: date
    """Date of the request."""


@dataclass(frozen=True)
class Decision:
    """The answer of `permit`."""

    allowed: bool
    """True only when every term of the contract allows it."""
    reason: str
    """Why, in words."""
