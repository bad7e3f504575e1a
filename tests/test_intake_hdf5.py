"""HDF5 logs: ALOHA and robomimic files as h5py writes them; bombs, links, damage, and demos that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import picture, read_logs
from hagane.intake.detect import format_of
from hagane.intake.picture import JPEG, encode_jpeg, encode_png, plain_pictures
from hagane.terms import Channel, Embodiment, LogError, dump_toml

h5py = pytest.importorskip("h5py", reason="h5py is an extra of hagane")
STEPS, H, W = 12, 24, 32
CAMERA = Channel("cam_high", kind="image", shape=(H, W, 3), role="camera")
ALOHA = Embodiment(
    "aloha",
    "robot",
    "member-robots",
    50.0,
    8,
    (
        Channel("qpos", shape=(14,), unit=("rad",)),
        Channel("elbows", shape=(2,), unit=("rad",), source=("observations/qpos.2", "observations/qpos.9")),
        CAMERA,
    ),
    (Channel("left", shape=(7,)), Channel("right", shape=(7,))),
)
LIFT = Embodiment(
    "lift",
    "robot",
    "member-robots",
    20.0,
    8,
    (Channel("eef", shape=(3,), unit=("m",), source=("obs/robot0_eef_pos",)),),
    (Channel("arm", shape=(6,)), Channel("grip")),
)


def images(steps: int = STEPS) -> np.ndarray:
    base = np.linspace(0, 90, W)[None, None, :, None] + np.arange(steps)[:, None, None, None] * 12
    return np.broadcast_to(base, (steps, H, W, 3)).astype(np.uint8)


def numbers(steps: int = STEPS, width: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, width)).astype("f4")


def padded(pictures: list[bytes]) -> np.ndarray:
    rows = np.zeros((len(pictures), max(map(len, pictures)) + 7), np.uint8)
    for row, data in zip(rows, pictures, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


def write_aloha(path: Path, *, compress: bool = False, edit: Callable[[Any], object] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, compress
        obs = file.create_group("observations")
        obs["qpos"], obs["qvel"], file["action"] = numbers(), numbers(seed=1), numbers(seed=2)
        cameras = obs.create_group("images")
        if compress:
            both = [[encode_jpeg(p, q) for p in images()] for q in (95, 40)]
            cameras.create_dataset("cam_high", data=padded(both[0]), chunks=(1, padded(both[0]).shape[1]))
            cameras["cam_low"] = padded(both[1])
            # rows in the order of the writer's cameras, which is not the file's
            file["compress_len"] = np.array([[len(p) for p in both[1]], [len(p) for p in both[0]]], "f4")
        else:
            cameras.create_dataset("cam_high", data=images(), chunks=(1, H, W, 3))
        if edit:
            edit(file)
    return path


def write_robomimic(
    path: Path, lengths: tuple[int, ...] = (5, 7, 6), edit: Callable[[Any], object] | None = None
) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for n, steps in zip((0, 2, 10), lengths, strict=False):
            demo = data.create_group(f"demo_{n}")
            demo["actions"] = numbers(steps, 7, n).astype("f8")
            demo["obs/robot0_eef_pos"] = numbers(steps, 3, n + 50)
            demo["obs/rgb"] = images(steps)
            demo.attrs["num_samples"] = steps
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
        if edit:
            edit(file)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_an_aloha_file(tmp_path: Path, compress: bool) -> None:
    path = write_aloha(tmp_path / "episode_3.hdf5", compress=compress)
    assert format_of(path) == "hdf5_log"
    (e,) = read_logs(path, ALOHA, task="fold the towel")
    assert (e.id, e.task, e.outcome) == ("episode_3", "fold the towel", "")
    np.testing.assert_array_equal(e.streams["qpos"].values, numbers())
    np.testing.assert_array_equal(e.streams["elbows"].values, numbers()[:, [2, 9]])
    np.testing.assert_array_equal(e.streams["right"].values, numbers(seed=2)[:, 7:])
    assert e.streams["qpos"].times_ns.tolist() == [k * 20_000_000 for k in range(STEPS)]
    kept = e.streams["cam_high"].values
    assert (kept.dtype == object) == compress
    if compress:  # the very bytes, without their padding
        assert kept.tolist() == [encode_jpeg(p) for p in images()]
    else:
        np.testing.assert_array_equal(kept, images())
    assert [(f.kind, f.detail) for f in e.findings] == [
        ("note", "the file has no time stamps: rows count at 50 Hz, as the embodiment says")
    ]


def test_the_same_bytes_give_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5")
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "episode_0.hdf5"
    other.write_bytes(path.read_bytes())
    assert [(e.id, e.digest) for e in read_logs(path, ALOHA)] == [(e.id, e.digest) for e in read_logs(other, ALOHA)]


def test_a_robomimic_file(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "low_dim.hdf5")
    found = list(read_logs(path, LIFT))
    assert [e.id for e in found] == ["low_dim/demo_0", "low_dim/demo_2", "low_dim/demo_10"]
    assert len({e.digest for e in found}) == 3
    for e, (n, steps) in zip(found, ((0, 5), (2, 7), (10, 6)), strict=True):
        np.testing.assert_array_equal(e.streams["arm"].values, numbers(steps, 7, n)[:, :6])
        np.testing.assert_array_equal(e.streams["grip"].values, numbers(steps, 7, n)[:, 6:])
        np.testing.assert_array_equal(e.streams["eef"].values, numbers(steps, 3, n + 50))
        assert "rows count at 20 Hz, as its env_args say" in e.findings[0].detail
    assert [e.id for e in read_logs(path, LIFT, split="train")] == ["low_dim/demo_0", "low_dim/demo_10"]
    with pytest.raises(LogError, match=r"has no mask 'trian'(.|\n)*did you mean train"):
        read_logs(path, LIFT, split="trian")


def test_words_and_outcomes_are_taken_where_the_file_has_them(tmp_path: Path) -> None:
    def libero(file: Any) -> None:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        file["data/demo_2"].attrs["success"] = True
        file["data/demo_10"].attrs["task"] = "close it"
        file["data/demo_10"].attrs["success"] = np.int64(0)

    found = list(read_logs(write_robomimic(tmp_path / "a.hdf5", edit=libero), LIFT, task="else"))
    assert [(e.task, e.outcome) for e in found] == [
        ("open the drawer", ""),
        ("open the drawer", "success"),
        ("close it", "failure"),
    ]


def test_stamps_of_the_file_count(tmp_path: Path) -> None:
    stamps = 1.7e9 + np.cumsum(np.random.default_rng(0).uniform(0.01, 0.03, STEPS))
    path = write_aloha(tmp_path / "a.hdf5", edit=lambda f: f.update({"observations/timestamp": stamps}))
    (e,) = read_logs(path, ALOHA)
    np.testing.assert_allclose(e.streams["left"].times_ns / 1e9, stamps - stamps[0], atol=1e-6)
    assert abs(e.streams["left"].clock_offset_ns + stamps[0] * 1e9) < 1000
    assert not any("no time stamps" in f.detail for f in e.findings)
    path = write_aloha(tmp_path / "b.hdf5", edit=lambda f: f.update({"clock": np.arange(STEPS) * 10**8 + 10**18}))
    (e,) = read_logs(path, ALOHA, time_column="clock")
    assert e.streams["qpos"].times_ns.tolist() == [k * 10**8 for k in range(STEPS)]
    with pytest.raises(LogError, match="no feature 'clokc'"):
        read_logs(path, ALOHA, time_column="clokc")

    def back(f: Any) -> None:
        f["timestamp"] = np.r_[np.arange(6), 3.5, np.arange(7, STEPS)].astype(float)

    (e,) = read_logs(write_aloha(tmp_path / "c.hdf5", edit=back), ALOHA)
    assert "clock-jump" in {f.kind for f in e.findings if f.stream == "qpos"}
    nan = write_aloha(tmp_path / "d.hdf5", edit=lambda f: f.update({"time": np.r_[np.arange(STEPS - 1.0), np.nan]}))
    with pytest.raises(LogError, match="time, row 11: a time stamp is not a number"):
        list(read_logs(nan, ALOHA))


def test_values_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    def nan(file: Any) -> None:
        file["observations/qpos"][4, 3] = np.nan

    (e,) = read_logs(write_aloha(tmp_path / "a.hdf5", edit=nan), ALOHA)
    assert not e.streams["qpos"].valid[4] and e.streams["qpos"].valid.sum() == STEPS - 1
    assert "nan" in {f.kind for f in e.findings if f.stream == "qpos"}


@pytest.mark.parametrize("how", ["vlen", "png", "gzip"])
def test_other_ways_to_keep_pictures(tmp_path: Path, how: str) -> None:
    def swap(file: Any) -> None:
        del file["observations/images/cam_high"]
        if how == "gzip":
            file.create_dataset("observations/images/cam_high", data=images(), chunks=(5, H, W, 3), compression="gzip")
            return
        given = [np.frombuffer(encode_jpeg(p) if how == "vlen" else encode_png(p), np.uint8) for p in images()]
        kind = h5py.vlen_dtype(np.uint8)
        d = file.create_dataset("observations/images/cam_high", (STEPS,), dtype=kind)
        for k, row in enumerate(given):
            d[k] = row

    (e,) = read_logs(write_aloha(tmp_path / "a.hdf5", edit=swap), ALOHA)
    back = plain_pictures(e.streams["cam_high"].values)
    assert np.abs(back.astype(int) - images()).max() <= (12 if how == "vlen" else 0)


def test_many_plain_pictures_are_kept_as_jpeg_and_a_finding_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_aloha(tmp_path / "a.hdf5")
    for module in (picture, __import__("hagane.intake.hdf5_log", fromlist=["x"])):
        monkeypatch.setattr(module, "PLAIN_BYTES", 1000)
    (e,) = read_logs(path, ALOHA)
    assert all(p.startswith(JPEG) for p in e.streams["cam_high"].values)
    assert any("kept as JPEG of quality 95" in f.detail and f.stream == "cam_high" for f in e.findings)


def external(file: Any) -> None:
    del file["observations/qpos"]
    file["observations/qpos"] = h5py.ExternalLink("other.hdf5", "/observations/qpos")


def soft(file: Any) -> None:
    del file["action"]
    file["action"] = h5py.SoftLink("/observations/qpos")
    file["observations/loop"] = h5py.SoftLink("/observations")
    file["observations/again"] = file["observations"]  # a hard link that makes a circle


def virtual(file: Any) -> None:
    del file["observations/qpos"]
    layout = h5py.VirtualLayout(shape=(STEPS, 14), dtype="f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "/observations/qpos", shape=(STEPS, 14))
    file.create_virtual_dataset("observations/qpos", layout)


def stored_outside(file: Any) -> None:
    del file["observations/qpos"]
    file.create_dataset("observations/qpos", (STEPS, 14), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def claimed(file: Any) -> None:
    del file["observations/qpos"]
    file.create_dataset("observations/qpos", (1 << 40, 14), "f4", chunks=(1024, 14), compression="gzip")


def bomb(file: Any) -> None:
    """8 GiB of zeros in 8 MB: its shape fits its bytes, and no memory fits its shape."""
    del file["observations/qpos"]
    d = file.create_dataset("observations/qpos", (1 << 27, 14), "f4", chunks=(1 << 20, 14), compression="gzip")
    packed = __import__("zlib").compress(bytes((1 << 20) * 14 * 4), 9)
    for k in range(128):
        d.id.write_direct_chunk((k << 20, 0), packed)


def large_chunk(file: Any) -> None:
    del file["observations/qpos"]
    d = file.create_dataset("observations/qpos", (1 << 24, 14), "f4", chunks=(1 << 23, 14), compression="gzip")
    d.id.write_direct_chunk((0, 0), bytes(1 << 20))


def objects(file: Any) -> None:
    del file["observations/qpos"]
    d = file.create_dataset("observations/qpos", (STEPS,), dtype=h5py.ref_dtype)
    d[0] = file.ref


def shorter(file: Any) -> None:
    del file["observations/qpos"]
    file["observations/qpos"] = numbers(STEPS - 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (external, r"observations/qpos is a link to other\.hdf5:/observations/qpos: links are not followed"),
        (soft, "action is a link to /observations/qpos: links are not followed"),
        (virtual, "observations/qpos: its values lie in other files"),
        (stored_outside, "observations/qpos: its values lie in other files"),
        (claimed, r"claims \d+ bytes of values in \d+ bytes of a file"),
        (bomb, "observations/qpos takes more than 2 GiB"),
        (large_chunk, r"chunks \(8388608, 14\) take more than 256 MiB"),
        (objects, r"no feature for channel 'qpos', 'elbows'(.|\n)*set `source`"),
        (shorter, "datasets of one episode differ in rows: observations/qpos 11, observations/images/cam_high 12"),
        (lambda f: [f.__delitem__(n) for n in ("action", "observations")], "holds no dataset"),
        (lambda f: f.__delitem__("observations/images"), "no feature for channel 'cam_high'"),
    ],
)
def test_what_is_refused(tmp_path: Path, edit: Callable[[Any], object], message: str) -> None:
    write_aloha(tmp_path / "other.hdf5")
    path = write_aloha(tmp_path / "a.hdf5", edit=edit)
    assert format_of(path) == "hdf5_log"
    with pytest.raises(LogError, match=message):
        read_logs(path, ALOHA)


def test_lengths_that_fit_no_camera_are_refused(tmp_path: Path) -> None:
    def wrong(file: Any) -> None:
        file["compress_len"][:, 4] = 1

    with pytest.raises(LogError, match=r"frame 4 of /observations/images/cam_high has \d+ bytes, compress_len says"):
        list(read_logs(write_aloha(tmp_path / "a.hdf5", compress=True, edit=wrong), ALOHA))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("obs/robot0_eef_pos", numbers(7, 4), r"demo_2/: obs/robot0_eef_pos has shape \(4,\) a row, in the first"),
        ("obs/robot0_eef_pos", None, "demo_2/: has no obs/robot0_eef_pos, which the first demonstration has"),
        ("actions", numbers(6, 7), "differ in rows: obs/robot0_eef_pos 7, actions 6"),
    ],
)
def test_demos_of_other_shapes_are_refused(tmp_path: Path, name: str, values: Any, message: str) -> None:
    def edit(file: Any) -> None:
        del file[f"data/demo_2/{name}"]
        if values is not None:
            file[f"data/demo_2/{name}"] = values

    with pytest.raises(LogError, match=message):
        read_logs(write_robomimic(tmp_path / "a.hdf5", edit=edit), LIFT)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "a.hdf5", compress=True)
    whole = path.read_bytes()
    for keep in (8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(LogError, match="truncated or damaged HDF5 file"):
            list(read_logs(path, ALOHA))
    path.write_bytes(b"")
    with pytest.raises(LogError, match="the file is empty"):
        read_logs(path, ALOHA)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_robomimic(tmp_path_factory.mktemp("flip") / "a.hdf5", (3,))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_flipped_bytes_never_end_in_a_traceback(small: Path, seed: int) -> None:
    """HDF5 has no checksum here: a flip in a value is silent, one in the structure is one message."""
    rng = np.random.default_rng(seed)
    data = bytearray(small.read_bytes())
    for at in rng.integers(0, len(data), rng.integers(1, 4)).tolist():
        data[at] ^= int(rng.integers(1, 256))
    path = small.with_name("flipped.hdf5")
    path.write_bytes(bytes(data))
    try:
        list(read_logs(path, LIFT))
    except LogError as e:
        assert str(path) in str(e)


def test_the_verb_looks_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    for n in range(2):
        write_aloha(tmp_path / "logs" / f"episode_{n}.hdf5", compress=True)
    (tmp_path / "m.toml").write_text(dump_toml(ALOHA))
    args = ["intake", str(tmp_path / "logs"), "--embodiment", str(tmp_path / "m.toml"), "--dry-run"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "2 episodes" in out and "cam_high" in out and "rows count at 50 Hz" in out


def test_a_rate_that_takes_centuries_is_refused(tmp_path: Path) -> None:
    def slow(file: Any) -> None:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 1e-300}})

    with pytest.raises(LogError, match="rows at 1e-300 Hz take centuries"):
        list(read_logs(write_robomimic(tmp_path / "lift.hdf5", edit=slow), LIFT))


def test_a_channel_without_a_unit_is_checked_too(tmp_path: Path) -> None:
    bare = replace(ALOHA, observe=(replace(ALOHA.observe[0], unit=()), *ALOHA.observe[1:]))
    (episode,) = read_logs(write_aloha(tmp_path / "a.hdf5"), bare)
    assert episode.streams[bare.observe[0].name].unit == ("1",)
