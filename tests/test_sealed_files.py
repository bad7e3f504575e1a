"""Sealed files: what was sealed comes back; any other byte, order, key, shard or contract is refused."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.seal.sealed_file import open_sealed
from hagane.seal.shard_form import STRIDE
from hagane.seal.shards import Layout, seal_bytes_to
from hagane.terms import CorruptError, StoreError, digest_file
from tests.sealed_fixture import CONTRACT, KEY, SHARD


def seal(path: Path, data: bytes, layout: Layout | None = None, *, key: bytes = KEY, shard: str = SHARD) -> Path:
    done = seal_bytes_to(path, data, key, shard, CONTRACT, layout)
    assert (done.sha256, done.bytes) == (digest_file(path), path.stat().st_size)
    return path


def read(path: Path, key: bytes = KEY) -> bytes:
    return open_sealed(path, key, shard=SHARD, contract=CONTRACT).read()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_sizes_around_the_stride(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    file = open_sealed(seal(tmp_path / "x", data, Layout(100)), KEY)
    assert (file.size, len(file), file.shard, file.contract) == (size, -(-size // 100), SHARD, CONTRACT)
    assert file.read() == data
    for i in range(len(file)):
        first, end = file.span(i)
        buffer = bytearray(100)
        assert file.record(i) == data[first:end] == bytes(buffer[: file.into(i, buffer)])
    for i in (-1, len(file)):
        with pytest.raises(IndexError):
            file.record(i)


@pytest.mark.parametrize("size", [STRIDE - 1, STRIDE, STRIDE + 1, 3_000_000])
def test_sizes_around_the_usual_stride(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    assert read(seal(tmp_path / "x", data)) == data


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12))
def test_uneven_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("uneven") / "x"
    file = open_sealed(seal(path, b"".join(records), Layout(sizes=[len(r) for r in records])), KEY)
    assert [file.record(i) for i in range(len(file))] == records


def test_records_side_by_side(tmp_path: Path) -> None:
    rows = [os.urandom(48) for _ in range(20)]
    file = open_sealed(seal(tmp_path / "x", b"".join(rows) + b"end", Layout(48)), KEY)
    out = bytearray(file.size)
    file.fill([7, 0, 20, 7], out)
    kept = {7: rows[7], 0: rows[0], 20: b"end"}
    assert bytes(out) == b"".join(kept.get(i, bytes(48)) for i in range(20)) + b"end"
    file.fill([], out)
    for wrong in ([21], [-1], [1, 400]):
        with pytest.raises(IndexError):
            file.fill(wrong, out)
    for size in (file.size - 1, file.size + 1, 48):
        with pytest.raises(ValueError, match="no place"):
            file.fill([1], bytearray(size))


def test_from_a_file_and_an_open_file(tmp_path: Path) -> None:
    data = os.urandom(150_000)
    (tmp_path / "plain").write_bytes(data)
    seal_bytes_to(tmp_path / "a", tmp_path / "plain", KEY, SHARD, CONTRACT)
    with (tmp_path / "plain").open("rb") as f:
        seal_bytes_to(tmp_path / "b", f, KEY, SHARD, CONTRACT)
    assert read(tmp_path / "a") == read(tmp_path / "b") == data


LAYOUTS = {"even": Layout(16), "uneven": Layout(sizes=[3, 0, 20, 21, 6]), "empty": None}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_flipped_byte_is_found_and_every_cut(tmp_path: Path, kind: str) -> None:
    data = b"" if kind == "empty" else bytes(range(50))
    path = seal(tmp_path / "x", data, LAYOUTS[kind])
    good = path.read_bytes()
    for at in range(len(good)):
        for change in (1, 0x80, 0xFF):
            path.write_bytes(good[:at] + bytes([good[at] ^ change]) + good[at + 1 :])
            with pytest.raises(CorruptError):
                read(path)
        path.write_bytes(good[:at])
        with pytest.raises(CorruptError):
            read(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CorruptError):
        read(path)
    path.write_bytes(good)
    assert read(path) == data


def test_swapped_records_are_found(tmp_path: Path) -> None:
    path = seal(tmp_path / "x", bytes(64), Layout(16))  # equal plaintexts: only the number tells
    good = path.read_bytes()
    cuts = [len(good) - 4 * 32 + 32 * i for i in range(5)]
    records = [good[a:b] for a, b in pairwise(cuts)]
    for i in range(4):
        for j in range(4):
            moved = list(records)
            moved[i], moved[j] = moved[j], moved[i]
            path.write_bytes(good[: cuts[0]] + b"".join(moved))
            if i == j:
                assert read(path) == bytes(64)
                continue
            with pytest.raises(CorruptError, match=f"record {min(i, j)}"):
                read(path)
            with pytest.raises(CorruptError, match=f"record {i}"):
                open_sealed(path, KEY).fill([i], bytearray(64))


def test_another_key_shard_or_contract(tmp_path: Path) -> None:
    path = seal(tmp_path / "x", b"abc")
    with pytest.raises(CorruptError, match="another key"):
        read(path, bytes(32))
    other = "0" * 32
    with pytest.raises(CorruptError, match="another shard"):
        open_sealed(path, KEY, shard=other)
    with pytest.raises(CorruptError, match="another contract"):
        open_sealed(path, KEY, contract="0" * 64)
    # the same key and plaintext under another head: records cannot be moved between them
    good, moved = path.read_bytes(), seal(tmp_path / "y", b"abc", shard=other).read_bytes()
    path.write_bytes(good[:96] + moved[96:])
    with pytest.raises(CorruptError, match="record 0"):
        read(path)


def test_nothing_is_left_when_the_source_is_not_what_it_said(tmp_path: Path) -> None:
    class Growing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) or b"more"

    (tmp_path / "plain").write_bytes(bytes(10))
    with Growing(tmp_path / "plain") as f, pytest.raises(StoreError, match="grew"):
        seal_bytes_to(tmp_path / "x", f, KEY, SHARD, CONTRACT)
    for layout in (Layout(0), Layout(sizes=[3]), Layout(sizes=[11, -1])):
        with pytest.raises(StoreError, match="layout"):
            seal_bytes_to(tmp_path / "x", bytes(10), KEY, SHARD, CONTRACT, layout)
    with pytest.raises(StoreError, match="No such file"):
        seal_bytes_to(tmp_path / "x", tmp_path / "none", KEY, SHARD, CONTRACT)
    assert [p.name for p in tmp_path.iterdir()] == ["plain"]


def test_no_file_repeats_another(tmp_path: Path) -> None:
    a, b = (seal(tmp_path / n, bytes(4096), key=os.urandom(32)).read_bytes() for n in "ab")
    grams = [{d[i : i + 8] for i in range(96, len(d) - 8)} for d in (a, b)]
    assert not grams[0] & grams[1] and len(grams[0]) == len(a) - 104
