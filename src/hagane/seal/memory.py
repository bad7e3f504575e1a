"""Memory: what a site must not forget, so that neither an old contract nor an old clock brings a right back.

For every owner and data set the newest contract that was used, and the newest day. `permit` compares; the ledger
tells the story, this file only keeps the sums of it. Whoever can delete it can also turn the clock: a site whose own
administrator lies is not covered.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from hagane.seal.contracts import SignedContract, is_digest
from hagane.seal.entry import BadLineError, read_line
from hagane.seal.site import Site
from hagane.terms import CorruptError, Request, StoreError
from hagane.terms.files import alone, write_whole

FORM = 1
NEVER = date.min
TAIL = 1 << 20


def utc_today() -> date:
    """The day in UTC: contracts and sites in all time zones count the same days."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class Last:
    """The newest contract about one data set of one owner."""

    serial: int = 0
    """Its serial; 0 for none."""
    contract: str = ""
    """Its digest; "" for none."""


class Memory:
    """A file that only grows newer. Several processes may use it: each change holds its lock and is synced.

    Args:
        path: the JSON file; made by the first `take`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def day(self) -> date:
        """The newest day seen; `date.min` for none.

        Raises:
            CorruptError: the file is damaged.
        """
        return self._load()[0]

    def last(self, owner: str, dataset: str) -> Last:
        """The newest contract of an owner about a data set.

        Raises:
            CorruptError: the file is damaged.
        """
        return self._load()[1].get(f"{owner}/{dataset}", Last())

    def take(self, signed: SignedContract, dataset: str, today: date) -> None:
        """Remember a contract that `permit` allowed, and the day. Older ones change nothing.

        Raises:
            CorruptError: the file is damaged.
            StoreError: the disk refuses; what was remembered is as it was.
        """
        name = f"{signed.contract.owner}/{dataset}"
        new = Last(signed.contract.serial, signed.digest)
        if not self._is_news(self._load(), name, new, today):
            return
        with alone(self.path.with_name(f".{self.path.name}.lock")):
            day, lasts = self._load()
            if self._is_news((day, lasts), name, new, today):
                kept = lasts.get(name, Last())
                lasts[name] = new if new.serial > kept.serial else kept
                self._save(max(day, today), lasts)

    @staticmethod
    def _is_news(known: tuple[date, dict[str, Last]], name: str, new: Last, today: date) -> bool:
        return today > known[0] or new.serial > known[1].get(name, Last()).serial

    def _load(self) -> tuple[date, dict[str, Last]]:
        try:
            table = json.loads(self.path.read_bytes())
            if set(table) != {"form", "day", "contracts"} or table["form"] != FORM:
                raise ValueError("another form")
            lasts = {name: _last(entry) for name, entry in table["contracts"].items()}
            return date.fromisoformat(table["day"]), lasts
        except FileNotFoundError:
            return NEVER, {}
        except OSError as e:
            raise StoreError(f"cannot be read: {e.strerror}", where=str(self.path)) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CorruptError(
                "what this site remembers of contracts is damaged, so nothing is granted",
                where=str(self.path),
                next_step="restore it from a copy; without one, remove it by hand and renew every contract",
            ) from None

    def _save(self, day: date, lasts: dict[str, Last]) -> None:
        contracts = {name: asdict(last) for name, last in sorted(lasts.items())}
        table = {"form": FORM, "day": day.isoformat(), "contracts": contracts}
        try:
            write_whole(self.path, [json.dumps(table, indent=1).encode() + b"\n"])
        except OSError as e:
            raise StoreError(f"cannot be written: {e.strerror}", where=str(self.path)) from None


def ledger_day(ledger: Path) -> date:
    """The day (UTC) of a ledger's last whole line, out of its last MiB; `date.min` when there is none.

    Only a floor for the clock: whether the ledger is sound is for `Ledger.verify` to say.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with ledger.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - TAIL))
            lines = f.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return NEVER
    except OSError as e:
        raise StoreError(f"cannot be read: {e.strerror}", where=str(ledger)) from None
    try:
        return datetime.fromtimestamp(read_line(lines[-1] + b"\n").time_ns / 1e9, UTC).date()
    except (IndexError, BadLineError, ValueError, OverflowError, OSError):
        return NEVER


def request_at(
    site: Site,
    memory: Memory | None,
    dataset: str,
    digest: str,
    owner: str,
    purpose: str,
    *,
    jailed: bool,
    today: date,
    seen: date = NEVER,
) -> Request:
    """What a site asks `permit`.

    Args:
        site: where the data would be read.
        memory: what the site remembers; None remembers nothing.
        dataset: name of the data set.
        digest: its content digest; "" while it is not known.
        owner: its owner, as the catalog recorded it.
        purpose: one of `PURPOSES`.
        jailed: whether it will be opened in a jail only.
        today: the day (UTC).
        seen: a day that the site has seen besides, as `ledger_day`.

    Raises:
        StoreError: what the site remembers cannot be read.
    """
    last = memory.last(owner, dataset) if memory else Last()
    return Request(
        dataset=dataset,
        digest=digest,
        owner=owner,
        purpose=purpose,
        country=site.country,
        site=site.name,
        operator=site.operator,
        site_signed=site.signed_on(today),
        jailed=jailed,
        today=today,
        last_day=max(memory.day(), seen) if memory else seen,
        last_serial=last.serial,
        last_contract=last.contract,
    )


def _last(entry: Any) -> Last:
    last = Last(**entry)
    if type(last.serial) is not int or last.serial < 1 or not is_digest(last.contract):
        raise ValueError("no serial and digest")
    return last
