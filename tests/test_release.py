"""The export gate: every kind of bad file is refused, its sound twin passes, and every changed byte is found later."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.seal import TrustStore, generate_key, public_of
from hagane.seal.floats import Telling, all_finite, round_to_bf16
from hagane.seal.release import Expected, Gate, Passed, pass_tensors
from hagane.seal.release_record import RELEASE, check_release, sign_release
from hagane.seal.tensorfile import is_tensor_name
from hagane.terms import ConfigError, ContractError, Refused, digest_file

A = Expected("trunk.w", "consortium", "F32", (3, 4))
B = Expected("experts.up.member-cars.000", "member-cars", "F32", (2, 2))
C = Expected("adapter.温度", "member-cars", "BF16", (5,))
GATE = Gate((A, B, C))
NUMBERS = {e.name: bytes(range(1, e.size + 1)) for e in GATE.expected}


def header_of(expected: tuple[Expected, ...] = GATE.expected) -> dict[str, Any]:
    """A sound header."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for e in expected:
        table[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [at, at + e.size]}
        at += e.size
    return table


def blob_of(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + data


DATA = b"".join(NUMBERS[e.name] for e in GATE.expected)
SOUND = blob_of(header_of(), DATA)


def with_numbers(name: str, numbers: bytes) -> bytes:
    return blob_of(header_of(), b"".join({**NUMBERS, name: numbers}[e.name] for e in GATE.expected))


def with_entry(name: str, **changes: Any) -> bytes:
    table = header_of()
    table[name] = {**table[name], **changes}
    return blob_of(table, DATA)


def renamed(name: str) -> bytes:
    table = header_of()
    return blob_of({name if k == B.name else k: v for k, v in table.items()}, DATA)


def beside(extra: str, begin: int, data: bytes) -> bytes:
    """One tensor more, over given bytes."""
    table = header_of()
    table[extra] = {"dtype": "BF16", "shape": [2], "data_offsets": [begin, begin + 4]}
    return blob_of(table, data)


def run(source: Path, target: Path, gate: Gate = GATE) -> Passed:
    target.mkdir()
    return pass_tensors(source, target, gate)


FLOAT = struct.Struct("<4f")
END = len(DATA)
HEAD = json.dumps(header_of()).encode()
BAD: dict[str, tuple[bytes, str]] = {
    "nan": (with_numbers(B.name, FLOAT.pack(1, 2, float("nan"), 3)), "not finite"),
    "infinity": (with_numbers(B.name, FLOAT.pack(1, 2, 3, float("-inf"))), "not finite"),
    "nan in bfloat16": (with_numbers(C.name, b"\x00\x00" * 4 + b"\xc1\x7f"), "not finite"),
    "extra tensor": (beside("extra", END, DATA + b"abcd"), "on no list"),
    "missing tensor": (blob_of(header_of((A, B)), DATA[:-10]), "is missing"),
    "another type": (with_entry(C.name, dtype="F16"), "F16"),
    "a type that never leaves": (with_entry(C.name, dtype="I16"), "only F32"),
    "another shape": (with_entry(A.name, shape=[4, 3]), r"\[4, 3\]"),
    "shape beyond its bytes": (with_entry(A.name, shape=[3, 5]), "its shape asks"),
    "shape of negatives": (with_entry(A.name, shape=[-3, -4]), "shape or a range"),
    "shape of true": (with_entry(A.name, shape=[True, 12]), "shape or a range"),
    "shape beyond 63 bits": (with_entry(A.name, shape=[2**70]), "shape or a range"),
    "path in a name": (renamed("../../etc/passwd"), "no name of a tensor"),
    "absolute path as a name": (renamed("/w"), "no name of a tensor"),
    "name with a mark of direction": (renamed("experts\u202e.up"), "no name of a tensor"),
    "name not composed": (renamed("e\u0301"), "no name of a tensor"),
    "name with a lone surrogate": (blob_of(HEAD.replace(b'"trunk.w"', b'"\\ud800"'), DATA), "no name of a tensor"),
    "look-alike name": (renamed(B.name.replace("e", "\u0435")), "is missing"),
    "name with a line end": (renamed("a\nb"), "no name of a tensor"),
    "header too large": (blob_of(json.dumps(header_of()).encode().ljust(20_000), DATA), "are enough"),
    "header of 2^63 bytes": (b"\xff" * 7 + b"\x7f" + SOUND[8:], "are enough"),
    "header not UTF-8": (blob_of(HEAD.replace(b"trunk", b"tr\xffnk"), DATA), "no exact JSON"),
    "header nested deep": (blob_of(b'{"a":' + b"[" * 1500, DATA), "no exact JSON"),
    "header a list": (blob_of(b"[]", DATA), "no JSON table"),
    "header with a NaN": (blob_of(HEAD.replace(b"[3, 4]", b"[NaN]"), DATA), "no exact JSON"),
    "header with a float": (blob_of(HEAD.replace(b"[3, 4]", b"[3.0, 4]"), DATA), "no exact JSON"),
    "header begins late": (blob_of(b" " + HEAD, DATA), "no JSON table"),
    "key twice": (blob_of(HEAD[:-1] + b',"trunk.w":' + json.dumps(header_of()[A.name]).encode() + b"}", DATA), "twice"),
    "overlap": (beside("extra", END - 4, DATA), "overlaps"),
    "hole": (beside("extra", END + 8, DATA + b"12345678abcd"), "hole"),
    "hole at the start": (blob_of({k: v if k[0] == "_" else {**v, "data_offsets": [x + 8 for x in v["data_offsets"]]}
                                   for k, v in header_of().items()}, b"12345678" + DATA), "hole"),
    "truncated": (SOUND[:-1], "ends early"),
    "truncated in its header": (SOUND[:40], "ends early"),
    "shorter than a length": (SOUND[:5], "ends early"),
    "empty": (b"", "ends early"),
    "trailing bytes": (SOUND + b"\0", "ends late"),
    "a note smuggled": (blob_of({**header_of(), "__metadata__": {"format": "pt", "to": "outside"}}, DATA), "notes"),
    "a note of another value": (blob_of({**header_of(), "__metadata__": {"format": "secret"}}, DATA), "notes"),
    "notes in a list": (blob_of({**header_of(), "__metadata__": ["format"]}, DATA), "notes"),
    "a key smuggled into a tensor": (with_entry(A.name, note="x"), "data_offsets alone"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_refused(fault: str, tmp_path: Path) -> None:
    data, words = BAD[fault]
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(Refused, match=words):
        run(tmp_path / "w.safetensors", tmp_path / "out")


SOUND_TWINS = {
    "plain": SOUND,
    "largest float": with_numbers(B.name, FLOAT.pack(1, 2, 3.4028234e38, -3.4028234e38)),
    "smallest float and minus zero": with_numbers(B.name, FLOAT.pack(1e-45, -0.0, 0, -1e-45)),
    "largest bfloat16": with_numbers(C.name, b"\x7f\x7f" * 5),
    "padded header": blob_of(json.dumps(header_of()).encode().ljust(1024), DATA),
    "escaped name": blob_of(json.dumps(header_of()).encode(), DATA),
    "no notes": blob_of({k: v for k, v in header_of().items() if k != "__metadata__"}, DATA),
    "another order of names": blob_of(dict(reversed(header_of().items())), DATA),
}


@pytest.mark.parametrize("twin", SOUND_TWINS)
def test_sound_twins_pass_and_leave_in_the_gates_own_writing(twin: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    (tmp_path / "w.safetensors").write_bytes(SOUND_TWINS[twin])
    passed = run(tmp_path / "w.safetensors", tmp_path / "out")
    assert list(passed.files) == ["consortium.00001-of-00001.safetensors", "member-cars.00001-of-00001.safetensors"]
    assert all(digest_file(tmp_path / "out" / n) == d for n, d in passed.files.items())
    assert passed.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert passed.numbers == 12 + 4 + 5 and passed.free_bits == 32 * 16 + 16 * 5
    anchor = load_file(tmp_path / "out" / "consortium.00001-of-00001.safetensors")
    assert anchor[A.name].shape == (3, 4) and anchor[A.name].tobytes() == NUMBERS[A.name]
    # whatever the headers were, equal numbers leave as equal bytes
    if twin not in ("largest float", "smallest float and minus zero", "largest bfloat16"):
        (tmp_path / "plain.safetensors").write_bytes(SOUND)
        assert run(tmp_path / "plain.safetensors", tmp_path / "again") == passed


def bad_folder(kind: str, folder: Path) -> Path:
    folder.mkdir()
    inside = folder / "w.safetensors"
    inside.write_bytes(SOUND)
    if kind == "symlink":
        inside.rename(folder.parent / "elsewhere")
        inside.symlink_to(folder.parent / "elsewhere")
    elif kind == "symlink to the folder":
        (folder.parent / "link").symlink_to(folder)
        return folder.parent / "link"
    elif kind == "pipe":
        inside.unlink()
        os.mkfifo(inside)
    elif kind == "folder as a file":
        inside.unlink()
        inside.mkdir()
    elif kind == "a file more":
        (folder / "note.txt").write_text("to outside")
    elif kind == "a hidden file":
        (folder / ".w.safetensors").write_bytes(SOUND)
    elif kind == "a tensor twice":
        (folder / "x.safetensors").write_bytes(SOUND)
    elif kind == "no file":
        inside.unlink()
    return folder


@pytest.mark.parametrize(("kind", "words"), [
    ("symlink", "symbolic link"), ("symlink to the folder", "symbolic link"), ("pipe", "no plain file"),
    ("folder as a file", "no plain file"), ("a file more", "no part of exported"),
    ("a hidden file", "no part of exported"), ("a tensor twice", "in two files"), ("no file", "0 files"),
])  # fmt: skip
def test_bad_folders_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=words):
        run(bad_folder(kind, tmp_path / "in"), tmp_path / "out")
    run(bad_folder("none", tmp_path / "sound"), tmp_path / "out-2")
    with pytest.raises(Refused, match="cannot be opened"):
        run(tmp_path / "nowhere", tmp_path / "out-3")


def test_budget_holds_with_headers_and_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(SOUND)
    size = run(tmp_path / "w.safetensors", tmp_path / "out").size
    run(tmp_path / "w.safetensors", tmp_path / "fits", replace(GATE, budget_bytes=size))
    for budget, words in ((size - 1, "with headers"), (len(DATA) - 1, "more than the budget")):
        with pytest.raises(Refused, match=words):
            run(tmp_path / "w.safetensors", tmp_path / f"out-{budget}", replace(GATE, budget_bytes=budget))


def test_frozen_parts_are_the_anchors_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(SOUND)
    anchor = tmp_path / "anchor"
    anchor.mkdir()
    other = Expected("experts.up.member-x.000", "member-x", "F32", (1,))
    (anchor / "a.safetensors").write_bytes(blob_of(header_of((A, other)), NUMBERS[A.name] + b"\0\0\x80\x3f"))
    gate = replace(GATE, anchor=anchor)
    passed = run(tmp_path / "w.safetensors", tmp_path / "out", gate)
    assert passed.frozen == 12 and passed.free_bits == 32 * 4 + 16 * 5 and len(passed.anchor) == 64
    for bit in (0, 7, 8 * 48 - 1):
        changed = bytearray(NUMBERS[A.name])
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "w.safetensors").write_bytes(with_numbers(A.name, bytes(changed)))
        with pytest.raises(Refused, match="not the anchor's"):
            run(tmp_path / "w.safetensors", tmp_path / f"out-{bit}", gate)
        (anchor / "b.safetensors").unlink(missing_ok=True)
    (anchor / "a.safetensors").write_bytes(blob_of(header_of((other,)), b"\0\0\x80\x3f"))
    with pytest.raises(Refused, match=r"'trunk.w' is missing"):
        run(tmp_path / "w.safetensors", tmp_path / "lacks", gate)


def test_other_owners_tensors_stay_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(with_numbers(A.name, b"\xff" * 48))
    passed = run(tmp_path / "w.safetensors", tmp_path / "out", Gate((B, C), stay=(A.name, "unused")))
    assert set(passed.places) == {B.name, C.name} and passed.numbers == 4 + 5
    with pytest.raises(Refused, match=r"'trunk.w' is on no list"):
        run(tmp_path / "w.safetensors", tmp_path / "out-2", Gate((B, C), stay=("unused",)))


def test_files_are_cut_by_owner_and_size(tmp_path: Path) -> None:
    many = tuple(Expected(f"t{i}", "member-cars" if i % 2 else "consortium", "F32", (8,)) for i in range(9))
    (tmp_path / "w.safetensors").write_bytes(blob_of(header_of(many), b"\0" * 32 * 9))
    passed = run(tmp_path / "w.safetensors", tmp_path / "out", Gate(many, file_bytes=70))
    assert sorted(passed.files) == [
        *(f"consortium.0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        *(f"member-cars.0000{i}-of-00002.safetensors" for i in (1, 2)),
    ]
    assert passed.places["t0"] == "consortium.00001-of-00003.safetensors"
    again = run(tmp_path / "out", tmp_path / "again", Gate(many, file_bytes=70))
    assert again == passed


@pytest.mark.parametrize("odd", [replace(A, name="a/b"), replace(A, owner="../x"), replace(A, dtype="I64"), B])
def test_a_list_that_is_none_is_refused(odd: Expected) -> None:
    with pytest.raises(ConfigError, match="no such list"):
        Gate((B, odd))


def test_rounding_and_finiteness_agree_with_numpy_on_hard_cases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, np.uint32)
    hard = np.array([0, 1 << 31, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x3F808000, 0x3F818000, 1], np.uint32)
    bits = np.concatenate([bits[np.isfinite(bits.view(np.float32))], hard])
    kept = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)).astype(np.uint32) & np.uint32(0xFFFF0000)
    assert round_to_bf16(bits.tobytes()) == kept.tobytes()
    (tmp_path / "w.safetensors").write_bytes(with_numbers(B.name, FLOAT.pack(0.1, 1 / 3, -5.5, 1e-3)))
    passed = run(tmp_path / "w.safetensors", tmp_path / "out", replace(GATE, rounding="bf16"))
    assert passed.free_bits == 16 * (12 + 4 + 5)
    (tmp_path / "w.safetensors").write_bytes(with_numbers(B.name, FLOAT.pack(1, 2, 3, 3.4e38)))
    with pytest.raises(Refused, match="too large to round"):
        run(tmp_path / "w.safetensors", tmp_path / "out-2", replace(GATE, rounding="bf16"))


