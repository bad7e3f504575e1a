"""Pictures through the training cache: the right one for every sample, in both modes, and damage is never silent."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hagane.catalog import Ahead, Catalog, Loader, Mixture
from hagane.catalog.order import PoolOrder, word
from hagane.catalog.pictures import Buffers
from hagane.catalog.shelf import PlainShelf
from hagane.catalog.video import POOL_EPISODES, VideoPictures, VideoWriter, encode_video
from hagane.intake.picture import encode_jpeg
from hagane.terms import CorruptError, LogError, Part, StoreError, Stream
from tests.catalog_fixture import make_home
from tests.pictures_fixture import EYES, SIZE, episode, episodes, picture
from tests.test_catalog_loader import flat

COUNT = 11


def made(folder: Path, form: str = "jpeg", count: int = COUNT) -> Catalog:
    home = make_home(folder)
    catalog = home.catalog()
    catalog.add("eyes-demo", EYES, home.contract(EYES), episodes(count, form))
    return catalog


def loader(catalog: Catalog, samples: int = 16, **more: object) -> Loader:
    return Loader(catalog, ["eyes-demo"], Mixture(), purpose="anchor", samples_per_step=samples, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return made(tmp_path_factory.mktemp("eyes"))


def check_part(part: Part, most: float) -> None:
    """Every picture of a part is the one its episode and step call for, within `most` grey levels on average."""
    names = {int(k): n for n in range(COUNT) for k in ids_of(n)}
    for i, sample in enumerate(part.sample_ids_N.tolist()):
        number, step = names[sample], ids_of(names[sample]).index(sample)
        steps = 12 + number % 5

        def near(got: np.ndarray, want_step: int, camera: int, number: int = number) -> None:
            want = picture(number, want_step, camera).astype(float)
            assert np.abs(got - want).mean() < most, (number, want_step, camera)

        left, right = part.observation.channels["left"], part.observation.channels["right"]
        for lag in range(2):
            at = step - lag
            assert left.valid[i, lag] == (at >= 0)
            if at >= 0:
                near(left.values[i, lag], at - at % 2, 0)
                assert left.age_s[i, lag] == pytest.approx((at % 2 + lag) / 10, abs=1e-6)
            else:
                assert not left.values[i, lag].any()
        assert right.valid[i, 0] == (step >= 1) and (step >= 1 or not right.values[i].any())
        if step >= 1:
            near(right.values[i, 0], step, 1)
        after = part.next["right"]
        assert after.valid[i, 0] == (step + 1 < steps)
        if step + 1 < steps:
            near(after.values[i, 0], step + 1, 1)


def ids_of(number: int) -> list[int]:
    return IDS[number]


IDS: dict[int, list[int]] = {}


@pytest.fixture(autouse=True, scope="module")
def sample_ids(catalog: Catalog) -> None:
    from hagane.catalog.order import mix

    digest = catalog.record("eyes-demo").digest
    for n in range(COUNT):
        steps = np.arange(12 + n % 5).astype(np.uint64)
        IDS[n] = mix(word(digest, f"eyes/{n:05d}") + steps).tolist()


@pytest.mark.parametrize(("mode", "most"), [("jpeg", 4.0), ("video", 12.0)])
def test_every_sample_shows_its_own_pictures(catalog: Catalog, mode: str, most: float) -> None:
    loaded = loader(catalog, pictures=mode)
    for step in range(6):
        for part in loaded.at(step).parts:
            check_part(part, most)


@pytest.mark.parametrize("mode", ["jpeg", "video"])
def test_an_epoch_shows_every_sample_once(catalog: Catalog, mode: str) -> None:
    loaded = loader(catalog, 8, pictures=mode)
    total = loaded.samples["eyes-demo"]
    seen: list[int] = []
    for step in range(-(-total // 8)):
        seen += loaded.at(step).parts[0].sample_ids_N.tolist()
    assert len(set(seen[:total])) == total


def test_forms_of_a_picture_end_as_the_same_samples(tmp_path: Path) -> None:
    shown = []
    for form in ("plain", "png"):
        pictures = made(tmp_path / form, form, 4).columns("eyes-demo", "anchor").pictures["left"]
        out = pictures.buffer(12)
        pictures.take(np.arange(12), out, np.arange(12))
        shown.append(out)
    np.testing.assert_array_equal(*shown)
    # what was plain comes back plain, what was encoded keeps its bytes
    plain, encoded = (
        next(iter(make_home(tmp_path / f).catalog().episodes("eyes-demo", "view"))) for f in ("plain", "png")
    )
    np.testing.assert_array_equal(plain.streams["left"].values, episode(0, form="plain").streams["left"].values)
    assert encoded.streams["left"].values.tolist() == episode(0, form="png").streams["left"].values.tolist()


def test_statistics_of_pictures_are_exact(tmp_path: Path) -> None:
    stats = made(tmp_path, "png", 3).stats("eyes-demo", "view")["right"]
    shown = np.stack([picture(n, k, 1) for n in range(3) for k in range(1, 12 + n % 5)]).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(stats.mean, shown.mean(0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, shown.std(0), rtol=1e-9)
    np.testing.assert_array_equal(stats.high, shown.max(0))


def test_without_next_pictures_nothing_else_changes(catalog: Catalog) -> None:
    full, spared = loader(catalog).at(2).parts[0], loader(catalog, next_pictures=False).at(2).parts[0]
    assert set(full.next) == {"state", "left", "right"} and set(spared.next) == {"state"}
    assert full.sample_ids_N.tolist() == spared.sample_ids_N.tolist()
    assert loader(catalog).digest != loader(catalog, next_pictures=False).digest  # equal digests give equal batches
    for name, window in spared.observation.channels.items():
        np.testing.assert_array_equal(window.values, full.observation.channels[name].values)


@pytest.mark.parametrize("mode", ["jpeg", "video"])
def test_ranks_and_workers_change_nothing(catalog: Catalog, mode: str) -> None:
    whole = loader(catalog, pictures=mode)
    for ranks in (2, 3, 8):
        for step in (0, 5):
            batch = whole.at(step).parts[0]
            shares = [loader(catalog, pictures=mode).at(step, r, ranks).parts[0] for r in range(ranks)]
            for r, share in enumerate(shares):
                assert share.sample_ids_N.tolist() == batch.sample_ids_N[r::ranks].tolist()
                window = share.observation.channels["left"]
                np.testing.assert_array_equal(window.values, batch.observation.channels["left"].values[r::ranks])
    want = [flat(whole.at(s)) for s in range(20)]
    for workers in (0, 1, 2, 8):
        ahead = Ahead(loader(catalog, pictures=mode).at, workers, last=20)
        assert [flat(ahead.at(s)) for s in range(20)] == want
        assert flat(ahead.at(3)) == want[3]
        ahead.close()


def test_a_batch_stays_as_it_is_while_later_ones_are_made(catalog: Catalog) -> None:
    loaded = loader(catalog)
    first = loaded.at(0)
    before = flat(first)
    for step in range(1, 20):
        loaded.at(step)
    assert flat(first) == before


def test_buffers_are_used_again_only_when_free() -> None:
    buffers = Buffers()
    a = buffers.take((4, 2))
    view = a[1:]
    a[:] = 7
    del a
    b = buffers.take((4, 2))
    b[:] = 1
    assert view.min() == 7
    del b, view
    assert buffers.take((4, 2)).base is not None and len(buffers._made) == 2


@pytest.mark.parametrize("mode", ["jpeg", "video"])
def test_a_flipped_byte_names_file_and_episode(tmp_path: Path, mode: str) -> None:
    catalog = made(tmp_path, count=4)
    catalog.columns("eyes-demo", "anchor", mode)  # type: ignore[arg-type]
    (folder,) = (p for p in (tmp_path / "catalog" / "cache").iterdir() if p.name.endswith("video") == (mode == "video"))
    rng = random.Random(1)
    for path in sorted(folder.glob("pictures-*.000.bin")):
        good = path.read_bytes()
        for _ in range(10):
            at = rng.randrange(len(good))
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
            again = make_home(tmp_path).catalog()
            with pytest.raises(CorruptError, match=r"episode 'eyes/0000\d'") as e:
                for split in ("train", "held-out"):
                    loaded = loader(again, pictures=mode, split=split)
                    for step in range(4):
                        loaded.at(step)
            assert path.name in str(e.value)
        path.write_bytes(good)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    bad = episode(0, form="plain")
    small = Stream(bad.streams["left"].times_ns, bad.streams["left"].values[:, ::2], bad.streams["left"].valid)
    object.__setattr__(bad, "streams", {**bad.streams, "left": small})
    with pytest.raises(LogError, match="channel has"):
        home.catalog().add("eyes-demo", EYES, home.contract(EYES), [bad])
    jpegs = episode(0)
    broken = jpegs.streams["left"].values.copy()
    broken[1] = broken[1][: len(broken[1]) // 2]
    stream = Stream(jpegs.streams["left"].times_ns, broken, jpegs.streams["left"].valid)
    object.__setattr__(jpegs, "streams", {**jpegs.streams, "left": stream})
    with pytest.raises(LogError, match=r"a picture cannot be (read|decoded)"):
        home.catalog().add("eyes-demo", EYES, home.contract(EYES), [jpegs])
    assert home.catalog().ls() == () and home.catalog().unfinished() == ()
    assert EYES.channel("left").shape == SIZE


def test_pools_open_each_episode_once_an_epoch() -> None:
    sizes = np.random.default_rng(0).integers(1, 40, 37)
    episode_N = np.repeat(np.arange(37), sizes)
    order = PoolOrder(episode_N, POOL_EPISODES, word("k"))
    total = len(episode_N)
    first, second = order.at(0, total), order.at(total, total)
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == list(range(total))
        opened: list[int] = []
        for e in episode_N[epoch].tolist():
            if e not in opened[-POOL_EPISODES:]:
                assert e not in opened  # an episode that was left is not opened again
                opened.append(e)
    assert first.tolist() != second.tolist()
    again = PoolOrder(episode_N, POOL_EPISODES, word("k"))
    for at in (total + 5, 3, 2 * total - 4):
        assert again.at(at, 9).tolist() == order.at(at, 9).tolist()


def test_pictures_of_odd_size_come_back_from_a_video(tmp_path: Path) -> None:
    shown = [picture(0, k, 0)[:31, :47] for k in range(4)]
    data = encode_video([encode_jpeg(p) for p in shown], 10.0)
    writer = VideoWriter(tmp_path, "pictures-000")
    writer.append([data], 4)
    writer.close()
    pictures = VideoPictures(PlainShelf(tmp_path), "pictures-000", (31, 47, 3), 1, str)
    out = pictures.buffer(4)
    pictures.take(np.arange(4), out, np.arange(4))
    assert np.abs(out.astype(float) - np.stack(shown)).mean() < 12


def test_without_an_encoder_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagane.catalog.video._ENCODER", {"preset": "no such preset"})
    with pytest.raises(StoreError, match=r'pictures cannot be kept as video(.|\n)*pictures = "jpeg"'):
        encode_video([encode_jpeg(picture(0, 0, 0))], 10.0)
