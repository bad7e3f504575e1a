"""Sealed data sets through the catalog: the same batches to the bit, and no changed byte, key or folder goes unseen."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.catalog import Ahead, Catalog, Loader, Mixture
from hagane.catalog.brokered import BrokeredGate
from hagane.catalog.doctor import examine_set
from hagane.catalog.export import export_set, verify_export
from hagane.catalog.sealing import PLAINTEXT, TIERS, CatalogKeys, layouts_of, renew_set, seal_cache, seal_set
from hagane.catalog.shelf import PlainShelf
from hagane.seal import Keyring, Layout, SealedFolder, SignedContract, check_folder, seal_folder
from hagane.terms import CorruptError, Decision, Embodiment, HaganeError, Refused, StoreError, digest_bytes
from tests.catalog_fixture import ARM, SITE, Home, episodes, make_home, same_episode
from tests.pictures_fixture import EYES
from tests.pictures_fixture import episodes as seen_episodes
from tests.test_catalog_loader import flat

TERMS: Mapping[str, Any] = {"purposes": ("anchor", "view", "export")}
MODES = ("jpeg", "video")


@dataclass(frozen=True)
class Pair:
    """The same data sets, plain in one site's folder and sealed in another."""

    plain: Home
    sealed: Home
    keyring: Keyring
    contracts: Mapping[str, SignedContract]

    def keys(self) -> CatalogKeys:
        return CatalogKeys(self.sealed.folder / "catalog", self.keyring)

    def open(self, keys: object = None) -> Catalog:
        """The sealed catalog; with the keyring's keys unless others are given."""
        given: Any = keys or self.keys()
        return Catalog.open(self.sealed.folder / "catalog", SITE, self.sealed.trust, self.sealed.ledger, keys=given)


