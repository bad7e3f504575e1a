"""RLDS episodes in TFDS folders: checksums, Examples as protobuf writes them, whole sets, and sets that are wrong."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import read_logs
from hagane.intake.crc32c import crc32c, masked
from hagane.intake.detect import format_of
from hagane.intake.picture import encode_jpeg
from hagane.intake.tfrecord import parse_example, read_records, scan_records
from hagane.terms import Channel, Embodiment, LogError, dump_toml

# One record that protobuf 7.36 (messages of tensorflow/core/example) and google-crc32c 1.9 wrote:
# {"steps/action": [0.5, -1.25, 3e7], "steps/n": [0, 1, 127, 128, 300, -1, -2^63, 2^63 - 1], "empty": [],
#  "steps/text": [b"pick", "置く"]}
GOLDEN = bytes.fromhex(
    "8700000000000000b86f57e60a84010a0b0a05656d70747912020a000a200a0c73746570732f616374696f6e1210120e0a0c0000003f00"
    "00a0bfc0e1e44b0a330a0773746570732f6e12281a260a2400017f8001ac02ffffffffffffffffff0180808080808080808001ffffffff"
    "ffffffff7f0a1e0a0a73746570732f7465787412100a0e0a047069636b0a06e7bdaee3818f0eda8a85"
)
H, W = 16, 24
ARM = Embodiment(
    "widow",
    "robot",
    "member-robots",
    5.0,
    4,
    (
        Channel("state", shape=(3,), unit=("m",)),
        Channel("grip", source=("observation/state.2",)),
        Channel("image", kind="image", shape=(H, W, 3), role="camera"),
    ),
    (Channel("move", shape=(3,)), Channel("close")),
)


def slow_crc(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex("01c00000" + "0" * 24 + "14000000" + "00000400" + "00000014" + "00000018" + "28000000")
            + bytes.fromhex("00000000" + "02000000" + "00000000"),
            0xD9963A56,
        ),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_known_checksums(data: bytes, want: int) -> None:
    """RFC 3720, appendix B.4, and the usual check word."""
    assert crc32c(data) == want == slow_crc(data)


@settings(max_examples=25, deadline=None)
@given(length=st.one_of(st.integers(0, 2100), st.integers(32_700, 50_000)), seed=st.integers(0, 1 << 30))
def test_checksums_of_any_length(length: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(length)
    assert crc32c(data) == slow_crc(data)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def encode(features: Mapping[str, Sequence[Any]], packed: bool = True) -> bytes:
    """An Example, by the protobuf rules; `packed=False` writes numbers one by one, as old writers do."""
    entries = b""
    for name, values in features.items():
        first = values[0] if len(values) else b""
        if isinstance(first, bytes):
            feature = field(1, b"".join(field(1, v) for v in values))
        elif isinstance(first, float | np.floating):
            data = [struct.pack("<f", v) for v in values]
            inner = field(1, b"".join(data)) if packed else b"".join(varint(1 << 3 | 5) + d for d in data)
            feature = field(2, inner)
        else:
            data = [varint(int(v)) for v in values]
            inner = field(1, b"".join(data)) if packed else b"".join(varint(1 << 3) + d for d in data)
            feature = field(3, inner)
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def record(payload: bytes) -> bytes:
    head = struct.pack("<Q", len(payload))
    crcs = [struct.pack("<I", masked(slow_crc(d) if len(d) < 100 else crc32c(d))) for d in (head, payload)]
    return head + crcs[0] + payload + crcs[1]


def plain(features: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in features.items()}


GOLDEN_VALUES = {
    "empty": [],
    "steps/action": [0.5, -1.25, 3e7],
    "steps/n": [0, 1, 127, 128, 300, -1, -(1 << 63), (1 << 63) - 1],
    "steps/text": [b"pick", "置く".encode()],
}


def test_a_record_of_the_real_writer(tmp_path: Path) -> None:
    """Decoded as its writer meant it; and this file's own encoder, which the other tests rely on, gives its bytes."""
    (tmp_path / "a").write_bytes(GOLDEN)
    places, cut = scan_records(tmp_path / "a")
    (payload,) = read_records(tmp_path / "a", places)
    assert not cut and plain(parse_example(payload)) == GOLDEN_VALUES
    assert record(encode(GOLDEN_VALUES)) == GOLDEN
    assert plain(parse_example(encode(GOLDEN_VALUES, packed=False))) == GOLDEN_VALUES


