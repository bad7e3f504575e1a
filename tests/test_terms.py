"""The nouns: strict TOML, channels and embodiments that contradict themselves, windows of history, errors."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hagane.terms as terms
from hagane.terms import (
    Channel,
    ConfigError,
    Contract,
    Embodiment,
    Episode,
    Finding,
    HaganeError,
    History,
    HistoryBuffer,
    LogError,
    Reading,
    Row,
    Scorecard,
    Stream,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_value,
    dump_toml,
    gather_window,
    lags,
    load_toml,
    parse_toml,
)

ARM = """\
name = "arm"
domain = "robot"
owner = "member-robots"
rate_hz = 20.0
horizon = 16

[[observe]]
name = "hand"
shape = [4]
unit = ["m", "m", "m", "1"]

[observe.history]
steps = 3
stride = 2

[[observe]]
name = "agents"
kind = "set"
shape = [5, 2]

[[act]]
name = "move"
shape = [4]
"""


def embodiment(**changes: Any) -> Embodiment:
    return replace(parse_toml(ARM, Embodiment), **changes)


def refusal(text: str, kind: type[Any] = Embodiment, where: str = "arm.toml") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, kind, where=where)
    return caught.value


# ---- strict TOML


def test_a_file_becomes_an_embodiment(tmp_path: Path) -> None:
    path = tmp_path / "arm.toml"
    path.write_text(ARM, "utf-8")
    arm = load_toml(path, Embodiment)
    assert arm.channel("hand").history == History(3, 2)
    assert arm.channel("hand").unit == ("m", "m", "m", "1")
    assert arm.action_width == 4 and arm.execute_steps == 8 and arm.step_ns == 50_000_000
    assert arm.permitted_owners == ("consortium", "member-robots")


WRONG = {
    "a key at the top": ("rate_hz =", "rate_khz =", 4, "unknown key `rate_khz`", "did you mean `rate_hz`?"),
    "a key in a list of tables": ('kind = "set"', 'knid = "set"', 18, "unknown key `knid`", "did you mean `kind`?"),
    "a key in a nested table": ("stride = 2", "strid = 2", 14, "unknown key `strid`", "did you mean `stride`?"),
    "a word": ('"robot"', '"robt"', 2, "`domain` cannot be 'robt'", "did you mean `robot`?"),
    "a word unlike any": ('"robot"', '"zzzz"', 2, "`domain` cannot be 'zzzz'", "robot, vehicle, plant, game"),
    "text for a number": ("20.0", '"20"', 4, "`rate_hz` must be float, not '20'", ""),
    "true for a number": ("20.0", "true", 4, "`rate_hz` must be float, not True", ""),
    "a fraction for a count": ("= 16", "= 16.5", 5, "`horizon` must be int, not 16.5", ""),
    "a number for text": ('"member-robots"', "3", 3, "`owner` must be str, not 3", ""),
    "a value for a table": (
        "[observe.history]\nsteps = 3\nstride = 2",
        "history = 3",
        12,
        "`history` must be a table",
        "",
    ),
    "a wrong entry of a list": ("shape = [5, 2]", 'shape = [5, "2"]', 19, "must be int, not '2'", ""),
    "a missing key": ('owner = "member-robots"\n', "", 0, "missing key `owner`", "add `owner = ...`"),
    "a value that contradicts": ("steps = 3", "steps = 0", 12, "history needs steps >= 1", ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_messages_name_file_line_key_and_the_nearest_valid_one(case: str) -> None:
    old, new, line, what, step = WRONG[case]
    assert ARM.count(old) == 1
    error = refusal(ARM.replace(old, new))
    assert what in error.what
    assert step in error.next_step
    assert error.where == (f"arm.toml:{line}" if line else "arm.toml")


def test_broken_or_missing_files_give_one_message(tmp_path: Path) -> None:
    assert "not valid TOML" in refusal("name = ").what
    assert "line 2" in refusal("a = 1\nname = = 3\n").what
    with pytest.raises(ConfigError, match="no such file"):
        load_toml(tmp_path / "none.toml", Embodiment)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_toml(tmp_path / "bytes.toml", Embodiment)


def test_a_contradiction_names_the_channel_and_its_line() -> None:
    error = refusal(ARM.replace("shape = [5, 2]", "shape = [5]"))
    assert "channel 'agents'" in error.what and "a set needs 2" in error.what
    assert error.where == "arm.toml:16"


names = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
units = st.sampled_from(["m", "m/s", "Cel", "1", 'in"', "a\\b", "a\nb"])
numbers = st.floats(-1e9, 1e9, allow_nan=False)


@st.composite
def channels(draw: st.DrawFn, kind: str = "") -> Channel:
    kind = kind or draw(st.sampled_from(["vector", "set", "image", "text"]))
    rank = {"vector": 1, "set": 2, "image": 3, "text": 0}[kind]
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank)))
    low = draw(numbers)
    bounds = draw(st.booleans())
    return Channel(
        name=draw(names),
        kind=kind,  # type: ignore[arg-type]
        shape=shape,
        unit=(draw(units),),
        rate_hz=draw(st.floats(0, 1000)),
        low=(low,) if bounds else (),
        high=(low + draw(st.floats(1, 100)),) if bounds else (),
        history=History(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        delay_s=draw(st.floats(0, 10)),
        source=tuple(draw(st.lists(names, max_size=3))),
    )


@st.composite
def embodiments(draw: st.DrawFn) -> Embodiment:
    observe = draw(st.lists(channels(), min_size=1, max_size=4))
    act = draw(st.lists(channels("vector"), min_size=1, max_size=2))
    unique = iter(range(99))
    observe, act = ([replace(c, name=f"{c.name}{next(unique)}") for c in cs] for cs in (observe, act))
    horizon = draw(st.integers(1, 64))
    return Embodiment(
        name=draw(names),
        domain=draw(st.sampled_from(["robot", "vehicle", "plant", "game"])),
        owner=draw(names),
        rate_hz=draw(st.floats(0.01, 1000)),
        horizon=horizon,
        observe=tuple(observe),
        act=tuple(act),
        execute=draw(st.integers(0, horizon)),
        experts=tuple(draw(st.lists(names, max_size=2))),
    )


@settings(max_examples=60, deadline=None)
@given(embodiments())
def test_dump_and_parse_are_inverse(made: Embodiment) -> None:
    assert parse_toml(dump_toml(made), Embodiment) == made


@given(st.builds(Contract, owner=names, datasets=st.lists(names, max_size=3).map(tuple),
    residency=st.just(("JP",)), sites=st.lists(names, max_size=2).map(tuple), purposes=st.just(("anchor",)),
    until=st.dates(), withdrawal=st.sampled_from("ERD")))  # fmt: skip
def test_contracts_survive_toml(made: Contract) -> None:
    assert parse_toml(dump_toml(made), Contract) == made


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_an_embodiment_or_one_clear_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_toml(text, Embodiment)


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_a_damaged_file_is_an_embodiment_or_one_clear_error(seed: int) -> None:
    rng = random.Random(seed)
    text = list(ARM)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(3)] = rng.choice(["", "[", "]", "=", '"', "\n", "9", "{}", "true"])
    try:
        parse_toml("".join(text), Embodiment, where="arm.toml")
    except ConfigError as e:
        assert "arm.toml" in e.where


@dataclass(frozen=True)
class Inner:
    """A table."""

    size: int = 1


@dataclass(frozen=True)
class Outer:
    """All kinds of fields."""

    path: Path
    day: date
    kind: Literal["a", "b"] = "a"
    maybe: float | None = None
    table: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()


def test_every_kind_of_field_comes_back() -> None:
    made = Outer(Path("a/b"), date(2027, 3, 31), "b", 2.5, {"road": 1.0, "a b": 2.0}, Inner(3), (Inner(4), Inner(5)))
    assert parse_toml(dump_toml(made), Outer) == made
    bare = Outer(Path("a"), date(2027, 3, 31))
    assert parse_toml(dump_toml(bare), Outer) == bare
    assert parse_toml('path = "a"\nday = 2027-03-31\nmaybe = 3', Outer).maybe == 3.0
    assert "`day` must be date" in refusal('path = "a"\nday = "2027-03-31"', Outer).what
    assert "`table` must be a table" in refusal('path = "a"\nday = 2027-03-31\ntable = 3', Outer).what


# ---- channels and embodiments


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "sett"}, "unknown kind"),
        ({"role": "statee"}, "unknown role"),
        ({"shape": (2, 2)}, "a vector needs 1"),
        ({"shape": (0,)}, "positive"),
        ({"kind": "image", "shape": (8, 8)}, "an? image needs 3"),
        ({"shape": (3,), "unit": ("m", "m")}, "unit has 2 entries for 3 columns"),
        ({"shape": (3,), "low": (0.0, 0.0)}, "low has 2 entries"),
        ({"low": (1.0,), "high": (1.0,)}, "low must be below high"),
    ],
)
def test_a_channel_that_contradicts_itself(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Channel("speed", **fields)
    assert "channel 'speed'" in caught.value.where


def test_columns_and_places() -> None:
    assert Channel("a", shape=(3,)).columns == 3
    assert (Channel("b", "set", (5, 2)).columns, Channel("b", "set", (5, 2)).places) == (2, 5)
    assert (Channel("c", "image", (8, 8, 3)).columns, Channel("c", "image", (8, 8, 3)).places) == (3, 1)
    assert Channel("d", "text").shape == ()
    with pytest.raises(ConfigError):
        History(1, 0)
    assert History(4, 3).span == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domain": "boat"}, "unknown domain"),
        ({"act": ()}, "at least one action channel"),
        ({"act": (Channel("move", "set", (2, 2)),)}, "all of kind vector"),
        ({"observe": ()}, "at least one observed"),
        ({"act": (Channel("hand"),)}, "used twice: hand"),
        ({"rate_hz": 0.0}, "must be positive"),
        ({"rate_hz": float("nan")}, "must be positive"),
        ({"horizon": 0}, "must be positive"),
        ({"execute": 17}, "between 0 and the horizon 16"),
    ],
)
def test_an_embodiment_that_contradicts_itself(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        embodiment(**changes)


def test_an_unknown_channel_is_an_error_that_names_the_embodiment() -> None:
    with pytest.raises(ConfigError, match=r"arm.*no channel 'foot'"):
        embodiment().channel("foot")


# ---- windows


def test_lags_are_newest_first_and_actions_one_step_older() -> None:
    assert lags(History(3, 2), is_action=False).tolist() == [0, 2, 4]
    assert lags(History(3, 2), is_action=True).tolist() == [1, 3, 5]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Embodiment, int, list[int], int]:
    """An embodiment with windows, machines, lengths of two episodes, a seed."""
    histories = [History(draw(st.integers(1, 4)), draw(st.integers(1, 3))) for _ in range(4)]
    made = Embodiment(
        "m", "robot", "member-robots", draw(st.sampled_from([10.0, 20.0, 2.5])), 4,
        observe=(
            Channel("v", shape=(2,), history=histories[0]),
            Channel("s", "set", (3, 2), history=histories[1]),
            Channel("i", "image", (2, 2, 3), history=histories[2]),
            Channel("t", "text"),
        ),
        act=(Channel("a", shape=(2,), history=histories[3]), Channel("b", shape=(1,))),
    )  # fmt: skip
    return (
        made,
        draw(st.integers(1, 3)),
        draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)),
        draw(st.integers(0, 999)),
    )


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_running_machine_sees_what_training_gathers(scene: tuple[Embodiment, int, list[int], int]) -> None:
    """The same readings through HistoryBuffer and through gather_window give the same windows, to the bit."""
    made, size, lengths, seed = scene
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    columns: dict[str, list[Reading]] = {}
    for channel in made.channels():
        if channel.kind == "text":
            continue
        per_machine = []
        for _ in range(size):
            shape = (total, *channel.shape)
            values: Any = rng.normal(size=shape).astype(np.float32)
            if channel.kind == "image":
                values = rng.integers(0, 256, shape).astype(np.uint8)
            flags = (total, channel.places) if channel.kind == "set" else (total,)
            is_action = channel in made.act
            valid = np.ones(flags, bool) if is_action else rng.random(flags) < 0.7
            age_s = np.zeros(total) if is_action else rng.random(total)
            per_machine.append(Reading(values, valid, age_s.astype(np.float32)))
        columns[channel.name] = per_machine
    begin = 0
    for length in lengths:
        buffer = HistoryBuffer(made, size)
        for t in range(begin, begin + length):
            now = {
                name: Reading(*(np.stack([getattr(r, f)[t] for r in rs]) for f in ("values", "valid", "age_s")))
                for name, rs in columns.items()
            }
            time_ns = np.full(size, t * made.step_ns)
            buffer.push(now, time_ns)
            seen = buffer.observation(("",) * size)
            assert seen.time_ns.tolist() == time_ns.tolist() and len(seen) == size
            assert set(seen.channels) == {"v", "s", "i", "a", "b"}
            for channel in made.channels():
                if channel.kind == "text":
                    continue
                rule = lags(channel.history, is_action=channel in made.act)
                window = seen.channels[channel.name]
                for n, reading in enumerate(columns[channel.name]):
                    gathered = gather_window(reading, np.array([begin]), np.array([t]), rule, 1 / made.rate_hz)
                    np.testing.assert_array_equal(window.valid[n], gathered.valid[0])
                    np.testing.assert_array_equal(window.values[n], gathered.values[0])
                    assert window.values.dtype == gathered.values.dtype
                    # of what is not valid too: the model sees the ages of vectors whether they are or not
                    np.testing.assert_allclose(window.age_s[n], gathered.age_s[0], rtol=1e-6, atol=1e-6)
            applied = np.concatenate([now[c.name].values for c in made.act], 1)
            buffer.push_action(applied)
        begin += length


def test_windows_do_not_reach_over_the_start_of_an_episode() -> None:
    age_s = np.where(np.arange(10) < 4, 100, 0).astype(np.float32)  # of the episode before
    reading = Reading(np.arange(10, dtype=np.float32)[:, None], np.ones(10, bool), age_s)
    window = gather_window(reading, np.array([4, 4]), np.array([5, 9]), np.array([0, 2, 4]), 0.1)
    assert window.values[..., 0].tolist() == [[5, 0, 0], [9, 7, 5]]
    assert window.valid.tolist() == [[True, False, False], [True, True, True]]
    assert window.age_s.tolist() == [pytest.approx([0.0, 0.2, 0.4])] * 2


def test_a_value_that_is_not_valid_is_0_even_when_it_was_nan() -> None:
    reading = Reading(np.array([[np.nan], [2.0]], np.float32), np.array([False, True]), np.zeros(2, np.float32))
    window = gather_window(reading, np.array([0]), np.array([1]), np.array([0, 1]), 0.1)
    assert window.values[0, :, 0].tolist() == [2.0, 0.0]


def test_a_missing_reading_is_named() -> None:
    with pytest.raises(ConfigError, match="no reading of channel 'hand'"):
        HistoryBuffer(embodiment(), 1).push({}, np.zeros(1, np.int64))


def test_an_action_that_is_not_finite_counts_as_unknown() -> None:
    buffer = HistoryBuffer(embodiment(), 2)
    buffer.push_action(np.array([[1, 2, 3, 4], [np.nan, 0, 0, 0]], np.float32))
    window = buffer.observation(("", "")).channels["move"]
    assert window.valid[:, 0].tolist() == [True, False]
    assert window.values[1, 0].tolist() == [0, 0, 0, 0]


# ---- episodes, digests, cards, errors


def test_streams_of_unequal_length_are_refused() -> None:
    with pytest.raises(LogError, match="2 times, 3 values"):
        Stream(np.zeros(2, np.int64), np.zeros(3), np.ones(2, bool))


def test_an_episode_knows_its_span_and_keeps_findings() -> None:
    early = Stream(np.array([5, 9]), np.zeros(2), np.ones(2, bool))
    late = Stream(np.array([7, 30]), np.zeros(2), np.ones(2, bool))
    none = Stream(np.zeros(0, np.int64), np.zeros(0), np.ones(0, bool))
    episode = Episode("e", "arm", {"a": early, "b": late, "c": none})
    assert episode.span_ns == (5, 30) and len(late) == 2
    assert Episode("e", "arm", {}).span_ns == (0, 0)
    finding = Finding("stuck", "e", "a", 1_500_000_000, 4, "4 equal values")
    assert episode.with_findings(finding).findings == (finding,) and episode.findings == ()
    assert str(finding) == "e a at 1.500 s: stuck, 4 equal values"


def test_digests_are_those_of_sha256_and_do_not_depend_on_order(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_bytes(b"abc") == digest_file(path) == known
    assert digest_value({"b": 1, "a": 2}) == digest_value({"a": 2, "b": 1})
    assert canonical_json({"b": [History(2, 1)], "a": date(2027, 1, 2)}) == (
        b'{"a":"2027-01-02","b":[{"steps":2,"stride":1}]}'
    )
    with pytest.raises(TypeError, match="no canonical JSON"):
        canonical_json(object())


def test_a_card_finds_its_rows() -> None:
    rows = (Row("pick", "ours", 0.9, 0.8, 0.95, 40), Row("pick", "classical: scripted", 1.0, 0.9, 1.0, 40))
    card = Scorecard("arm", "success rate, higher is better", rows, (1, 2), "")
    assert card.row("classical").score == 1.0 and card.row("ours", "pick") is rows[0]
    with pytest.raises(KeyError, match="untrained"):
        card.row("untrained")


ERRORS = [v for v in vars(terms).values() if inspect.isclass(v) and issubclass(v, HaganeError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_say_what_where_and_the_next_step(kind: type[HaganeError]) -> None:
    error = kind("the disk is full", where="runs/a", next_step="free space")
    assert str(error) == "runs/a: the disk is full\n  next: free space"
    assert str(kind("the disk is full")) == "the disk is full"
    assert (error.what, error.where, error.next_step) == ("the disk is full", "runs/a", "free space")


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    drawn = inspect.getdoc(inspect.getmodule(HaganeError)) or ""
    for kind in ERRORS:
        assert kind.__name__ in drawn
    assert issubclass(terms.Refused, terms.ContractError) and issubclass(terms.CorruptError, terms.StoreError)


NOUNS = [v for v in vars(terms).values() if dataclasses.is_dataclass(v) and isinstance(v, type)]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda n: n.__name__)
def test_nouns_are_frozen(noun: Any) -> None:
    assert noun.__dataclass_params__.frozen


def test_a_frozen_noun_refuses_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        embodiment().name = "leg"  # type: ignore[misc]
