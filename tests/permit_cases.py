"""Random contracts and requests for `permit`, and an oracle that was written apart from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from functools import cache
from itertools import product
from typing import Any

from hagane.seal import SignedContract
from hagane.terms import PURPOSES, Contract, Request, digest_bytes, dump_toml

OWNERS = ("member-robots", "member-cars", "member-steel")
DATASETS = ("arm-demo", "road-demo", "mill-demo")
COUNTRIES = ("JP", "DE", "KR")
SITES = ("lab", "plant-7", "depot")
OPERATORS = ("consortium", *OWNERS)
CONTENTS = tuple(digit * 64 for digit in "abc")
TODAY = date(2026, 11, 24)
DAY = timedelta(days=1)


class Sly(str):
    """Says that it equals everything and is in everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class SlyDate(date):
    """Says that it is never too early and never too late."""

    def __lt__(self, other: object) -> bool:
        return False

    __gt__ = __lt__


class SlyInt(int):
    """Says that it is less than everything."""

    def __gt__(self, other: object) -> bool:
        return False

    def __lt__(self, other: object) -> bool:
        return True


MISSPELT: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.title,
    lambda s: s + " ",
    lambda s: "\ufeff" + s,
    lambda s: s + "\u200b",  # a space without width
    lambda s: s + "\0",
    lambda s: s[:-1],
    lambda s: s.replace("a", "\u0430"),  # Cyrillic
    lambda s: s.replace("e", "\u0435").replace("J", "\uff2a"),  # full width
    lambda s: s.replace("o", "\u03bf"),  # Greek
    lambda s: "../" + s,
    lambda s: s + "/..",
    lambda s: "",
)
ODD: tuple[Any, ...] = (None, 0, 1, -1, 1.0, b"lab", ("lab",), [], "*", "", {"lab": 1}, "True", float("nan"), object())


@dataclass(frozen=True)
class Case:
    """A contract, what is wrong with it, and a request."""

    contract: Contract
    damage: str
    request: Request