@given(st.sampled_from([("F32", np.uint32, np.float32), ("F16", np.uint16, np.float16)]), st.binary(min_size=64))
def test_finite_is_numpys_finite(kind: tuple[str, type, type], data: bytes) -> None:
    name, bits, floats = kind
    data = data[: len(data) // 4 * 4]
    assert all_finite(data, name) == bool(np.isfinite(np.frombuffer(data, bits).view(floats)).all())
    wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
    assert all_finite(data, "BF16") == bool(np.isfinite(wide.view(np.float32)).all())


def test_told_bits_follow_what_the_numbers_tell() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.02, 2**18).astype(np.float32).tobytes()

    def bits(block: bytes) -> float:
        telling = Telling()
        telling.add(block, "F32", len(block))
        return telling.bits() / telling.numbers

    assert bits(b"\0" * 4096) == 0
    # normal numbers: 23 bits of mantissa, a sign, about 2.5 of exponent; 16 fewer once rounded
    assert 25 < bits(weights) < 27.5 and 9 < bits(round_to_bf16(weights)) < 11.5


def test_names_of_tensors() -> None:
    good = ("trunk.layers.0.moe.experts.up.member-cars.001", "normaliser.scale.line.温度", "ﾎﾟﾝﾌﾟ", "a" * 255)
    assert all(map(is_tensor_name, good))
    bad = ("", "a/b", "a\\b", "..", "a..b", ".a", "a b", "a\0", "a\u200b", "\ud800", "a" * 256, "e\u0301", None, 3)
    assert not any(map(is_tensor_name, bad))


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, TrustStore, Callable[..., bytes]]:
    """A released folder, the keys that check it, and a way to sign it again."""
    (tmp_path / "w.safetensors").write_bytes(SOUND)
    passed = run(tmp_path / "w.safetensors", tmp_path / "out")
    trust = TrustStore(tmp_path / "trust")
    keys = {owner: generate_key(tmp_path / f"{owner}.pem") for owner in ("consortium", "member-cars", "member-x")}
    for owner, key in keys.items():
        trust.add(owner, public_of(key))

    def sign(names: Mapping[str, str] = {"consortium": "consortium", "member-cars": "member-cars"}) -> bytes:
        return sign_release(passed.files, passed, GATE, {o: keys[k] for o, k in names.items()}, trust)

    (tmp_path / "out" / RELEASE).write_bytes(sign())
    return tmp_path / "out", trust, sign