def make_pair(folder: Path) -> Pair:
    plain, sealed = make_home(folder / "plain"), make_home(folder / "sealed")
    catalog = plain.catalog()
    keyring = Keyring(folder / "keys")
    contracts = {}
    made: tuple[tuple[Embodiment, Iterator[Any]], ...] = ((EYES, seen_episodes(5)), (ARM, episodes(ARM, 6)))
    for machine, given in made:
        name = f"{machine.name}-demo"
        contracts[name] = plain.contract(machine, **TERMS)
        catalog.add(name, machine, contracts[name], given)
        catalog.columns(name, "anchor", "video")
    shutil.copytree(plain.folder / "trust", sealed.folder / "trust", dirs_exist_ok=True)
    for name, signed in contracts.items():
        root, to = plain.folder / "catalog", sealed.folder / "catalog"
        seal_set(root / "sets" / name, to / "sets" / name, keyring, name, signed, SITE.name)
        for cache in sorted((root / "cache").glob(f"{name}-*")):
            seal_cache(cache, to / "cache" / cache.name, keyring, name, signed)
    return Pair(plain, sealed, keyring, contracts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def own(pair: Pair, tmp_path: Path) -> Pair:
    """A copy of the sealed site, to be damaged."""
    shutil.copytree(pair.sealed.folder, tmp_path / "sealed")
    return Pair(pair.plain, Home(tmp_path / "sealed"), pair.keyring, pair.contracts)


def loader(catalog: Catalog, mode: str = "jpeg", *names: str) -> Loader:
    found = names or ("arm-demo", "eyes-demo")
    return Loader(catalog, found, Mixture(), purpose="anchor", samples_per_step=12, pictures=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_batches_are_the_same_to_the_bit(pair: Pair, mode: str) -> None:
    plain, sealed = loader(pair.plain.catalog(), mode), loader(pair.open(), mode)
    assert plain.digest == sealed.digest
    for step in (0, 1, 7, 1):
        assert flat(sealed.at(step)) == flat(plain.at(step))
    ahead = Ahead(loader(pair.open(), mode).at, 2, last=8)
    for step in range(8):
        assert flat(ahead.at(step)) == flat(plain.at(step))
    ahead.close()


def test_everything_else_is_the_same_too(pair: Pair, tmp_path: Path) -> None:
    plain, sealed = pair.plain.catalog(), pair.open()
    assert [r.digest for r in sealed.ls()] == [r.digest for r in plain.ls()]
    for name in ("arm-demo", "eyes-demo"):
        for a, b in zip(plain.episodes(name, "view"), sealed.episodes(name, "view"), strict=True):
            same_episode(a, b)
        mean = [c.stats(name, "view") for c in (plain, sealed)]
        assert {n: s.mean.tolist() for n, s in mean[0].items()} == {n: s.mean.tolist() for n, s in mean[1].items()}
        assert sealed.verify(name) == plain.verify(name)
        assert examine_set(sealed, name) == examine_set(plain, name)
    # a copy that a peer can read is made by an export, and by nothing else
    out = [export_set(c, "arm-demo", "lerobot", tmp_path / n) for c, n in ((plain, "a"), (sealed, "b"))]
    assert out[0].digest == out[1].digest and verify_export(out[1].folder) == out[1].files


def test_no_plaintext_lies_on_the_disk(pair: Pair) -> None:
    """Not one 24-byte piece of what is sealed is found on the sealed site, but for what lies open anyway."""
    files = sorted(p for p in (pair.sealed.folder / "catalog").rglob("*") if p.is_file())
    disk = b"\0".join(p.read_bytes() for p in files)
    opened = [p.read_bytes() for p in files if p.name in {Path(n).name for n in PLAINTEXT}]
    paths = ("/".join(p.relative_to(pair.sealed.folder).parts[3:]).removesuffix(".sealed") for p in files)
    named = [b'"%s": {' % path.encode() for path in paths]  # sealed.json names files
    open_too = b"\0".join([*opened, *named, *(b'"sha256": "%s"' % digest_bytes(data).encode() for data in opened)])
    pieces = 0
    for part, name in (("sets", "arm-demo"), ("sets", "eyes-demo"), ("cache", "*")):
        root = pair.plain.folder / "catalog" / part
        for path in (p for top in root.glob(name) for p in top.rglob("*") if p.is_file()):
            data = path.read_bytes()
            if path.name in {Path(p).name for p in PLAINTEXT}:
                continue
            for at in range(0, len(data) - 24, max(len(data) // 40, 1)):
                piece = data[at : at + 24]
                if len(set(piece)) > 6 and piece not in open_too:  # not a run of zeros
                    pieces += 1
                    assert piece not in disk, (path, at)
    assert pieces > 500
    for secret in (b"tidy up", b"arm/case/", b"joints", b"eyes/0000", b"JFIF", b"PAR1"):
        assert secret not in disk


def test_every_file_is_listed_once_as_sealed_or_open(pair: Pair) -> None:
    top = pair.sealed.folder
    for path in sorted(p for p in (top / "catalog").rglob("*") if p.is_file()):
        name = path.relative_to(top).as_posix()
        tiers = [t for t in TIERS if fnmatch.fnmatch(name.removesuffix(".sealed"), t.where)]
        assert len(tiers) == 1, (name, tiers)
        assert tiers[0].sealed == name.endswith(".sealed") and tiers[0].why


def test_sealed_files_need_keys_and_the_message_says_so(pair: Pair) -> None:
    catalog = Catalog.open(pair.sealed.folder / "catalog", SITE, pair.sealed.trust)
    assert not catalog.problems and [r.name for r in catalog.ls()] == ["arm-demo", "eyes-demo"]
    assert {r.domain for r in catalog.ls()} == {"robot"}
    for read in (
        lambda: list(catalog.episodes("arm-demo", "view")),
        lambda: catalog.stats("arm-demo", "view"),
        lambda: catalog.columns("arm-demo", "anchor"),
        lambda: catalog.embodiment("arm-demo"),
        lambda: examine_set(catalog, "arm-demo"),
    ):
        with pytest.raises(StoreError, match="'arm-demo' is sealed, and no keys come to this process") as e:
            read()
        assert "starts the jail itself" in e.value.next_step and "arm-demo" in e.value.where
    assert catalog.verify("arm-demo") == len(check_folder(pair.sealed.folder / "catalog/sets/arm-demo").files)
    with pytest.raises(StoreError, match="renewed by who holds its keys"):
        catalog.renew("arm-demo", pair.contracts["arm-demo"])


class Wrong:
    """Gives a key that is none of these files'."""

    def key(self, dataset: str, shard: str) -> bytes:
        return bytes(32)


def test_a_wrong_key_opens_nothing(pair: Pair, tmp_path: Path) -> None:
    catalog = pair.open(Wrong())
    for read in (lambda: list(catalog.episodes("arm-demo", "view")), lambda: catalog.columns("arm-demo", "anchor")):
        with pytest.raises(CorruptError):
            read()
    with pytest.raises(Refused, match="there is no key"):
        pair.open(CatalogKeys(pair.sealed.folder / "catalog", Keyring(tmp_path / "keys"))).embodiment("arm-demo")


def test_folders_that_changed_places_are_told(own: Pair) -> None:
    sets, cache = own.sealed.folder / "catalog/sets", own.sealed.folder / "catalog/cache"
    names = [next(cache.glob(f"{n}-*")) for n in ("arm-demo", "eyes-demo")]
    for a, b in ((sets / "arm-demo", sets / "eyes-demo"), names):
        swap(a, b)
        catalog = own.open()
        with pytest.raises(CorruptError, match="lie where those of 'arm-demo' should"):
            catalog.columns("arm-demo", "anchor")
        swap(a, b)
    assert loader(own.open()).at(0)


def test_files_that_changed_places_in_a_folder_are_told(own: Pair) -> None:
    """Two cameras' pictures, list and files: every record would open, but the list is not the one that was sealed."""
    (cache,) = (c for c in (own.sealed.folder / "catalog/cache").glob("eyes-demo-*") if not c.name.endswith("-video"))
    swap(cache / "pictures-001.000.bin.sealed", cache / "pictures-002.000.bin.sealed")
    with pytest.raises(CorruptError):
        loader(own.open(), "jpeg", "eyes-demo")


def swap(a: Path, b: Path) -> None:
    beside = a.with_name("beside")
    a.rename(beside)
    b.rename(a)
    beside.rename(b)


def test_a_flipped_byte_names_file_and_episode(own: Pair) -> None:
    """One byte of one record: the message names the file and whose record it was."""
    root = own.sealed.folder / "catalog"
    plain = own.plain.folder / "catalog"
    (cache,) = (c.name for c in (root / "cache").glob("eyes-demo-*") if not c.name.endswith("-video"))
    places = (
        ("sets/eyes-demo", "hagane/streams/file-000.parquet", 3, "eyes/00002"),
        ("sets/eyes-demo", "data/chunk-000/file-000.parquet", 5, "eyes/00004"),
        (f"cache/{cache}", "rows.bin", 0, "step 0 of episode 'eyes/00000' to step 6 of episode 'eyes/00003' is not"),
        (f"cache/{cache}", "rows.bin", 1, "step 7 of episode 'eyes/00003' to step 15 of episode 'eyes/00004' is not"),
        (f"cache/{cache}", "pictures-001.000.bin", 8, "episode 'eyes/00001'"),
        (f"cache/{cache}-video", "pictures-002.000.bin", 3, "episode 'eyes/00003'"),
    )
    for where, path, record, words in places:
        layout = layouts_of(plain / where)[path]
        sizes = layout.sizes if layout.sizes is not None else [layout.stride] * (record + 1)
        file = root / where / f"{path}.sealed"
        table = 8 * len(sizes) + 16 if layout.sizes is not None else 0
        at = 96 + table + sum(sizes[:record]) + 16 * record + min(sizes[record] // 2, 40)
        with flipped(file, at), pytest.raises(CorruptError) as e:
            own.open().verify("eyes-demo")
        assert words in e.value.what and str(file).removesuffix(".sealed") in e.value.where, (path, str(e.value))
    assert own.open().verify("eyes-demo")


def test_damage_is_found_where_it_is_looked_at_and_nowhere_else(own: Pair) -> None:
    """Neighbouring control steps share a sealed record: spans in a sound one are read beside a damaged one."""
    plain = own.plain.catalog().columns("eyes-demo", "anchor")
    (cache,) = (own.sealed.folder / "catalog/cache").glob(f"{plain.folder.name}")
    k = layouts_of(plain.folder)["rows.bin"].stride // plain.records.itemsize
    assert 1 < k < len(plain) < 2 * k, "two records, the second a short one"
    spans = [(a, b) for a in range(0, len(plain), 3) for b in range(a + 1, len(plain) + 1, 5)]
    for bad in (0, 1):
        with flipped(cache / "rows.bin.sealed", 96 + bad * (k * plain.records.itemsize + 16) + 5):
            columns = own.open().columns("eyes-demo", "anchor")
            for first, end in spans:
                ends = np.array([first]), np.array([end])
                if first < k if bad == 0 else end > k:
                    with pytest.raises(CorruptError, match="the record of step"):
                        columns.check(*ends)
                else:
                    columns.check(*ends)
                    assert columns.records[first:end].tobytes() == plain.records[first:end].tobytes()
    columns = own.open().columns("eyes-demo", "anchor")
    columns.check(np.array([0, k, 5]), np.array([1, k + 1, 5]))
    assert columns.records.tobytes() == plain.records.tobytes(), "all of a record is decrypted at once"


@pytest.mark.parametrize(("stride", "good"), [(88, True), (176, True), (88 * 70, True), (44, False), (100, False)])
def test_rows_are_sealed_by_whole_steps(own: Pair, stride: int, good: bool) -> None:
    plain = own.plain.catalog().columns("eyes-demo", "anchor")
    folder, signed = own.sealed.folder / "catalog/cache" / plain.folder.name, own.contracts["eyes-demo"]
    layouts = {**layouts_of(plain.folder), "rows.bin": Layout(stride)}
    shutil.rmtree(folder)
    seal_folder(plain.folder, folder, own.keyring, "eyes-demo", EYES.owner, signed.digest, layouts)
    if not good:
        with pytest.raises(CorruptError, match="not sealed by whole control steps"):
            own.open().columns("eyes-demo", "anchor")
        return
    columns = own.open().columns("eyes-demo", "anchor")
    columns.check(np.array([0]), np.array([len(plain)]))
    assert columns.records.tobytes() == plain.records.tobytes()


class flipped:  # noqa: N801
    """A bit of a byte of a file, changed and put back."""

    def __init__(self, path: Path, at: int, bit: int = 3) -> None:
        self.path, self.at, self.bit = path, at, bit

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()

    def _flip(self) -> None:
        with self.path.open("r+b") as f:
            f.seek(self.at)
            (byte,) = f.read(1)
            f.seek(self.at)
            f.write(bytes([byte ^ 1 << self.bit]))


def unseen(own: Pair, *, every: int) -> tuple[int, list[str]]:
    """Flip bytes of every file of the sealed site's data one after another; those that a full check passes over."""
    checked, missed = 0, []
    root = own.sealed.folder / "catalog"
    for path in sorted(p for part in ("sets", "cache") for p in (root / part).rglob("*") if p.is_file()):
        size = path.stat().st_size
        name = "arm-demo" if "arm-demo" in str(path) else "eyes-demo"
        head = range(0, min(size, 120), every)  # magic, shard, contract, sizes, tag
        for at in sorted({*head, *range(0, size, max(size * every // 400, 1)), size - 1}):
            with flipped(path, at, at % 8):
                checked += 1
                try:
                    own.open().verify(name)
                    missed.append(f"{path} {at}")
                except HaganeError as e:
                    if path.name.removesuffix(".sealed").removesuffix(".sig") not in str(e):
                        missed.append(f"{path} {at} is told as {e}")
    return checked, missed


def test_flipped_bytes_of_every_file_are_seen(own: Pair) -> None:
    checked, missed = unseen(own, every=33)
    assert checked > 250 and not missed, missed[:5]


@pytest.mark.slow
def test_no_flipped_byte_goes_unseen_anywhere(own: Pair) -> None:
    checked, missed = unseen(own, every=1)
    assert checked > 5000 and not missed, missed[:5]


def test_what_lies_open_is_what_the_keeper_expects(pair: Pair, tmp_path: Path) -> None:
    """Code in a jail made the folder: an additional word in the open record, another contract or a link is refused."""
    source, name = pair.plain.folder / "catalog/sets/arm-demo", "arm-demo"
    signed, keyring = pair.contracts[name], Keyring(tmp_path / "keys")
    record = json.loads((source / "hagane/record.json").read_bytes())

    def refused(change: Any, words: str) -> None:
        made = tmp_path / "made"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(source, made)
        change(made / "hagane")
        with pytest.raises((CorruptError, StoreError), match=words):
            seal_set(made, tmp_path / "out", keyring, name, signed, SITE.name)
        assert not (tmp_path / "out").exists()

    def told(**more: object) -> Any:
        return lambda f: (f / "record.json").write_text(json.dumps({**record, **more}, indent=1, sort_keys=True) + "\n")

    def elsewhere(path: str) -> Any:
        def change(folder: Path) -> None:
            (folder / path).rename(tmp_path / "moved")
            (folder / path).symlink_to(tmp_path / "moved")

        return change

    refused(told(secret="recorded values"), "no record")
    refused(told(name="arm-other"), "other things")
    refused(told(owner="member-cars"), "other things")
    refused(told(digest="ab" * 31 + "zz"), "other things")
    refused(told(domain="recorded values"), "no record")
    refused(lambda f: (f / "record.json").write_text(json.dumps(record, indent=2, sort_keys=True)), "other things")
    refused(lambda f: (f / "contract.toml").write_bytes(signed.toml + b"#"), "not the contract")
    for path in ("record.json", "contract.toml", "manifest.json", "stats.npz"):
        refused(elsewhere(path), "link")
        shutil.move(tmp_path / "moved", tmp_path / f"moved-{path}")


def test_sets_and_caches_are_sealed_by_descriptor(pair: Pair, tmp_path: Path) -> None:
    """As the keeper reads them in a jail, where a path could lead elsewhere; what claims too much is not even read."""
    catalog, name, keyring = pair.plain.folder / "catalog", "arm-demo", Keyring(tmp_path / "keys")
    signed = pair.contracts[name]
    cache = min((catalog / "cache").glob(f"{name}-*"))
    for made in (catalog / "sets" / name, cache):
        holes = tmp_path / "holes"
        shutil.copytree(made, holes)

        def seal(given: Path, most_bytes: int, target: Path, made: Path = made) -> SealedFolder:
            fd = os.open(given, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if made.parent.name == "sets":
                    return seal_set(fd, target, keyring, name, signed, SITE.name, most_bytes)
                return seal_cache(fd, target, keyring, name, signed, most_bytes)
            finally:
                os.close(fd)

        large = holes / ("hagane/manifest.json" if made.parent.name == "sets" else "index.json")
        os.truncate(large, 1 << 42)
        with pytest.raises(StoreError, match="claim more than"):
            seal(holes, 1 << 30, tmp_path / "out")
        large.unlink()
        large.symlink_to("/etc/hostname")
        with pytest.raises(StoreError, match="link"):
            seal(holes, 1 << 30, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        sealed = seal(made, 1 << 30, tmp_path / "out" / made.name)
        assert check_folder(sealed.path).files == tuple(sorted(PlainShelf(made).names()))
        shutil.rmtree(holes)
        shutil.rmtree(tmp_path / "out")


def test_an_index_that_does_not_add_up_is_refused(pair: Pair, tmp_path: Path) -> None:
    (source,) = (c for c in (pair.plain.folder / "catalog/cache").glob("eyes-demo-*") if not c.name.endswith("-video"))
    for change in (
        lambda f: (f / "rows.bin").write_bytes((f / "rows.bin").read_bytes()[:-1]),
        lambda f: (f / "index.json").write_bytes(b"{}"),
        lambda f: (f / "pictures-001.index.bin").write_bytes((f / "pictures-001.index.bin").read_bytes()[24:]),
        lambda f: (f / "pictures-001.index.bin").write_bytes((f / "pictures-001.index.bin").read_bytes()[:-1]),
        lambda f: (f / "pictures-001.000.bin").write_bytes((f / "pictures-001.000.bin").read_bytes() + b"x"),
    ):
        made = tmp_path / "made"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(source, made)
        change(made)
        with pytest.raises(CorruptError):
            seal_cache(made, tmp_path / "out", pair.keyring, "eyes-demo", pair.contracts["eyes-demo"])
        assert not (tmp_path / "out").exists()


def test_a_sealed_set_is_renewed_by_the_keyring(own: Pair, tmp_path: Path) -> None:
    signed = own.plain.contract(ARM, purposes=("anchor",))
    folder = own.sealed.folder / "catalog/sets/arm-demo"
    with pytest.raises(Refused):
        renew_set(folder, signed, Keyring(tmp_path / "none"))
    renew_set(folder, signed, own.keyring)
    catalog = own.open()
    assert catalog.contract("arm-demo").digest == signed.digest and catalog.verify("arm-demo")
    with pytest.raises(Refused):
        catalog.stats("arm-demo", "view")
    assert list(catalog.episodes("arm-demo", "anchor"))


def test_a_cache_that_is_absent_is_built_in_plain(own: Pair) -> None:
    """In a jail that is its private memory; the keeper seals it afterwards."""
    shutil.rmtree(own.sealed.folder / "catalog/cache")
    built = loader(own.open(), "jpeg", "eyes-demo")
    assert flat(built.at(3)) == flat(loader(own.plain.catalog(), "jpeg", "eyes-demo").at(3))
    assert not built.datasets["eyes-demo"].shelf.sealed


class Desk:
    """A broker's client that grants one purpose and keeps what it was told."""

    def __init__(self, granted: str) -> None:
        self.granted, self.told = granted, []  # type: ignore[var-annotated]

    def ask(self, dataset: str, purpose: str) -> Decision:
        self.told.append(("ask", dataset, purpose))
        return Decision(purpose == self.granted, f"the broker grants {self.granted} only")

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        self.told.append(("note", kind, dict(body)))


def test_in_a_jail_the_broker_is_asked_and_notes(pair: Pair) -> None:
    desk = Desk("anchor")
    catalog = Catalog.open(
        pair.sealed.folder / "catalog", SITE, pair.sealed.trust, keys=pair.keys(), desk=desk, today=lambda: date.max
    )
    assert loader(catalog, "jpeg", "arm-demo").at(0), "the broker's word counts, not this process's clock"
    with pytest.raises(Refused, match="the broker grants anchor only"):
        catalog.stats("arm-demo", "view")
    catalog.note("export", "arm-demo", {"files": 3})
    assert desk.told[:2] == [("ask", "arm-demo", "anchor"), ("ask", "arm-demo", "view")]
    kind, body = desk.told[2][1:]
    assert kind == "export" and body["contract"] == pair.contracts["arm-demo"].digest and body["files"] == 3
    assert isinstance(catalog.gate, BrokeredGate)
