"""Split: whole episodes or whole sites, stable when data is added, copies on one side, strict TOML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.catalog import Catalog
from hagane.catalog.duplicates import Copy
from hagane.catalog.split import Split, SplitSet, load_split, make_split, save_split, split_of
from hagane.seal import Site
from hagane.terms import ConfigError, StoreError, dump_toml, parse_toml
from tests.catalog_fixture import ARM, Home, episodes, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two sets of one machine: 40 episodes, then 20 more."""
    made = make_home(tmp_path_factory.mktemp("site"))
    catalog, terms = made.catalog(), made.contract(ARM, "old", "new")
    catalog.add("old", ARM, terms, episodes(ARM, 40))
    catalog.add("new", ARM, terms, episodes(ARM, 20, first=40))
    return made


def held(split: Split, name: str) -> set[str]:
    return {e for dataset, e in split.held if dataset == name}


def test_it_is_a_function_of_seed_and_content(home: Home) -> None:
    catalog = home.catalog()
    split = make_split(catalog, ["old", "new"], "episode", 0.3, 7)
    assert split == make_split(home.catalog(), ["old", "new"], "episode", 0.3, 7)
    assert split.held != make_split(catalog, ["old", "new"], "episode", 0.3, 8).held
    assert 0.15 < len(split.held) / 60 < 0.45


def test_nothing_moves_when_episodes_are_added_and_a_larger_share_only_adds(home: Home) -> None:
    catalog = home.catalog()
    before = make_split(catalog, ["old"], "episode", 0.3, 7)
    after = make_split(catalog, ["old", "new"], "episode", 0.3, 7)
    assert held(before, "old") == held(after, "old") and held(after, "new")
    assert before.held < make_split(catalog, ["old"], "episode", 0.5, 7).held


def test_copies_go_where_the_first_one_went(home: Home) -> None:
    catalog = home.catalog()
    plain = make_split(catalog, ["old", "new"], "episode", 0.3, 7)
    old, new = ({f"arm/case/{k:06d}" for k in numbers} for numbers in (range(40), range(40, 60)))
    out, kept = min(held(plain, "old")), min(old - held(plain, "old"))
    moved_in, moved_out = min(new - held(plain, "new")), min(held(plain, "new"))
    copies = [Copy(("old", out), ("new", moved_in), "near"), Copy(("old", kept), ("new", moved_out), "same")]
    split = make_split(catalog, ["old", "new"], "episode", 0.3, 7, copies)
    assert held(split, "old") == held(plain, "old")
    assert held(split, "new") == held(plain, "new") - {moved_out} | {moved_in} and split.moved == 2
    # and it stays so, whatever came later
    assert held(make_split(catalog, ["old"], "episode", 0.3, 7), "old") == held(split, "old")


def test_whole_sites_are_held_out(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    sites = [f"plant-{k}" for k in range(6)]
    terms = home.contract(ARM, *sites, sites=tuple(sites))
    for k, site in enumerate(sites):
        here = Catalog.open(tmp_path / "catalog", Site(site, "JP", "consortium"), home.trust)
        here.add(site, ARM, terms, episodes(ARM, 3 + k, first=10 * k))
    catalog = home.catalog()
    for seed in range(5):
        split = make_split(catalog, sites, "site", 0.3, seed)
        shares = [len(s.held) / s.episodes for s in split.sets]
        assert set(shares) == {0.0, 1.0}, "a site lies on both sides"
        assert [s.site for s in split.sets] == sites
    alone = next(s for s in split.sets if s.held).name
    train = next(s for s in split.sets if not s.held)
    copy = Copy(
        (train.name, f"arm/case/{10 * int(train.name[-1]):06d}"), (alone, f"arm/case/{10 * int(alone[-1]):06d}"), "near"
    )
    guarded = make_split(catalog, sites, "site", 0.3, 4, [copy])
    assert (train.name, copy.first[1]) in guarded.held and guarded.moved == 1, "a held site's copy is trained on"
    with pytest.raises(ConfigError, match="all data is of one site"):
        make_split(catalog, sites[:1], "site", 0.3, 0)


def test_a_set_that_does_not_say_its_site(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Catalog.record
    monkeypatch.setattr(Catalog, "record", lambda catalog, name: replace(told(catalog, name), site=""))
    with pytest.raises(ConfigError, match="old: its record does not say at which site"):
        make_split(home.catalog(), ["old", "new"], "site", 0.3, 0)


def test_a_loader_is_told_sides_and_is_stopped_when_data_changed(home: Home) -> None:
    catalog = home.catalog()
    split = make_split(catalog, ["old"], "episode", 0.3, 7)
    digest = catalog.record("old").digest
    ids = [f"arm/case/{k:06d}" for k in range(40)]
    sides = split_of(split, "old", digest, ids)
    assert {i for i, side in zip(ids, sides, strict=True) if side == "held"} == held(split, "old")
    with pytest.raises(ConfigError, match="other content"):
        split_of(split, "old", "0" * 64, ids)
    with pytest.raises(ConfigError, match="does not cover data set 'new'"):
        split_of(split, "new", digest, ids)


@settings(max_examples=40)
@given(
    st.builds(
        Split,
        by=st.sampled_from(["episode", "site"]),
        share=st.floats(0.01, 0.99),
        seed=st.integers(0, 2**31),
        moved=st.integers(0, 9),
        sets=st.lists(
            st.builds(SplitSet, st.text(), st.text(), st.text(), st.integers(0, 99), st.lists(st.text()).map(tuple)),
            unique_by=lambda s: s.name,
            max_size=3,
        ).map(tuple),
    )
)
def test_the_file_says_the_same_again(split: Split) -> None:
    assert parse_toml(dump_toml(split), Split) == split


def test_bad_input_is_one_message(home: Home, tmp_path: Path) -> None:
    catalog = home.catalog()
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            make_split(catalog, ["old"], "episode", share, 0)
    with pytest.raises(ConfigError, match=r"0 of 40 episodes would be held out"):
        make_split(catalog, ["old"], "episode", 1e-9, 0)
    with pytest.raises(StoreError, match="no data set 'nope'"):
        make_split(catalog, ["nope"], "episode", 0.5, 0)
    path = tmp_path / "split.toml"
    split = make_split(catalog, ["old"], "episode", 0.3, 7)
    save_split(split, path)
    assert load_split(path) == split
    with pytest.raises(StoreError, match="exists and is not overwritten"):
        save_split(split, path)
    path.write_text(path.read_text().replace("share", "shere"))
    with pytest.raises(ConfigError, match="did you mean `share`"):
        load_split(path)
    with pytest.raises(ConfigError, match="split twice"):
        replace(split, sets=(*split.sets, *split.sets))


def test_shares_are_right_over_many_episodes() -> None:
    from hagane.catalog.split import _fraction

    share = np.mean([_fraction(3, f"{k:064x}") < 0.05 for k in range(20_000)])
    assert share == pytest.approx(0.05, abs=0.005)