def test_every_owner_signs_with_its_own_key(signed: tuple[Path, TrustStore, Callable[..., bytes]]) -> None:
    folder, trust, sign = signed
    release = check_release(folder, trust)
    assert release.owners == ("consortium", "member-cars") and release.facts["membership"] is None
    assert release.facts["free_bits"] == 32 * 16 + 16 * 5 + 8 * len(b"[null,null]")
    with pytest.raises(Refused, match="'member-cars' does not sign"):
        sign({"consortium": "consortium"})
    with pytest.raises(Refused, match="not the one trusted"):
        sign({"consortium": "consortium", "member-cars": "member-x"})


def test_forged_statements_are_found(signed: tuple[Path, TrustStore, Callable[..., bytes]], tmp_path: Path) -> None:
    folder, trust, _ = signed
    sound = json.loads((folder / RELEASE).read_text())
    stranger = TrustStore(tmp_path / "strangers")
    for owner in ("consortium", "member-cars"):
        stranger.add(owner, public_of(generate_key(tmp_path / f"stranger-{owner}.pem")))
    with pytest.raises(ContractError, match="missing or forged"):
        check_release(folder, stranger)
    one = {**sound, "signatures": sound["signatures"][:1]}
    twice = {**sound, "signatures": sound["signatures"][:1] * 2}
    swapped = [{**a, "keyid": b["keyid"]} for a, b in zip(sound["signatures"], sound["signatures"][::-1], strict=True)]
    for forged, words in (
        (one, "1 did"),
        (twice, "missing or forged"),
        ({**sound, "signatures": swapped}, "missing or forged"),
        ({**sound, "payloadType": "application/json"}, "not written as it was signed"),
    ):
        (folder / RELEASE).write_text(json.dumps(forged, indent=1) + "\n")
        with pytest.raises(ContractError, match=words):
            check_release(folder, trust)
    (folder / RELEASE).unlink()
    with pytest.raises(ContractError, match="no signed release"):
        check_release(folder, trust)


