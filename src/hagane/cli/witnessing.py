"""Whether other members have seen this site's ledger lately: asked before weights leave, or are served.

`witnesses.toml` in the site's folder names who countersigns; without one nobody does, and everything stays pending.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hagane.cli.site import ledger_of, site_of
from hagane.seal import TrustStore, check_name, load_private, public_of
from hagane.seal.history import Witnessed, require_witnessed, verify_history, witnessed_heads
from hagane.terms import ConfigError, Refused, load_toml

DAY_S = 86_400.0


@dataclass(frozen=True)
class Witnesses:
    """Who countersigns a site's ledger, and how long it may go without.

    Raises:
        ConfigError: no member, a quorum that they cannot reach, an age that is not positive.
    """

    members: tuple[str, ...]
    """Members whose keys lie in trust/."""
    quorum: int = 1
    """How many of them a head needs."""
    max_pending_days: float = 7.0
    """Oldest entry without their countersignature when weights leave or are served."""

    def __post_init__(self) -> None:
        for member in self.members:
            check_name(member)
        if not 1 <= self.quorum <= len(set(self.members)) or not self.max_pending_days > 0:
            raise ConfigError(
                f"a quorum of {self.quorum} out of {len(set(self.members))} members, {self.max_pending_days} days",
                where="witnesses.toml",
                next_step="name at least as many members as the quorum, and a positive number of days",
            )


def demand_witnessed(home: Path, now_ns: Callable[[], int] = time.time_ns) -> str:
    """Go on only if no entry of the ledger has been pending for longer than `witnesses.toml` allows; says how it is.

    Args:
        home: the site's folder; countersigned heads lie in its heads/.
        now_ns: Unix nanoseconds; for tests.

    Raises:
        Refused: an entry is pending for too long.
        CorruptError: the ledger is not the one that was countersigned, or a countersignature is forged.
        ConfigError: witnesses.toml or the host key is not usable.
    """
    if not (home / "witnesses.toml").exists():
        return "nobody countersigns this ledger (no witnesses.toml): its entries stay pending"
    terms = load_toml(home / "witnesses.toml", Witnesses)
    key = public_of(load_private(home / "keys" / "host.pem"))
    found = witnessed_heads(home / "heads", site_of(home).name, key, TrustStore(home / "trust"))
    heads = [Witnessed(w.head, by) for w in found if len(by := _of(w, terms.members)) >= terms.quorum]
    ledger = ledger_of(home)
    covered, size = max((w.head.size for w in heads), default=0), verify_history(ledger, heads).size
    if covered >= size:
        return f"all {size} entries of the ledger are witnessed"
    decision = require_witnessed(ledger, covered, heads, now_ns(), terms.max_pending_days * DAY_S)
    if not decision.allowed:
        raise Refused(
            decision.reason,
            where=str(home / "ledger.jsonl"),
            next_step="hagane audit head --home ..., carry heads/ to the witnesses, and take their files back",
        )
    return f"{covered} of {size} entries of the ledger are witnessed; {decision.reason}"


def _of(witnessed: Witnessed, members: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    return tuple((name, time_s) for name, time_s in witnessed.by if name in members)