DAMAGE = ("none", "no contract", "no signature", "no key", "digest", "terms", "form", "wrong thing")
FORMS: tuple[Callable[[str], str], ...] = (
    lambda t: t + 'extra = "1"\n',
    lambda t: t.replace("owner =", "ownr =", 1),
    lambda t: t.replace("may_serve =", "may_sreve =", 1),
    lambda t: t.replace("protection =", "protecton =", 1),
    lambda t: t.replace('protection = "', 'protection = "P', 1),
    lambda t: t.replace('withdrawal = "', 'withdrawal = "x', 1),
    lambda t: t.replace('purposes = ["', 'purposes = ["x', 1),
    lambda t: t.replace('sites = ["', 'sites = ["../', 1),
    lambda t: t.replace('owner = "member-', 'owner = "m\u0435mber-', 1),
    lambda t: t.replace('residency = ["', 'residency = ["jp", "', 1),
    lambda t: t.replace("until = 2", 'until = "x" # 2', 1),
    lambda t: t.replace("issued = ", "# ", 1),
    lambda t: t.replace("serial = ", "# ", 1),
    lambda t: t.replace("serial = ", "serial = -", 1),
    lambda t: t.replace("serial = ", "serial = true # ", 1),
    lambda t: t.replace("version = 2", "version = 1", 1),
    lambda t: t.replace("version = 2", "version = 3", 1),
    lambda t: t.replace('may_serve = ["', 'may_serve = ["A', 1).replace("may_serve = []", 'may_serve = ["A"]', 1),
    lambda t: t[: len(t) // 2],
    lambda t: "",
)
"""Texts that are no contract, out of one that is."""


@cache
def signed_of(contract: Contract) -> SignedContract:
    """As `load_contract` makes it; permit does not look into the signature, only that there is one."""
    toml = dump_toml(contract).encode()
    return SignedContract(contract, digest_bytes(toml), "0" * 64, toml, b"{}")


def draw_case(seed: int) -> Case:
    """A contract and a request that mostly fits it, so that each term decides often; then some things go wrong."""
    rng = random.Random(seed)
    contract = _draw_contract(rng)
    request = _fitting(rng, contract)
    for name in rng.sample([f.name for f in fields(Request)], rng.choice((0, 0, 0, 1, 1, 1, 2))):
        request = replace(request, **{name: _spoilt(rng, name, getattr(request, name), contract)})
    damage = rng.choice(DAMAGE) if rng.randrange(5) == 0 else "none"
    return Case(contract, damage, request)


def _some(rng: random.Random, words: tuple[str, ...], least: int = 1) -> tuple[str, ...]:
    return tuple(rng.sample(words, rng.randint(least, len(words) - 1)))


def _draw_contract(rng: random.Random) -> Contract:
    datasets = _some(rng, DATASETS)
    until = TODAY + rng.randint(-3, 40) * DAY
    return Contract(
        owner=rng.choice(OWNERS),
        datasets=datasets,
        residency=_some(rng, COUNTRIES),
        sites=_some(rng, SITES),
        purposes=_some(rng, PURPOSES),
        until=until,
        issued=min(until, TODAY + rng.randint(-400, 3) * DAY),
        serial=rng.choice((1, 2, 3, 7, 2**53)),
        withdrawal=rng.choice("ERDD"),  # type: ignore[arg-type]
        protection=rng.choice(("jail", "process")),
        may_merge=_some(rng, OPERATORS, 0),
        may_serve=_some(rng, OPERATORS, 0),
        digests={d: rng.choice(CONTENTS) for d in datasets if rng.randrange(2)},
    )


def _fitting(rng: random.Random, contract: Contract) -> Request:
    dataset, purpose = rng.choice(contract.datasets), rng.choice(contract.purposes)
    may = {"merge": contract.may_merge, "serve": contract.may_serve}.get(purpose) or OPERATORS
    safe = contract.protection == "jail" or rng.randrange(2) == 0
    today = rng.choice((TODAY, contract.until, contract.issued))
    mine = signed_of(contract).digest
    last_serial, last_contract = rng.choice(((0, ""), (contract.serial - 1, CONTENTS[0]), (contract.serial, mine)))
    return Request(
        dataset=dataset,
        digest=contract.digests.get(dataset, rng.choice(("", *CONTENTS))),
        owner=contract.owner,
        purpose=purpose,
        country=rng.choice(contract.residency),
        site=rng.choice(contract.sites),
        operator=rng.choice(may),
        site_signed=safe,
        jailed=safe,
        today=today,
        last_day=rng.choice((date.min, today - DAY, today)),
        last_serial=last_serial,
        last_contract=last_contract,
    )


def _spoilt(rng: random.Random, name: str, value: Any, contract: Contract) -> Any:
    """Another value for a field of a request: a plausible one, a misspelt one, or none at all."""
    if rng.randrange(6) == 0:
        return rng.choice(ODD)
    if name in ("today", "last_day"):
        edges = (contract.until + DAY, contract.issued - DAY, contract.until, contract.issued, TODAY + DAY)
        return rng.choice((*edges, "2026-11-24", datetime(2026, 11, 24), SlyDate(2026, 11, 24), date.max))
    if name in ("site_signed", "jailed"):
        return rng.choice((True, False, 1, 0, "yes", None))
    if name == "last_serial":
        return rng.choice(
            (contract.serial + 1, contract.serial, contract.serial - 1, True, SlyInt(contract.serial + 1))
        )
    words = {
        "dataset": DATASETS, "owner": OWNERS, "purpose": PURPOSES, "country": COUNTRIES, "site": SITES,
        "operator": OPERATORS, "digest": CONTENTS, "last_contract": CONTENTS,
    }[name]  # fmt: skip
    return rng.choice((rng.choice(words), rng.choice(words), rng.choice(MISSPELT)(value), Sly(value)))


def present(case: Case) -> Any:
    """What permit is handed as the signed contract."""
    good = signed_of(case.contract)
    if case.damage == "terms":
        wider = replace(case.contract, purposes=PURPOSES, until=date(2099, 1, 1), residency=COUNTRIES, sites=SITES)
        return replace(good, contract=wider)
    if case.damage == "form":
        form = FORMS[len(good.toml) % len(FORMS)]
        toml = form(good.toml.decode()).encode()
        return replace(good, toml=toml, digest=digest_bytes(toml))
    return {
        "none": good,
        "no contract": None,
        "no signature": replace(good, signature=b""),
        "no key": replace(good, key_id=""),
        "digest": replace(good, digest="0" * 64),
        "wrong thing": case.contract,
    }[case.damage]


TYPES = {
    "dataset": str, "digest": str, "owner": str, "purpose": str, "country": str, "site": str, "operator": str,
    "site_signed": bool, "jailed": bool, "today": date, "last_day": date, "last_serial": int, "last_contract": str,
}  # fmt: skip


def should_allow(case: Case) -> bool:
    """The oracle: the set of all that a contract grants, written out, and whether the request is in it."""
    c, r = case.contract, case.request
    if case.damage != "none" or {f.name: type(getattr(r, f.name)) for f in fields(Request)} != TYPES:
        return False
    uses = set(c.purposes)
    if c.withdrawal == "E":
        uses -= {"anchor", "statistics", "router"}
    runs = {"merge": set(c.may_merge), "serve": set(c.may_serve)}
    granted = {
        (c.owner, d, use, country, site, operator)
        for d, use, country, site in product(c.datasets, uses, c.residency, c.sites)
        for operator in runs.get(use, {r.operator} - {""})
    }
    contents = {d: {c.digests.get(d, r.digest)} for d in c.datasets}
    days = range(c.issued.toordinal(), c.until.toordinal() + 1)
    known = {(c.serial, signed_of(c).digest)}
    return all((
        (r.owner, r.dataset, r.purpose, r.country, r.site, r.operator) in granted,
        r.digest in contents.get(r.dataset, ()),
        r.today.toordinal() in days,
        sorted((r.last_day, r.today))[1] == r.today,
        r.last_serial <= c.serial - 1 or (r.last_serial, r.last_contract) in known,
        c.protection == "process" or (r.site_signed, r.jailed) == (True, True),
    ))  # fmt: skip
