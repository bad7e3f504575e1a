"""permit: nothing absent, unknown, expired or misspelt ever allows; and the tests would notice if it did."""

from __future__ import annotations

import ast
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.seal import SignedContract, permit
from hagane.terms import PURPOSES, Contract, Decision, Request, digest_bytes, dump_toml
from tests.seal_setup import CONTRACT, REQUEST

Permit = Callable[[Any, Any], Decision]
SOURCE = Path(sys.modules[permit.__module__].__file__ or "")
OWNERS = ("member-robots", "member-cars", "member-steel")
DATASETS = ("arm-demo", "road-demo", "mill-demo")
COUNTRIES = ("JP", "DE", "KR")
SITES = ("lab", "plant-7", "depot")
TODAY = date(2026, 11, 24)


def signed_of(contract: Contract) -> SignedContract:
    """As `load_contract` makes it; permit does not look into the signature, only that there is one."""
    toml = dump_toml(contract).encode()
    return SignedContract(contract, digest_bytes(toml), "0" * 64, toml, b"{}")


DAMAGE = ("none", "no contract", "no signature", "no key", "digest", "terms", "form", "wrong thing")
MISSPELT = (str.upper, str.title, lambda s: s + " ", lambda s: s[:-1], lambda s: s.replace("a", "\u0430"), lambda s: "")


@dataclass(frozen=True)
class Case:
    """A contract, what is wrong with it, and a request."""

    contract: Contract
    damage: str
    request: Request


def draw_case(seed: int) -> Case:
    """A contract and a request that mostly fits it, so that each term decides often; then some things go wrong."""
    rng = random.Random(seed)

    def some(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(rng.sample(words, rng.randint(1, len(words) - 1)))

    contract = Contract(
        owner=rng.choice(OWNERS),
        datasets=some(DATASETS),
        residency=some(COUNTRIES),
        sites=some(SITES),
        purposes=some(PURPOSES),
        until=TODAY + timedelta(days=rng.randint(-3, 400)),
        withdrawal=rng.choice("ERD"),  # type: ignore[arg-type]
    )
    request = Request(
        dataset=rng.choice(contract.datasets),
        owner=contract.owner,
        purpose=rng.choice(contract.purposes),
        country=rng.choice(contract.residency),
        site=rng.choice(contract.sites),
        today=rng.choice((TODAY, contract.until, contract.until + timedelta(days=1))),
    )
    words: dict[str, tuple[str, ...]] = {
        "dataset": DATASETS, "owner": OWNERS, "purpose": PURPOSES, "country": COUNTRIES, "site": SITES,
    }  # fmt: skip
    for field in rng.sample(sorted(words), rng.choice((0, 0, 1, 1, 1, 2))):
        match rng.randrange(3):
            case 0:
                value: Any = rng.choice(words[field])
            case 1:
                value = rng.choice(MISSPELT)(getattr(request, field))
            case _:
                value = rng.choice((None, 0, True, b"lab", ("lab",), [], "*", {"lab": 1}))
        request = replace(request, **{field: value})
    if rng.randrange(10) == 0:
        odd: Any = rng.choice((None, "2026-11-24", datetime(2026, 11, 24), 0))
        request = replace(request, today=odd)
    damage = rng.choice(DAMAGE) if rng.randrange(3) == 0 else "none"
    return Case(contract, damage, request)


def present(case: Case) -> Any:
    """What permit is handed as the signed contract."""
    good = signed_of(case.contract)
    if case.damage == "terms":
        wider = replace(case.contract, purposes=PURPOSES, until=date(2099, 1, 1), residency=COUNTRIES, sites=SITES)
        return replace(good, contract=wider)
    if case.damage == "form":
        toml = good.toml + b"extra = 1\n"
        return replace(good, toml=toml, digest=digest_bytes(toml))
    return {
        "none": good,
        "no contract": None,
        "no signature": replace(good, signature=b""),
        "no key": replace(good, key_id=""),
        "digest": replace(good, digest="0" * 64),
        "wrong thing": case.contract,
    }[case.damage]


def should_allow(case: Case) -> bool:
    """The oracle, written apart from permit: every single term must fit."""
    c, r = case.contract, case.request
    return (
        case.damage == "none"
        and all(type(x) is str for x in (r.dataset, r.owner, r.purpose, r.country, r.site))
        and type(r.today) is date
        and r.dataset in set(c.datasets)
        and r.owner == c.owner
        and r.purpose in set(c.purposes)
        and r.country in set(c.residency)
        and r.site in set(c.sites)
        and (c.until - r.today).days >= 0
        and not (r.purpose == "anchor" and c.withdrawal == "E")
    )


def agree(decide: Permit, case: Case) -> None:
    """AssertionError when a permit differs from the oracle."""
    decision = decide(present(case), case.request)
    assert type(decision) is Decision
    assert decision.allowed is should_allow(case), (case, decision)
    assert len(decision.reason) > 10 and "\n" not in decision.reason


@settings(max_examples=2500, deadline=None)
@given(st.integers(0, 2**64))
def test_permit_agrees_with_the_oracle(seed: int) -> None:
    agree(permit, draw_case(seed))


def test_the_cases_are_of_both_kinds() -> None:
    allowed = sum(should_allow(draw_case(seed)) for seed in range(1000))
    assert 100 < allowed < 900


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=3), st.dates())