def test_every_flip_of_the_statement_and_of_the_files_is_found(
    signed: tuple[Path, TrustStore, Callable[..., bytes]],
) -> None:
    folder, trust, _ = signed
    for path in sorted(folder.iterdir()):
        sound = path.read_bytes()
        for at in range(len(sound)):
            for other in {sound[at] ^ 1, 0x20, 0x0A} - {sound[at]}:
                path.write_bytes(sound[:at] + bytes([other]) + sound[at + 1 :])
                with pytest.raises(ContractError):
                    check_release(folder, trust)
        path.write_bytes(sound)
    check_release(folder, trust)
    (folder / "more.txt").write_text("x")
    with pytest.raises(ContractError, match="was not released"):
        check_release(folder, trust)


BIG = """
import resource, sys
from pathlib import Path
from hagane.seal.release import Expected, Gate, pass_tensors
expected = tuple(Expected(f"t{i}", "member-cars", "F32", (256, 2**20)) for i in range(int(sys.argv[3])))
passed = pass_tensors(Path(sys.argv[1]), Path(sys.argv[2]), Gate(expected, rounding=sys.argv[4]))
assert "torch" not in sys.modules
print(passed.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_gigabyte_passes_in_little_memory(tmp_path: Path) -> None:
    expected = (Expected("t0", "member-cars", "F32", (256, 2**20)),)
    with (tmp_path / "w.safetensors").open("wb") as f:
        f.write(blob_of(header_of(expected), b""))
        block = np.random.default_rng(0).normal(0, 0.02, 2**20).astype(np.float32).tobytes()
        for _ in range(256):
            f.write(block)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "w.safetensors"), str(tmp_path / "out"), "1", "bf16"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size, kib = map(int, done.stdout.split())
    assert size > 2**30 and kib < 300 * 1024