@settings(max_examples=60, deadline=None)
@given(
    features=st.dictionaries(
        st.text(max_size=12),
        st.one_of(
            st.lists(st.binary(max_size=40), min_size=1, max_size=5),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
            st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=9),
        ),
        max_size=5,
    ),
    packed=st.booleans(),
)
def test_examples_come_back(features: dict[str, list[Any]], packed: bool) -> None:
    assert plain(parse_example(encode(features, packed))) == features


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80), at=st.integers(0, 150), value=st.integers(0, 255))
def test_bytes_that_are_no_example_raise_one_kind_of_error(data: bytes, at: int, value: int) -> None:
    flipped = bytearray(GOLDEN[12:-4])
    flipped[at % len(flipped)] = value
    for bad in (data, bytes(flipped), bytes(flipped[: at + 1])):
        with contextlib.suppress(ValueError):
            parse_example(bad)


TENSOR = {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor"}


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    sizes = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {**TENSOR, "tensor": {"shape": sizes, "dtype": dtype, "encoding": "none"}}


def tree(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": "FeaturesDict", "featuresDict": {"features": features}}


def layout() -> dict[str, Any]:
    image = {"shape": {"dimensions": [str(H), str(W), "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}
    step = tree(
        observation=tree(
            state=tensor("float32", 3),
            image={"pythonClassName": "Image", "image": image},
            ragged={"sequence": {"feature": tensor("float32"), "length": "-1"}},
        ),
        action=tensor("float64", 4),
        is_first=tensor("bool"),
        is_last=tensor("bool"),
        language_instruction={"pythonClassName": "Text", "text": {}},
    )
    meta = tree(file_path={"text": {}}, success=tensor("bool"))
    return tree(steps={"sequence": {"feature": step, "length": "-1"}}, episode_metadata=meta)


def numbers(number: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.normal(size=(steps, 3)).astype("f4"), rng.normal(size=(steps, 4)).astype("f4")


def pictures(number: int, steps: int) -> list[bytes]:
    return [encode_jpeg(np.full((H, W, 3), 10 * number + k, np.uint8)) for k in range(steps)]


def values(number: int, steps: int) -> dict[str, Any]:
    state, action = numbers(number, steps)
    return {
        "steps/observation/state": state.reshape(-1),
        "steps/observation/image": pictures(number, steps),
        "steps/observation/ragged/ragged_flat_values": [1.0],
        "steps/action": action.reshape(-1),
        "steps/is_first": [1] + [0] * (steps - 1),
        "steps/is_last": [0] * (steps - 1) + [1],
        "steps/language_instruction": [b"put it down"] * steps,
        "episode_metadata/file_path": [b"/raw/7.npy"],
        "episode_metadata/success": [number % 2],
    }


Edit = Callable[[dict[str, Any]], object]


def write_set(
    root: Path, shards: Mapping[str, Sequence[Sequence[int]]], edit: Edit = lambda v: None, info: Edit = lambda v: None
) -> Path:
    """A TFDS folder: for each split, for each shard, the numbers of steps of its episodes."""
    root.mkdir(parents=True)
    (root / "features.json").write_text(json.dumps(layout()))
    about: dict[str, Any] = {"name": "tidy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []}
    for split, files in shards.items():
        number = 0
        for k, lengths in enumerate(files):
            data = b""
            for steps in lengths:
                given = values(number, steps)
                edit(given)
                data += record(encode(given))
                number += 1
            (root / f"tidy-{split}.tfrecord-{k:05d}-of-{len(files):05d}").write_bytes(data)
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(len(f)) for f in files]
        about["splits"].append({"name": split, "shardLengths": lengths, "filepathTemplate": template})
    info(about)
    (root / "dataset_info.json").write_text(json.dumps(about))
    return root


def test_a_set_comes_in(tmp_path: Path) -> None:
    root = write_set(tmp_path / "tidy" / "1.0.0", {"train": [[4, 6], [5]], "val": [[3]]})
    assert format_of(root) == "rlds"
    found = list(read_logs(tmp_path / "tidy", ARM))
    assert [e.id for e in found] == ["tidy-train-000000", "tidy-train-000001", "tidy-train-000002", "tidy-val-000000"]
    assert [e.outcome for e in found] == ["failure", "success", "failure", "failure"]
    for e, (number, steps) in zip(found, ((0, 4), (1, 6), (2, 5), (0, 3)), strict=True):
        state, action = numbers(number, steps)
        np.testing.assert_array_equal(e.streams["state"].values, state)
        np.testing.assert_array_equal(e.streams["grip"].values[:, 0], state[:, 2])
        np.testing.assert_array_equal(e.streams["move"].values, action[:-1, :3])  # the last step has no action
        np.testing.assert_array_equal(e.streams["close"].values, action[:-1, 3:])
        assert e.streams["image"].values.tolist() == pictures(number, steps)
        assert e.streams["state"].times_ns.tolist() == [k * 200_000_000 for k in range(steps)]
        assert e.task == "put it down"
        assert [f.detail for f in e.findings if f.stream != "image"] == [
            "the set has no time stamps: steps count at 5 Hz, as the embodiment says"
        ]


def test_a_split_or_a_shard_alone(tmp_path: Path) -> None:
    root = write_set(tmp_path / "1.0.0", {"train": [[4, 6], [5]], "val": [[3]]})
    whole = {e.id: e.digest for e in read_logs(root, ARM)}
    (one,) = read_logs(root / "tidy-train.tfrecord-00001-of-00002", ARM)
    assert (one.id, one.digest) == ("tidy-train-000002", whole["tidy-train-000002"])
    assert [e.id for e in read_logs(root, ARM, split="val")] == ["tidy-val-000000"]
    with pytest.raises(LogError, match=r"no split 'trian'(.|\n)*did you mean train"):
        read_logs(root, ARM, split="trian")
    (tmp_path / "alone").mkdir()
    alone = (root / "tidy-val.tfrecord-00000-of-00001").rename(tmp_path / "alone" / "a.csv")
    assert format_of(alone) == "rlds"
    with pytest.raises(LogError, match="alone does not say what is in it"):
        read_logs(alone, ARM)


def test_stamps_of_the_set_count(tmp_path: Path) -> None:
    stamps = [0.0, 0.25, 0.75, 0.5, 1.0]
    root = write_set(tmp_path / "a", {"train": [[5]]}, lambda v: v.update({"steps/observation/timestamp": stamps}))
    told = layout()
    step = told["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    step["observation"]["featuresDict"]["features"]["timestamp"] = tensor("float32")
    (root / "features.json").write_text(json.dumps(told))
    (e,) = read_logs(root, ARM)
    assert [f.kind for f in e.findings if f.stream == "state"] == ["clock-jump"]  # they are not sorted
    assert e.streams["state"].times_ns.tolist() == [int(1e9 * t) for t in sorted(stamps)]


SHARD = "tidy-train.tfrecord-00000-of-00001"


def cut(root: Path, size: int) -> None:
    (root / SHARD).write_bytes((root / SHARD).read_bytes()[:size])


def flip(root: Path, at: int) -> None:
    data = bytearray((root / SHARD).read_bytes())
    data[at] ^= 4
    (root / SHARD).write_bytes(bytes(data))


def link_out(root: Path) -> None:
    (root / SHARD).rename(root.parent / "outside")
    (root / SHARD).symlink_to(root.parent / "outside")


def rewrite(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: cut(r, -3), r"truncated file: record 1 claims \d+ bytes, \d+ are left(.|\n)*--keep-whole"),
        (lambda r: cut(r, 5), "truncated file: record 0 has no whole head"),
        (lambda r: flip(r, 0), "the length of record 0 differs from its checksum"),
        (lambda r: flip(r, 9), "the length of record 0 differs from its checksum"),
        (lambda r: flip(r, 400), "the content of record 0 differs from its checksum"),
        (lambda r: flip(r, -1), "the content of record 1 differs from its checksum"),
        (lambda r: (r / SHARD).unlink(), "the shard is missing"),
        (lambda r: (r / SHARD).write_bytes(b""), "holds 0 episodes, dataset_info.json says 2"),
        (link_out, "leads out of the folder"),
        (lambda r: (r / "dataset_info.json").unlink(), "dataset_info.json: no such file"),
        (lambda r: (r / "features.json").write_text("{"), "features.json: is no JSON"),
        (lambda r: (r / "features.json").write_text("[" * 100_000), "features.json: is no JSON"),
        (lambda r: rewrite(r, "features.json", '"steps"', '"stairs"'), "has no `steps`"),
        (lambda r: rewrite(r, "features.json", '"state"', '"joints"'), "no feature for channel 'state', 'grip'"),
        (lambda r: rewrite(r, "features.json", '"16", "24"', '"16", "25"'), "no feature for channel 'image'"),
        (lambda r: rewrite(r, "dataset_info.json", '"2"', '"3"'), "holds 2 episodes, dataset_info.json says 3"),
        (lambda r: rewrite(r, "dataset_info.json", '"tfrecord"', '"array_record"'), "the shards are 'array_record'"),
        (lambda r: rewrite(r, "dataset_info.json", "{DATASET}-", "../{DATASET}-"), "the file template"),
        (lambda r: rewrite(r, "dataset_info.json", '["2"]', '["many"]'), "not as TFDS writes it"),
        (lambda r: rewrite(r, "dataset_info.json", '["2"]', "[1e400]"), "not as TFDS writes it"),
        (lambda r: rewrite(r, "dataset_info.json", '"tidy"', '"ti\\u0000dy"'), "is no path"),
        (lambda r: (r / SHARD).write_bytes(record(b"\x0a\xff") * 2), "record 0: is no Example"),
    ],
)
def test_sets_that_are_wrong_get_one_message(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    root = write_set(tmp_path / "set", {"train": [[4, 6]]})
    break_it(root)
    with pytest.raises(LogError, match=message):
        list(read_logs(root, ARM))


def test_every_flipped_byte_of_a_shard_is_found(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"train": [[4, 6]]})
    whole = (root / SHARD).read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 300).tolist():
        (root / SHARD).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(LogError, match="differs from its checksum"):
            list(read_logs(root, ARM))


def test_whole_episodes_before_the_cut_can_be_kept(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"train": [[4, 6]]})
    cut(root, -3)
    (e,) = read_logs(root, ARM, keep_whole=True)
    assert e.id == "tidy-train-000000" and [f.kind for f in e.findings if f.stream != "image"] == ["note", "truncated"]
    cut(root, 50)
    with pytest.raises(LogError, match="no whole episode"):
        read_logs(root, ARM, keep_whole=True)


def mixed(given: dict[str, Any]) -> None:
    if len(given["steps/is_first"]) == 6:
        given["steps/observation/image"][3] = encode_jpeg(np.zeros((H, W + 8, 3), np.uint8))


def nan(given: dict[str, Any]) -> None:
    given["steps/observation/state"][4] = np.nan


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["steps/is_first"].__setitem__(2, 1), "is_first is set at step 2 of 4: these are several"),
        (lambda v: v["steps/is_last"].__setitem__(1, 1), "is_last is set at step 1 of 4"),
        (lambda v: v.update({"steps/action": v["steps/action"][1:]}), "steps/action holds 15 values in 4 steps"),
        (lambda v: v["steps/observation/image"].pop(), "steps/observation/image holds 3 pictures in 4 steps"),
        (lambda v: v.pop("steps/observation/state"), "has no steps, or no observation/state"),
        (lambda v: v["steps/observation/image"].__setitem__(1, b"GIF8"), "neither JPEG nor PNG"),
        (mixed, r"record 1.*frame 3: the log gives \(16, 32, 3\) a frame"),
    ],
)
def test_episodes_that_are_wrong_get_one_message(tmp_path: Path, edit: Edit, message: str) -> None:
    root = write_set(tmp_path / "set", {"train": [[4, 6]]}, edit)
    with pytest.raises(LogError, match=message):
        list(read_logs(root, ARM))


def test_values_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    (e,) = read_logs(write_set(tmp_path / "set", {"train": [[4]]}, nan), ARM)
    assert "nan" in {f.kind for f in e.findings} and e.streams["state"].valid.tolist() == [True, False, True, True]


def test_the_verb_looks_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_set(tmp_path / "set", {"train": [[4, 6]], "val": [[5]]})
    (tmp_path / "m.toml").write_text(dump_toml(ARM))
    args = ["intake", str(root), "--embodiment", str(tmp_path / "m.toml"), "--dry-run", "--read", "split=train"]
    assert main(args) == 0
    assert "2 episodes" in capsys.readouterr().out
    flip(root, 400)
    assert main(args) == 1
    assert "differs from its checksum" in capsys.readouterr().err


def test_a_shard_that_lost_all_of_its_episodes_is_said(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"train": [[4], [6]]})
    shard = root / "tidy-train.tfrecord-00000-of-00002"
    shard.write_bytes(shard.read_bytes()[:20])
    (e,) = read_logs(root, ARM, keep_whole=True)
    cut_ones = [f.detail for f in e.findings if f.kind == "truncated"]
    assert e.id == "tidy-train-000001" and len(cut_ones) == 1 and cut_ones[0].startswith(f"{shard.name} is left out")
