"""permit: nothing absent, unknown, expired or misspelt ever allows; and the tests would notice if it did."""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.seal import SignedContract, permit
from hagane.terms import Decision, Request, digest_bytes
from tests.permit_cases import DAMAGE, FORMS, Case, Sly, draw_case, present, should_allow, signed_of
from tests.seal_setup import CONTRACT, REQUEST

Permit = Callable[[Any, Any], Decision]
SOURCE = Path(sys.modules[permit.__module__].__file__ or "")


def agree(decide: Permit, case: Case) -> None:
    """AssertionError when a permit differs from the oracle."""
    decision = decide(present(case), case.request)
    assert type(decision) is Decision
    assert decision.allowed is should_allow(case), (case, decision)
    assert len(decision.reason) > 10 and "\n" not in decision.reason


def test_permit_agrees_with_the_oracle_on_10_000_cases() -> None:
    for seed in range(10_000):
        agree(permit, draw_case(seed))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64))
def test_permit_agrees_with_the_oracle_on_any_case(seed: int) -> None:
    agree(permit, draw_case(seed))


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_no_form_of_damage_is_a_contract(number: int) -> None:
    good = signed_of(CONTRACT)
    toml = FORMS[number](good.toml.decode()).encode()
    assert toml != good.toml, "the damage no longer fits the text"
    assert "not well formed" in permit(replace(good, toml=toml, digest=digest_bytes(toml)), REQUEST).reason


def test_the_cases_are_of_both_kinds() -> None:
    allowed = sum(should_allow(draw_case(seed)) for seed in range(1000))
    assert 100 < allowed < 900


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=3), st.dates())


@settings(deadline=None)
@given(st.tuples(*[anything] * len(fields(Request))), st.tuples(*[anything] * 5))
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


