"""Tokens from named sources: the conversion, what is refused, and the check against a catalog."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.catalog.record import DatasetRecord
from hagane.model import make_config
from hagane.model.slots import sample_layouts
from hagane.plan.sources import Source, Sources, read_sources
from hagane.plan.tokens import (
    count_tokens,
    find_embodiment,
    log_bytes_per_hour,
    parse_amount,
    require,
)
from hagane.terms import ConfigError
from hagane.terms.amount import floor_count

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGEST = "ab" * 32


def source(**changed: object) -> Source:
    fields = {"owner": "member-cars", "dataset": "drives", "embodiment": "car", "status": "assumed"}
    given_ = {"purpose": "anchor", "hours": 10.0, "basis": "a guess", **changed}
    return Source(**{**fields, **given_})  # type: ignore[arg-type]


def record(**changed: object) -> DatasetRecord:
    fields: dict[str, object] = {
        "name": "drives", "embodiment": "car", "owner": "member-cars", "episodes": 4, "steps": 700_000,
        "seconds": 72_000.0, "digest": "cd" * 32, "contract_digest": DIGEST, "contract_path": Path("c"), "findings": 0,
    }  # fmt: skip
    return DatasetRecord(**{**fields, **changed})  # type: ignore[arg-type]


def test_an_hour_is_steps_times_tokens_of_the_model() -> None:
    machine = find_embodiment("car", EXAMPLES)
    (layout,) = sample_layouts(make_config("1t", (machine,)))
    account = count_tokens([source(hours=2.0)], "1t", EXAMPLES)
    assert account.tokens == 2 * 3600 * machine.rate_hz * layout.length
    assert account.sample_tokens == layout.length
    half = count_tokens([source(hours=2.0, every=2, passes=3.0)], "1t", EXAMPLES)
    assert half.tokens == pytest.approx(1.5 * account.tokens)
    assert half.counted[0].unique == pytest.approx(account.tokens / 2)
    # smaller models have fewer prompt and instruction tokens
    assert count_tokens([source(hours=2.0)], "1m", EXAMPLES).tokens < account.tokens


def test_bytes_are_hours_of_the_machines_log() -> None:
    machine = find_embodiment("car", EXAMPLES)
    hourly = log_bytes_per_hour(machine)
    pixels = sum(c.shape[0] * c.shape[1] * (c.rate_hz or machine.rate_hz) for c in machine.observe if c.kind == "image")
    assert hourly > 0.35 * pixels * 3600
    guessed = count_tokens([source(hours=0.0, bytes=int(5 * hourly))], "1t", EXAMPLES)
    stated = count_tokens([source(hours=0.0, bytes=int(5e9), bytes_per_hour=1e9)], "1t", EXAMPLES)
    assert guessed.counted[0].hours == pytest.approx(5.0)
    assert stated.counted[0].hours == pytest.approx(5.0)


def test_shares_by_status() -> None:
    sources = [source(), source(dataset="b", status="pledged", basis="letter of 2026-10-01", hours=30.0)]
    account = count_tokens(sources, "4b", EXAMPLES)
    assert account.share("assumed") == pytest.approx(0.25)
    assert account.share("pledged") == pytest.approx(0.75)
    assert account.share("held") == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hours": 0.0}, "hours or bytes"),
        ({"bytes": 10}, "hours or bytes"),
        ({"hours": -1.0}, "hours or bytes"),
        ({"owner": ""}, "names its owner"),
        ({"purpose": "evaluate"}, "does not allow training"),
        ({"purpose": "pretraining"}, "no purpose of a contract"),
        ({"status": "held"}, "needs the digest of its contract"),
        ({"contract": "abc"}, "no sha256"),
        ({"basis": ""}, "who says so"),
        ({"every": 0}, "every is at least 1"),
    ],
)
def test_a_source_that_no_auditor_would_take(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(**changed)


def test_the_same_data_is_not_counted_twice() -> None:
    with pytest.raises(ConfigError, match="counted twice: member-cars/drives"):
        Sources((source(), source(hours=5.0)))
    with pytest.raises(ConfigError, match="no source is named"):
        Sources(())


def test_an_unknown_machine_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bench-robot'"):
        count_tokens([source(embodiment="bench-robots")], "1t", EXAMPLES)
    own = count_tokens([source(embodiment="toyota-drive.toml")], "1t", EXAMPLES)
    assert own.counted[0].embodiment.name == "toyota-drive"


def test_held_data_counts_as_the_catalog_has_it() -> None:
    held = source(status="held", contract=DIGEST, basis="", hours=20.0)
    account = count_tokens([held], "1t", EXAMPLES, {"drives": record()})
    assert account.counted[0].checked
    assert account.counted[0].samples == 700_000
    assert not count_tokens([held], "1t", EXAMPLES).counted[0].checked


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "no such data set"),
        ({"drives": record(owner="member-steel")}, "another owner"),
        ({"drives": record(embodiment="mill")}, "another machine"),
        ({"drives": record(contract_digest="ef" * 32)}, "another contract"),
        ({"drives": record(contract_digest="")}, "none valid"),
        ({"drives": record(seconds=36_000.0)}, "claims 20.0 hours; the catalog holds 10.0"),
    ],
)
def test_held_data_that_the_catalog_does_not_have_so(records: dict[str, DatasetRecord], message: str) -> None:
    held = source(status="held", contract=DIGEST, basis="", hours=20.0)
    with pytest.raises(ConfigError, match=message):
        count_tokens([held], "1t", EXAMPLES, records)


def test_a_budget_beyond_the_sources_is_refused() -> None:
    account = count_tokens([source()], "1t", EXAMPLES)
    require(account, account.tokens)
    with pytest.raises(ConfigError, match="lacks") as e:
        require(account, 2 * account.tokens)
    # what the message proposes is there
    proposed = parse_amount(e.value.next_step.rsplit(" ", 1)[1], "")
    require(account, proposed)


def test_the_example_covers_the_command_that_is_shown() -> None:
    sources = read_sources(EXAMPLES / "plan-sources.toml")
    account = count_tokens(sources.source, "1t", EXAMPLES)
    require(account, 1e13)
    assert account.share("held") == 0, "an example holds nobody's data"


@given(st.floats(1e3, 1e15))
def test_words_never_promise_more(tokens: float) -> None:
    assert parse_amount(floor_count(tokens), "") <= tokens * (1 + 1e-12)
    assert parse_amount(floor_count(tokens), "") >= 0.99 * tokens


@pytest.mark.parametrize("text", ["", "10x", "-5t", "0t", "t", "1e12"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigError, match="is no amount"):
        parse_amount(text, "--tokens")
