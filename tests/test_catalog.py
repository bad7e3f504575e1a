"""The catalog as a user meets it: add under contract, read under permit, damage is seen and named."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from hagane.catalog import Catalog, Loader, Mixture
from hagane.terms import (
    APPLIED,
    ConfigError,
    ContractError,
    CorruptError,
    Episode,
    LogError,
    Refused,
    StoreError,
    Stream,
    digest_value,
)
from tests.catalog_fixture import ARM, MACHINES, MILL, ROAD, SITE, episode, episodes, filled, make_home, same_episode


def test_what_goes_in_comes_out_equal(tmp_path: Path) -> None:
    catalog = filled(tmp_path, {"arm": 5, "road": 4, "mill": 3})
    assert [r.name for r in catalog.ls()] == ["arm-demo", "mill-demo", "road-demo"]
    for name, count in {"arm": 5, "road": 4, "mill": 3}.items():
        back = list(catalog.episodes(f"{name}-demo", "view"))
        assert len(back) == count
        for a, b in zip(episodes(MACHINES[name], count), back, strict=True):
            same_episode(a, b)
        assert catalog.embodiment(f"{name}-demo") == MACHINES[name]
    record = catalog.record("arm-demo")
    assert (record.owner, record.episodes, record.findings) == ("member-robots", 5, 2)
    assert record.steps == sum(20 + n for n in range(5))
    assert record.contract_path.exists() and len(record.contract_digest) == 64


def test_odd_streams_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.array([5, 3, 3, 9], np.int64)
    streams = {
        "ego": Stream(times, rng.normal(size=(4, 4)), np.array([1, 0, 1, 1], bool), ("m", "m", "rad", "m/s"), -3),
        "agents": Stream(times[:0], np.zeros((0, 5, 3), np.float32), np.zeros((0, 5), bool)),
        "unknown": Stream(times, np.array([1, 2, 3, 4], np.int16)[:, None], np.ones(4, bool)),
        "note": Stream(times[:2], np.array(["", "圧延"], object), np.ones(2, bool)),
        "cam": Stream(times[:2], rng.integers(0, 256, (2, 6, 8, 3), np.uint8), np.ones(2, bool)),
    }
    home = make_home(tmp_path)
    one = Episode("a b/c", "road", streams)
    home.catalog().add("road-demo", ROAD, home.contract(ROAD), [one])
    (back,) = home.catalog().episodes("road-demo", "view")
    same_episode(one, back)


def test_adding_again_changes_nothing_and_other_content_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(ARM)
    first = catalog.add("arm-demo", ARM, signed, episodes(ARM, 4))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "catalog" / "sets").rglob("*")}
    assert catalog.add("arm-demo", ARM, signed, episodes(ARM, 4)) == first
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "catalog" / "sets").rglob("*")}
    with pytest.raises(StoreError, match="other content"):
        catalog.add("arm-demo", ARM, signed, episodes(ARM, 5))
    with pytest.raises(StoreError, match=r"another contract.*\n.*renew"):
        catalog.add("arm-demo", ARM, home.contract(ARM, until=date(2098, 1, 1)), episodes(ARM, 4))
    assert home.catalog().record("arm-demo") == first


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"residency": ("DE",)}, "may not be read in 'JP'"),
        ({"sites": ("lab-b",)}, "may not be read at site 'plant-7'"),
        ({"until": date(2020, 1, 1)}, "expired on 2020-01-01"),
        ({"datasets": ("other",)}, "not about data set 'arm-demo'"),
    ],
)
def test_a_contract_that_grants_nothing_here_brings_nothing_here(tmp_path: Path, terms: dict, reason: str) -> None:
    home = make_home(tmp_path)
    with pytest.raises(Refused, match=reason) as e:
        home.catalog().add("arm-demo", ARM, home.contract(ARM, **terms), episodes(ARM, 2))
    assert e.value.where == "arm-demo" and e.value.next_step
    assert home.catalog().ls() == () and not list((tmp_path / "catalog").glob("staging/*"))
    (entry,) = home.ledger.entries()
    assert entry.kind == "refusal" and entry.body["reason"] == e.value.what


def test_unsigned_and_foreign_contracts_are_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with pytest.raises(Refused, match="no signed contract"):
        home.catalog().add("arm-demo", ARM, None, episodes(ARM, 2))
    with pytest.raises(Refused, match="belongs to 'member-robots'"):
        home.catalog().add("arm-demo", ARM, home.contract(ROAD, "arm-demo"), episodes(ARM, 2))
    with pytest.raises(ConfigError, match="not a data set name"):
        home.catalog().add("../arm", ARM, home.contract(ARM), episodes(ARM, 2))


def test_every_read_is_judged_and_written_down(tmp_path: Path) -> None:
    catalog = filled(tmp_path, {"arm": 3})
    catalog.columns("arm-demo", "anchor")
    for read in (catalog.episodes, catalog.stats, catalog.columns):
        with pytest.raises(Refused, match="'serve' is not granted"):
            read("arm-demo", "serve")
    assert not catalog.decide("arm-demo", "serve").allowed and catalog.decide("arm-demo", "view").allowed
    kinds = [e.kind for e in make_home(tmp_path).ledger.entries()]
    assert kinds == ["add", "read", "refusal", "refusal", "refusal"]
    late = Catalog.open(tmp_path / "catalog", SITE, make_home(tmp_path).trust, today=lambda: date(2100, 1, 1))
    with pytest.raises(Refused, match="expired"):
        late.stats("arm-demo", "view")
    with pytest.raises(StoreError, match="no data set 'nope'"):
        catalog.record("nope")


def test_a_changed_contract_closes_the_data_set_and_a_renewed_one_opens_it(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    home.catalog().add("arm-demo", ARM, home.contract(ARM), episodes(ARM, 3))
    path = home.catalog().record("arm-demo").contract_path
    path.write_bytes(path.read_bytes().replace(b'"view"', b'"serve"'))
    catalog = home.catalog()
    with pytest.raises(ContractError, match="changed after it was signed"):
        catalog.columns("arm-demo", "anchor")
    assert catalog.ls()[0].contract_digest == ""
    catalog.renew("arm-demo", home.contract(ARM, purposes=("serve",), may_serve=("consortium",)))
    assert catalog.stats("arm-demo", "serve")["joints"].count > 0
    with pytest.raises(Refused):
        home.catalog().renew("arm-demo", home.contract(ROAD, "arm-demo"))


def test_bad_episodes_leave_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(ARM)
    wrong = Episode("x", "arm", {"joints": Stream(np.arange(3), np.zeros((3, 2), np.float32), np.ones(3, bool))})
    for bad, message in [
        ([episode(ARM, 0), wrong], r"shape \(2,\)"),
        ([episode(ARM, 0), episode(ARM, 0)], "two episodes are called 'arm/case/000000'"),
        ([episode(ROAD, 0)], "of 'road', not of 'arm'"),
        ([Episode("x", "arm", {})], "no sample of any channel"),
        ([], "no episode"),
    ]:
        with pytest.raises(LogError, match=message):
            catalog.add("arm-demo", ARM, signed, bad)
        assert home.catalog().ls() == () and home.catalog().unfinished() == ()


def test_flipped_bytes_are_found_and_named(tmp_path: Path) -> None:
    catalog = filled(tmp_path, {"road": 6})
    catalog.columns("road-demo", "anchor")
    folder = tmp_path / "catalog" / "sets" / "road-demo"
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("contract")]
    files += [p for p in (tmp_path / "catalog" / "cache").rglob("*") if p.is_file()]
    assert len(files) == 15
    rng = random.Random(0)
    for path in files:
        good = path.read_bytes()
        at = rng.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        with pytest.raises(CorruptError, match=path.name):
            make_home(tmp_path).catalog().verify("road-demo")
        path.write_bytes(good)
    assert make_home(tmp_path).catalog().verify("road-demo") > 5


@pytest.mark.parametrize("folder", ["data/chunk-000", "hagane/streams"])
def test_damage_in_a_parquet_file_is_told_by_episode(tmp_path: Path, folder: str) -> None:
    filled(tmp_path, {"road": 6})
    path = tmp_path / "catalog" / "sets" / "road-demo" / folder / "file-000.parquet"
    good = path.read_bytes()
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    for number in range(6):
        chunk = metadata.row_group(number).column(metadata.num_columns // 2)
        at = chunk.data_page_offset + chunk.total_compressed_size // 2
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(CorruptError, match=rf"file-000.parquet: .*: episode 'road/case/00000{number}'"):
            make_home(tmp_path).catalog().verify("road-demo")
    path.write_bytes(good[:-20] + bytes([good[-20] ^ 4]) + good[-19:])
    with pytest.raises(CorruptError, match="in its footer"):
        make_home(tmp_path).catalog().verify("road-demo")


def test_reading_meets_a_flipped_byte_before_giving_it(tmp_path: Path) -> None:
    filled(tmp_path, {"mill": 4})

    def read(folder: Path) -> None:
        list(make_home(folder).catalog().episodes("mill-demo", "anchor"))

    def load(folder: Path) -> None:
        loader = Loader(make_home(folder).catalog(), ["mill-demo"], Mixture(), purpose="anchor", samples_per_step=64)
        for step in range(2):
            loader.at(step)

    for pattern, use in [("sets/*/hagane/streams/*", read), ("cache/*/rows.bin", load), ("cache/*/last.bin", load)]:
        (path,) = (tmp_path / "catalog").glob(pattern)
        good = path.read_bytes()
        for at in (len(good) // 2, len(good) // 2 + 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(CorruptError, match=path.name):
                use(tmp_path)
        path.write_bytes(good)
    (tmp_path / "catalog/sets/mill-demo/hagane/stray.txt").write_text("x")
    with pytest.raises(CorruptError, match="does not list"):
        make_home(tmp_path).catalog().verify("mill-demo")


def test_a_cache_is_made_again(tmp_path: Path) -> None:
    catalog = filled(tmp_path, {"arm": 3, "road": 2})
    before, columns = catalog.ls(), catalog.columns("arm-demo", "anchor")
    assert make_home(tmp_path).catalog().ls() == before
    for path in (tmp_path / "catalog" / "cache").rglob("*.bin"):
        path.unlink()
    with pytest.raises(CorruptError, match="remove"):
        make_home(tmp_path).catalog().columns("arm-demo", "anchor")
    for folder in (tmp_path / "catalog" / "cache").iterdir():
        (folder / "index.json").unlink()
        folder.rmdir()
    again = make_home(tmp_path).catalog().columns("arm-demo", "anchor")
    np.testing.assert_array_equal(again.commands_TA, columns.commands_TA)
    assert again.episode_ids == columns.episode_ids


def test_statistics_are_those_of_the_valid_samples(tmp_path: Path) -> None:
    catalog = filled(tmp_path, {"road": 30})
    stats = catalog.stats("road-demo", "view")
    columns = catalog.columns("road-demo", "view")
    agents = columns.observe["agents"]
    rows = agents.values[agents.valid]
    assert stats["agents"].count == len(rows) and stats["agents"].mean.shape == (3,)
    np.testing.assert_allclose(stats["agents"].mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["agents"].std, rows.std(0), rtol=1e-5)
    np.testing.assert_allclose(stats["agents"].low, rows.min(0))
    np.testing.assert_allclose(stats["agents"].q99, np.quantile(rows, 0.99, axis=0), rtol=0.02)
    np.testing.assert_allclose(stats["steer"].mean, columns.commands_TA.mean(0), atol=1e-6)
    assert set(stats) == {"ego", "agents", "steer"}


def test_several_sets_of_one_machine_have_merged_statistics(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(MILL, "mill-a", "mill-b")
    catalog.add("mill-a", MILL, signed, episodes(MILL, 3))
    catalog.add("mill-b", MILL, signed, episodes(MILL, 9, first=3))
    both = catalog.stats(["mill-a", "mill-b"], "anchor")["pv"]
    rows = np.concatenate([e.streams["pv"].values for e in episodes(MILL, 12)])
    np.testing.assert_allclose(both.mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(both.std, rows.std(0), rtol=1e-5)


def test_applied_actions_default_to_commands_and_may_be_absent(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    made = [episode(ARM, 0, applied=False), episode(ARM, 1, actions=False), episode(ARM, 2)]
    home.catalog().add("arm-demo", ARM, home.contract(ARM), made)
    columns = home.catalog().columns("arm-demo", "anchor")
    first, second, third = (slice(s, s + n) for s, n in zip(columns.start_E, columns.length_E, strict=True))
    np.testing.assert_array_equal(columns.applied["hand"].values[first], columns.commands_TA[first, :2])
    assert not columns.command_valid_T[second].any() and columns.observe["joints"].valid[second].all()
    np.testing.assert_array_equal(columns.applied["grip"].values[third], made[2].streams["grip" + APPLIED].values)
    assert columns.tasks == ("task 0", "task 1", "task 0")


def test_a_cache_of_another_set_or_version_is_not_used(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(MILL, "mill-a", "mill-b")
    for n, name in enumerate(("mill-a", "mill-b")):
        catalog.add(name, MILL, signed, episodes(MILL, 3, first=3 * n))
    a, b = (next((tmp_path / "catalog" / "cache").glob(f"mill-{x}-*")) for x in "ab")
    shutil.rmtree(a)
    shutil.copytree(b, a)  # whose contract would be asked, and whose data be read?
    with pytest.raises(CorruptError, match=r"index\.json.*differs"):
        home.catalog().columns("mill-a", "anchor")
    shutil.rmtree(a)
    told = json.loads((b / "index.json").read_bytes())
    told.pop("sha256")
    told["version"] -= 1
    (b / "index.json").write_text(json.dumps({**told, "sha256": digest_value(told)}))
    assert home.catalog().verify("mill-b") > 5  # an earlier version's cache is no damage: it is built again
    assert home.catalog().columns("mill-b", "anchor").name == "mill-b"


def test_verifying_a_cache_takes_little_memory_whatever_its_episodes(tmp_path: Path) -> None:
    """One long episode among many short ones: their number times its length must not be held."""
    home = make_home(tmp_path)
    home.catalog().add("mill-demo", MILL, home.contract(MILL), [episode(MILL, 0, steps=4000)])
    columns = home.catalog().columns("mill-demo", "anchor")
    none = np.zeros(5000, np.int64)
    many = replace(
        columns,
        start_E=np.concatenate([none, columns.start_E]),
        length_E=np.concatenate([none, columns.length_E]),
    )
    tracemalloc.start()
    many.verify()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