JAIL = replace(CONTRACT, protection="jail")
PINNED = replace(CONTRACT, digests={"road-demo": "a" * 64})
SHARED = replace(CONTRACT, purposes=("merge", "serve"))
WORDS: dict[str, tuple[SignedContract | None, Request, str]] = {
    "no contract": (None, REQUEST, "there is no signed contract"),
    "unsigned": (replace(signed_of(CONTRACT), signature=b""), REQUEST, "not signed by its owner"),
    "data set": (signed_of(CONTRACT), replace(REQUEST, dataset="arm-demo"), "it names road-demo, road-2"),
    "owner": (signed_of(CONTRACT), replace(REQUEST, owner="member-steel"), "belongs to 'member-steel'"),
    "content": (signed_of(PINNED), replace(REQUEST, digest="b" * 64), "and this content is bbbbbbbbbbbbbbbb"),
    "no content": (signed_of(PINNED), REQUEST, "and this content is not known"),
    "purpose": (signed_of(CONTRACT), replace(REQUEST, purpose="serve"), "not granted (granted: anchor, evaluate)"),
    "misspelt": (signed_of(CONTRACT), replace(REQUEST, purpose="ancor"), "did you mean 'anchor'"),
    "no such purpose": (signed_of(CONTRACT), replace(REQUEST, purpose="xyz"), "'xyz' is not a purpose (purposes:"),
    "country": (signed_of(CONTRACT), replace(REQUEST, country="US"), "may not be read in 'US' (allowed: JP, DE)"),
    "site": (signed_of(CONTRACT), replace(REQUEST, site="depot"), "at site 'depot' (allowed: lab, plant-7)"),
    "expired": (signed_of(CONTRACT), replace(REQUEST, today=date(2027, 4, 1)), "expired on 2027-03-31"),
    "future": (signed_of(CONTRACT), replace(REQUEST, today=date(2026, 3, 31)), "from the future: issued on 2026-04-01"),
    "clock": (signed_of(CONTRACT), replace(REQUEST, last_day=date(2026, 11, 25)), "the clock was set back: it says"),
    "replayed": (signed_of(CONTRACT), replace(REQUEST, last_serial=4), "this site has seen serial 4"),
    "same serial": (signed_of(CONTRACT), replace(REQUEST, last_serial=3), "another contract of 'member-cars' with"),
    "class E": (signed_of(replace(CONTRACT, withdrawal="E")), REQUEST, "class E"),
    "merge": (
        signed_of(SHARED),
        replace(REQUEST, purpose="merge"),
        "'consortium' may not merge what was trained on it",
    ),
    "serve": (
        signed_of(SHARED),
        replace(REQUEST, purpose="serve"),
        "may not serve what was trained on it (may: member-",
    ),
    "not signed": (signed_of(JAIL), replace(REQUEST, jailed=True), "the record of site 'lab' is not signed"),
    "no jail": (signed_of(JAIL), replace(REQUEST, site_signed=True), "asks for a jail, and this process is not in one"),
    "no date": (signed_of(CONTRACT), replace(REQUEST, today=None), "does not say its today"),  # type: ignore[arg-type]
    "no site": (signed_of(CONTRACT), replace(REQUEST, site=""), "does not say its site"),
    "allowed": (signed_of(CONTRACT), REQUEST, "grants 'anchor'"),
    "allowed in jail": (signed_of(JAIL), replace(REQUEST, site_signed=True, jailed=True), "grants 'anchor'"),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_reason_is_in_words(case: str) -> None:
    signed, request, words = WORDS[case]
    decision = permit(signed, request)
    assert words in decision.reason
    assert decision.allowed == case.startswith("allowed")


def test_the_last_day_counts() -> None:
    assert permit(signed_of(CONTRACT), replace(REQUEST, today=CONTRACT.until)).allowed


def test_an_object_that_equals_everything_grants_nothing() -> None:
    for name in ("dataset", "digest", "owner", "purpose", "country", "site", "operator", "last_contract"):
        assert "does not say" in permit(signed_of(PINNED), replace(REQUEST, **{name: Sly("x")})).reason  # type: ignore[arg-type]


ALL = """        _malformed(request)
        or _other_data(contract, request)
        or _out_of_time(contract, signed.digest, request)
        or _not_granted(contract, request)
        or _wrong_place(contract, request)
"""
MUTANTS = [
    ("if signed is None:", "if signed is None:\n        return ''\n    if signed is None:"),
    ("if not signed.signature or not signed.key_id:", "if not signed.signature and not signed.key_id:"),
    ("if not signed.signature or not signed.key_id:", "if not signed.signature:"),
    ("if not signed.signature or not signed.key_id:", "if not signed.key_id:"),
    ("if digest_bytes(signed.toml) != signed.digest:", "if False:"),
    ("if contract != signed.contract:", "if False:"),
    ("contract = read_contract(signed.toml)", "contract = signed.contract"),
    ("return Decision(False, reason)", "return Decision(True, reason)"),
    *(
        (ALL, ALL.replace(line, "        ''\n" if number == 0 else ""))
        for number, line in enumerate(ALL.splitlines(True))
    ),
    ("if type(value) is not str or not value:", "if type(value) is not str:"),
    ("if type(value) is not str or not value:", "if not isinstance(value, str) or not value:"),
    ("if type(getattr(request, name)) is not kind:", "if not isinstance(getattr(request, name), kind):"),
    ("if type(getattr(request, name)) is not kind:", "if getattr(request, name) is None:"),
    ("if request.owner != contract.owner:", "if request.owner == contract.owner:"),
    ("if request.owner != contract.owner:", "if request.owner not in ('member-cars', contract.owner):"),
    ("if request.dataset not in contract.datasets:", "if request.dataset in contract.datasets:"),
    ("if request.dataset not in contract.datasets:", "if not any(request.dataset in d for d in contract.datasets):"),
    ("if pinned is not None and request.digest != pinned:", "if False:"),
    ("if pinned is not None and request.digest != pinned:", "if pinned and request.digest not in ('', pinned):"),
    ("if pinned is not None and request.digest != pinned:", "if request.digest != pinned:"),
    ("pinned = contract.digests.get(request.dataset)", "pinned = (*contract.digests.values(), None)[0]"),
    ("if request.today < request.last_day:", "if False:"),
    ("if request.today < request.last_day:", "if request.today <= request.last_day:"),
    ("if request.today < contract.issued:", "if request.today <= contract.issued:"),
    ("if request.today < contract.issued:", "if False:"),
    ("if request.today > contract.until:", "if request.today >= contract.until:"),
    ("if request.today > contract.until:", "if request.today.month > contract.until.month:"),
    ("if request.today > contract.until:", "if request.today < contract.until:"),
    ("if contract.serial < request.last_serial:", "if contract.serial <= request.last_serial:"),
    ("if contract.serial < request.last_serial:", "if False:"),
    ("contract.serial == request.last_serial and digest != request.last_contract", "False"),
    ("contract.serial == request.last_serial and digest != request.last_contract", "digest != request.last_contract"),
    ("if request.purpose not in contract.purposes:", "if request.purpose not in PURPOSES:"),
    ("if request.purpose in NOT_REMOVABLE and contract", "if request.purpose == 'anchor' and contract"),
    ("if request.purpose in NOT_REMOVABLE and contract", "if contract"),
    ('contract.withdrawal == "E"', 'contract.withdrawal == "R"'),
    ('request.purpose == "merge" and request.operator not in', 'request.purpose == "merge" and request.owner not in'),
    ('request.purpose == "merge" and request.operator not in', "request.operator not in"),
    ("request.operator not in contract.may_merge:", "request.operator not in contract.may_serve:"),
    ('request.purpose == "serve" and request.operator not in', "False and request.operator not in"),
    (
        "request.operator not in contract.may_serve:",
        "request.operator not in (contract.may_serve or (request.operator,)):",
    ),
    ("if request.country not in contract.residency:", "if request.country not in (*contract.residency, 'DE'):"),
    ("if request.country not in contract.residency:", "if request.country.upper() not in contract.residency:"),
    ("if request.site not in contract.sites:", "if request.site.strip() not in contract.sites:"),
    ("if request.site not in contract.sites:", "if request.country not in contract.residency:"),
    ('if contract.protection != "process":', 'if contract.protection == "process":'),
    ('if contract.protection != "process":', "if False:"),
    ("if not request.site_signed:", "if not request.site_signed and not request.jailed:"),
    ("if not request.jailed:", "if not request.jailed and not request.site_signed:"),
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
