"""The loader: a batch is a pure function of (seed, mixture, step), weights hold, and windows are right."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.catalog import Catalog, Columns, Loader, Mixture
from hagane.catalog.loader import held_out
from hagane.catalog.order import permute, positions, word
from hagane.terms import Batch, ConfigError, HistoryBuffer, Reading, Refused, StoreError
from tests.catalog_fixture import ARM, MILL, ROAD, episode, episodes, filled, make_home

NAMES = ["arm-demo", "mill-demo", "road-demo"]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return filled(tmp_path_factory.mktemp("site"), {"arm": 24, "road": 20, "mill": 12})


def loader(catalog: Catalog, mixture: Mixture | None = None, samples: int = 30, **more: object) -> Loader:
    return Loader(catalog, NAMES, mixture or Mixture(), purpose="anchor", samples_per_step=samples, **more)  # type: ignore[arg-type]


def flat(batch: Batch) -> bytes:
    """All bytes of a batch."""
    out = [str(batch.step).encode()]
    for p in batch.parts:
        windows = [*p.observation.channels.items(), *p.next.items()]
        arrays = [p.observation.time_ns, p.actions_NHA, p.action_valid_NH, p.sample_ids_N]
        arrays += [a for _, w in windows for a in (w.values, w.valid, w.age_s)]
        out += [p.observation.embodiment.encode(), repr(p.observation.tasks).encode(), *(a.tobytes() for a in arrays)]
    return b"".join(out)


def test_a_batch_is_a_pure_function_of_the_step(catalog: Catalog) -> None:
    a, b = loader(catalog), loader(catalog)
    forward = {s: flat(a.at(s)) for s in range(40)}
    for s in [39, 0, 17, 38, 5, 5]:  # another object, another order, entered anywhere
        assert flat(b.at(s)) == forward[s]
    assert len(set(forward.values())) == 40
    assert a.digest == b.digest
    assert flat(loader(catalog, Mixture(seed=1)).at(3)) != forward[3]


def test_the_digest_covers_data_mixture_and_size(catalog: Catalog) -> None:
    weights = dict.fromkeys(NAMES, 1.0)
    variants = [
        loader(catalog),
        loader(catalog, Mixture(seed=1)),
        loader(catalog, Mixture({**weights, "arm-demo": 2.0})),
        loader(catalog, Mixture(temperature=2.0)),
        loader(catalog, samples=33),
        loader(catalog, split="held-out"),
        Loader(catalog, NAMES[:2], Mixture(), purpose="anchor", samples_per_step=30),
    ]
    assert len({v.digest for v in variants}) == len(variants)


def test_shapes_never_change_and_weights_hold(catalog: Catalog) -> None:
    made = loader(catalog, Mixture({"arm-demo": 3.0, "mill-demo": 2.0, "road-demo": 1.0}))
    assert made.counts == {"arm-demo": 15, "mill-demo": 10, "road-demo": 5}
    for step in (0, 7, 1000):
        parts = made.at(step).parts
        assert [p.observation.embodiment for p in parts] == ["arm", "mill", "road"]
        assert [len(p.observation) for p in parts] == [15, 10, 5]
        for p in parts:
            machine = made.embodiments[p.observation.embodiment]
            assert p.actions_NHA.shape == (len(p.observation), machine.horizon, machine.action_width)
            assert p.actions_NHA.dtype == np.float32 and p.sample_ids_N.dtype == np.uint64
            assert len(p.observation.tasks) == len(p.observation)
    even = loader(catalog, Mixture({"arm-demo": 8.0, "mill-demo": 1.0, "road-demo": 1.0}, temperature=3.0))
    assert even.counts == {"arm-demo": 15, "mill-demo": 8, "road-demo": 7}


def test_an_epoch_shows_every_sample_once(catalog: Catalog) -> None:
    made = loader(catalog, samples=90)
    for name, total in made.samples.items():
        count, machine = made.counts[name], made.datasets[name].embodiment.name
        seen: Counter[int] = Counter()
        order = []
        for step in range(-(-2 * total // count)):
            (part,) = (p for p in made.at(step).parts if p.observation.embodiment == machine)
            order += part.sample_ids_N.tolist()
        seen.update(order[:total])
        assert len(seen) == total and set(seen.values()) == {1}
        assert Counter(order[total : 2 * total]) == seen and order[total : 2 * total] != order[:total]


def test_no_episode_is_in_both_splits(catalog: Catalog) -> None:
    train, held = loader(catalog), loader(catalog, split="held-out")
    for name in NAMES:
        both = set(train.episodes[name]) & set(held.episodes[name])
        assert not both and held.episodes[name]
        assert set(train.episodes[name]) | set(held.episodes[name]) == set(train.datasets[name].episode_ids)
    ids = {int(i) for s in range(60) for p in train.at(s).parts for i in p.sample_ids_N}
    assert not ids & {int(i) for s in range(20) for p in held.at(s).parts for i in p.sample_ids_N}


def test_about_a_twentieth_is_held_out_and_few_episodes_still_split() -> None:
    assert 0.035 < held_out([f"e{i}" for i in range(4000)]).mean() < 0.065
    for n in range(2, 12):
        assert 0 < held_out([f"x{i}" for i in range(n)]).sum() < n
    assert not held_out(["alone"]).any()


def test_windows_are_what_a_running_machine_would_have_seen(catalog: Catalog) -> None:
    """Replays the recorded episode through the HistoryBuffer and compares with the gathered windows."""
    made = loader(catalog, samples=60)
    for part in made.at(4).parts:
        name = part.observation.embodiment
        machine, columns = made.embodiments[name], made.datasets[f"{name}-demo"]
        for i in range(0, len(part.observation), 5):
            e, step = locate(columns, part, i)
            buffer = HistoryBuffer(machine, 1)
            start = int(columns.start_E[e])
            for t in range(start, start + step + 1):
                buffer.push({c: one(r, t) for c, r in columns.observe.items()}, columns.times_ns[t : t + 1])
                if t < start + step:
                    applied = [columns.applied[c.name].values[t] for c in machine.act]
                    buffer.push_action(np.concatenate(applied)[None])
            want = buffer.observation(("",))
            for channel, window in part.observation.channels.items():
                np.testing.assert_array_equal(window.values[i], want.channels[channel].values[0], err_msg=channel)
                np.testing.assert_array_equal(window.valid[i], want.channels[channel].valid[0])
                np.testing.assert_allclose(window.age_s[i], want.channels[channel].age_s[0], atol=1e-6)


def test_actions_and_the_next_observation(catalog: Catalog) -> None:
    made = loader(catalog, samples=90)
    ended = 0
    for part in made.at(2).parts:
        name = part.observation.embodiment
        machine, columns = made.embodiments[name], made.datasets[f"{name}-demo"]
        for i in range(len(part.observation)):
            e, step = locate(columns, part, i)
            source = next(x for x in episodes(machine, 30) if x.id == columns.episode_ids[e])
            commands = np.concatenate([source.streams[c.name].values for c in machine.act], 1)
            ahead = commands[step : step + machine.horizon]
            np.testing.assert_array_equal(part.actions_NHA[i, : len(ahead)], ahead)
            assert part.action_valid_NH[i].tolist() == [True] * len(ahead) + [False] * (machine.horizon - len(ahead))
            np.testing.assert_array_equal(
                part.actions_NHA[i, len(ahead) :], commands[-1:].repeat(machine.horizon - len(ahead), 0)
            )
            channel = machine.observe[0].name
            if step + 1 < len(commands):
                np.testing.assert_array_equal(part.next[channel].values[i, 0], source.streams[channel].values[step + 1])
                assert part.next[channel].valid[i].all()
            else:
                ended += 1
                assert not part.next[channel].valid[i].any() and not part.next[channel].values[i].any()
            assert part.observation.tasks[i] == source.task
        assert set(part.next) == {c.name for c in machine.observe if c.kind != "text"}
    assert ended


def test_sets_without_actions_teach_only_the_next_observation(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    made = [episode(ROAD, n, actions=False) for n in range(8)]
    home.catalog().add("road-demo", ROAD, home.contract(ROAD), made)
    loaded = Loader(home.catalog(), ["road-demo"], Mixture(), purpose="anchor", samples_per_step=16)
    (part,) = loaded.at(0).parts
    assert not part.action_valid_NH.any() and part.next["ego"].valid.all()
    assert not part.observation.channels["steer"].valid.any()


def test_two_sets_of_one_machine_make_one_part(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(MILL, "mill-a", "mill-b", "mill-c")
    catalog.add("mill-a", MILL, signed, episodes(MILL, 6))
    catalog.add("mill-b", MILL, signed, episodes(MILL, 6, first=6))
    made = Loader(
        catalog, ["mill-b", "mill-a"], Mixture({"mill-a": 1, "mill-b": 3}), purpose="anchor", samples_per_step=20
    )
    (part,) = made.at(0).parts
    assert len(part.observation) == 20 and made.counts == {"mill-a": 5, "mill-b": 15}
    other = replace(MILL, rate_hz=1.0)
    catalog.add("mill-c", other, signed, episodes(other, 3))
    with pytest.raises(ConfigError, match="described differently"):
        Loader(catalog, ["mill-a", "mill-c"], Mixture(), purpose="anchor", samples_per_step=20)


def test_a_single_episode_has_nothing_to_hold_out(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog = home.catalog()
    catalog.add("road-demo", ROAD, home.contract(ROAD), episodes(ROAD, 1))
    catalog.add("arm-demo", ARM, home.contract(ARM), episodes(ARM, 3))
    names, weights = ["arm-demo", "road-demo"], {"arm-demo": 1.0, "road-demo": 2.0}
    held = Loader(catalog, names, Mixture(weights), purpose="anchor", samples_per_step=8, split="held-out")
    assert list(held.counts) == ["arm-demo"] and len(held.at(0).parts) == 1
    with pytest.raises(StoreError, match="no usable sample in split 'held-out'"):
        Loader(catalog, names[1:], Mixture(), purpose="anchor", samples_per_step=8, split="held-out")


def test_what_a_loader_refuses(catalog: Catalog) -> None:
    with pytest.raises(Refused, match="'finetune' is not granted"):
        Loader(catalog, NAMES, Mixture(), purpose="finetune", samples_per_step=30)
    with pytest.raises(ConfigError, match="arm-dmo"):
        loader(catalog, Mixture({"arm-dmo": 1.0, "mill-demo": 1.0, "road-demo": 1.0}))
    with pytest.raises(ConfigError, match="too few"):
        loader(catalog, samples=2)
    with pytest.raises(ConfigError, match="positive"):
        Mixture({"a": 0.0})
    with pytest.raises(ConfigError, match="no split 'test'"):
        loader(catalog, split="test")
    with pytest.raises(ValueError, match="negative"):
        loader(catalog).at(-1)


def test_a_step_costs_little(catalog: Catalog) -> None:
    made = loader(catalog, samples=192)
    made.at(0)
    began = time.process_time()
    for step in range(20):
        made.at(step)
    assert (time.process_time() - began) / 20 < 0.02  # 2 ms on an idle core; generous for a busy one


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    out = permute(np.arange(size), size, np.full(size, key, np.uint64))
    assert sorted(out.tolist()) == list(range(size))


def test_positions_can_be_entered_anywhere() -> None:
    key = word("k")
    whole = positions(0, 5000, 777, key)
    for first in (0, 1, 776, 777, 3000):
        np.testing.assert_array_equal(positions(first, 900, 777, key), whole[first : first + 900])
    assert np.abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.05


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(6, 300), st.floats(0.5, 5))
def test_counts_add_up(weights: list[float], samples: int, temperature: float) -> None:
    names = [f"d{i}" for i in range(len(weights))]
    mixture = Mixture(dict(zip(names, weights, strict=True)), temperature)
    counts, shares = mixture.counts(names, samples), mixture.shares(names)
    assert sum(counts.values()) == samples and min(counts.values()) >= 1
    roomy = all(shares[n] * samples >= 1 for n in names)
    assert not roomy or all(abs(counts[n] - shares[n] * samples) < 1 for n in names)


def locate(columns: Columns, part: object, i: int) -> tuple[int, int]:
    """Episode and step of a sample, found by its time and first window's values."""
    time_ns = int(part.observation.time_ns[i])  # type: ignore[attr-defined]
    name = next(iter(columns.observe))
    newest = part.observation.channels[name].values[i, 0]  # type: ignore[attr-defined]
    for t in np.flatnonzero(columns.times_ns == time_ns):
        if np.array_equal(columns.observe[name].values[t], newest):
            e = int(np.searchsorted(columns.start_E, t, side="right")) - 1
            return e, int(t - columns.start_E[e])
    raise AssertionError("sample not found")


def one(reading: Reading, t: int) -> Reading:
    return Reading(reading.values[t : t + 1], reading.valid[t : t + 1], reading.age_s[t : t + 1])