@settings(deadline=None)
@given(st.tuples(*[anything] * 6), st.tuples(*[anything] * 5))
def test_permit_never_raises_and_nonsense_never_allows(request: tuple[Any, ...], signed: tuple[Any, ...]) -> None:
    nonsense = SignedContract(*signed)
    good = signed_of(CONTRACT)
    for left in (None, nonsense, good, signed, 3, "x"):
        for right in (Request(*request), None, "anchor"):
            assert not permit(left, right).allowed  # type: ignore[arg-type]
    assert not permit(nonsense, REQUEST).allowed


class Odd:
    """Breaks every comparison."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = object.__hash__


def test_an_object_that_breaks_comparisons_is_refused() -> None:
    odd = replace(signed_of(CONTRACT), contract=Odd())  # type: ignore[arg-type]
    assert "could not be judged" in permit(odd, REQUEST).reason


WORDS: dict[str, tuple[SignedContract | None, Request, str]] = {
    "no contract": (None, REQUEST, "there is no signed contract"),
    "unsigned": (replace(signed_of(CONTRACT), signature=b""), REQUEST, "not signed by its owner"),
    "data set": (signed_of(CONTRACT), replace(REQUEST, dataset="arm-demo"), "it names road-demo, road-2"),
    "owner": (signed_of(CONTRACT), replace(REQUEST, owner="member-steel"), "belongs to 'member-steel'"),
    "purpose": (signed_of(CONTRACT), replace(REQUEST, purpose="serve"), "not granted (granted: anchor, evaluate)"),
    "misspelt": (signed_of(CONTRACT), replace(REQUEST, purpose="ancor"), "did you mean 'anchor'"),
    "country": (signed_of(CONTRACT), replace(REQUEST, country="US"), "may not be read in 'US' (allowed: JP, DE)"),
    "site": (signed_of(CONTRACT), replace(REQUEST, site="depot"), "at site 'depot' (allowed: lab, plant-7)"),
    "expired": (signed_of(CONTRACT), replace(REQUEST, today=date(2027, 4, 1)), "expired on 2027-03-31"),
    "class E": (signed_of(replace(CONTRACT, withdrawal="E")), REQUEST, "class E"),
    "no date": (signed_of(CONTRACT), replace(REQUEST, today=None), "does not say its date"),  # type: ignore[arg-type]
    "no site": (signed_of(CONTRACT), replace(REQUEST, site=""), "does not say its site"),
    "allowed": (signed_of(CONTRACT), REQUEST, "grants 'anchor'"),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_reason_is_in_words(case: str) -> None:
    signed, request, words = WORDS[case]
    decision = permit(signed, request)
    assert words in decision.reason
    assert decision.allowed == (case == "allowed")


def test_the_last_day_counts() -> None:
    assert permit(signed_of(CONTRACT), replace(REQUEST, today=CONTRACT.until)).allowed


MUTANTS = [
    ("if signed is None:", "if signed is None:\n        return ''\n    if signed is None:"),
    ("if not signed.signature or not signed.key_id:", "if not signed.signature and not signed.key_id:"),
    ("if not signed.signature or not signed.key_id:", "if not signed.signature:"),
    ("if digest_bytes(signed.toml) != signed.digest:", "if False:"),
    ("if contract != signed.contract:", "if False:"),
    ("contract = read_contract(signed.toml)", "contract = signed.contract"),
    ("return _malformed(request) or _not_granted(contract, request)", "return _malformed(request)"),
    ("return _malformed(request) or _not_granted(contract, request)", "return _not_granted(contract, request) and ''"),
    ("if request.owner != contract.owner:", "if request.owner == contract.owner:"),
    ("if request.owner != contract.owner:", "if request.owner not in ('member-cars', contract.owner):"),
    ("if request.dataset not in contract.datasets:", "if request.dataset in contract.datasets:"),
    ("if request.dataset not in contract.datasets:", "if not any(request.dataset in d for d in contract.datasets):"),
    ("if request.today > contract.until:", "if request.today >= contract.until:"),
    ("if request.today > contract.until:", "if request.today.year > contract.until.year:"),
    ("if request.today > contract.until:", "if request.today < contract.until:"),
    ("if request.purpose not in contract.purposes:", "if request.purpose not in PURPOSES:"),
    ('if request.purpose == "anchor" and contract.withdrawal == "E":', "if False:"),
    ('if request.purpose == "anchor" and contract.withdrawal == "E":', 'if contract.withdrawal == "E":'),
    ('contract.withdrawal == "E"', 'contract.withdrawal == "R"'),
    ("if request.country not in contract.residency:", "if request.country not in contract.residency + ('DE',):"),
    ("if request.country not in contract.residency:", "if request.country.upper() not in contract.residency:"),
    ("if request.site not in contract.sites:", "if request.site.strip() not in contract.sites:"),
    ("if request.site not in contract.sites:", "if request.country not in contract.residency:"),
    ("return Decision(False, reason)", "return Decision(True, reason)"),
]


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_every_mutant_is_caught(number: int) -> None:
    old, new = MUTANTS[number]
    source = SOURCE.read_text("utf-8")
    assert source.count(old) == 1, f"the mutant no longer fits the source: {old}"
    mutant = types.ModuleType("mutant")
    sys.modules["mutant"] = mutant
    exec(compile(source.replace(old, new), "mutant.py", "exec"), mutant.__dict__)
    with pytest.raises(AssertionError):
        for seed in range(3000):
            agree(mutant.permit, draw_case(seed))


def test_every_branch_is_taken() -> None:
    taken: set[tuple[int, int]] = set()

    def trace(frame: types.FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != str(SOURCE):
            return None
        last = [frame.f_lineno]

        def local(frame: types.FrameType, event: str, arg: object) -> Any:
            if event == "line":
                taken.add((last[0], frame.f_lineno))
                last[0] = frame.f_lineno
            return local

        return local

    cases = [*((s, r) for s, r, _ in WORDS.values()), (3, REQUEST), (object(), None)]
    cases += [(present(Case(CONTRACT, damage, REQUEST)), REQUEST) for damage in DAMAGE]
    cases += [(replace(signed_of(CONTRACT), contract=Odd()), REQUEST)]  # type: ignore[arg-type]
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for signed, request in cases:
            permit(signed, request)  # type: ignore[arg-type]
    finally:
        sys.settrace(before)
    lines = {b for _, b in taken}
    for node in ast.walk(ast.parse(SOURCE.read_text("utf-8"))):
        if isinstance(node, ast.If):
            ends = {b for a, b in taken if node.test.lineno <= a <= (node.test.end_lineno or 0)}
            inside = ends & set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
            assert inside, f"line {node.lineno}: never true"
            outside = ends - set(range(node.lineno, (node.body[-1].end_lineno or 0) + 1))
            assert outside, f"line {node.lineno}: never false"
        if isinstance(node, ast.ExceptHandler):
            assert node.body[0].lineno in lines, f"line {node.lineno}: never raised"
        if isinstance(node, ast.Return):
            assert lines & set(range(node.lineno, (node.end_lineno or 0) + 1)), f"line {node.lineno}: never returned"
