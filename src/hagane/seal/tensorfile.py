"""safetensors headers, read as if an enemy had written them: bounded, exact, nothing beside what is looked for.

The format (github.com/huggingface/safetensors): 8 bytes little endian length, a JSON table of names to dtype, shape
and byte range, then the numbers. Its own library accepts files up to a header of 100 MB and any name; this reader
also refuses long headers, odd names, and notes that nobody asked for. It needs neither torch nor NumPy.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from hagane.terms import Refused

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Number types that may leave, and the bytes of one number."""
NOTES = {"format": "pt"}
"""The only notes that a header may hold, with their values."""
SIDE_FILES = frozenset({"model.toml", "manifest.json", "model.safetensors.index.json"})
"""What `hagane export` writes beside the weights; the gate writes its own."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it, every figure checked against the file's size."""

    name: str
    """Name of the tensor."""
    dtype: str
    """One of `ITEM_BYTES`."""
    shape: tuple[int, ...]
    """Shape; () for one number."""
    fd: int
    """Open file that holds it."""
    begin: int
    """Its first byte in that file."""
    where: str
    """The file, for messages."""

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def refusal(what: str, where: str, next_step: str = "") -> Refused:
    """What the gate says when something may not leave."""
    return Refused(
        f"does not pass the export gate: {what}",
        where=where,
        next_step=next_step or "nothing has left; find out what wrote this file before you try again",
    )


def is_tensor_name(name: object) -> bool:
    """True for 1 to 255 printed characters in Unicode's composed form (NFC) without path parts or spaces.

    Tags of plants may be written in any script; controls, marks of direction, lone surrogates and private
    characters may not.
    """
    if type(name) is not str or not 1 <= len(name) <= 255 or name.startswith(".") or ".." in name:
        return False
    plain = all(c not in "/\\" and unicodedata.category(c)[0] not in "CZ" for c in name)
    return plain and unicodedata.is_normalized("NFC", name)


def shown(name: object) -> str:
    """A name that somebody else chose, safe to print: ASCII, at most 80 characters."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_strictly(data: bytes, *, floats: bool = False) -> Any:
    """JSON in UTF-8 with every key once, no NaN, and no floats unless asked for.

    Raises:
        ValueError: anything else.
    """
    number = float if floats else _no
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deep") from None


@contextmanager
def stored_in(source: Path, header_bytes: int, files: int) -> Iterator[dict[str, Stored]]:
    """Open a safetensors file, or a folder of them, and read what is there; files close at the end.

    Nothing is followed (symbolic links), nothing is waited for (pipes), and what is opened once is what is read.

    Args:
        source: a file, or a folder such as `hagane export` writes.
        header_bytes: longest header.
        files: most files.

    Raises:
        Refused: anything in it that is not expected of a plain safetensors file.
    """
    with ExitStack() as stack:
        tensors: dict[str, Stored] = {}
        for where, fd in _open_all(source, files, stack):
            for tensor in read_header(fd, where, header_bytes):
                if tensor.name in tensors:
                    raise refusal(f"tensor {shown(tensor.name)} is in two files", where)
                tensors[tensor.name] = tensor
        yield tensors


def read_header(fd: int, where: str, header_bytes: int) -> list[Stored]:
    """The tensors of an open safetensors file, in the order of their bytes.

    Raises:
        Refused: a header too long or not exact JSON, another number type, ranges that overlap, leave holes or end
            elsewhere than the file, notes that are not `NOTES`, a name that is none.
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(read_exactly(fd, 0, 8, where), "little")
    if length > header_bytes:
        raise refusal(f"its header is {length} bytes long; {header_bytes} are enough for what is expected", where)
    text = read_exactly(fd, 8, length, where)
    try:
        table = read_strictly(text.rstrip(b" "))
    except ValueError as e:
        raise refusal(f"its header is no exact JSON ({e})", where) from None
    if not isinstance(table, dict) or text[:1] != b"{":
        raise refusal("its header is no JSON table", where)
    notes = table.pop("__metadata__", {})
    if not isinstance(notes, dict) or any(k not in NOTES or notes[k] != NOTES[k] for k in notes):
        raise refusal(f"its header holds notes that nobody asked for: {shown(notes)}", where)
    found = [_stored(name, entry, fd, 8 + length, where) for name, entry in table.items()]
    found.sort(key=lambda t: (t.begin, t.size))
    at = 8 + length
    for tensor in found:
        if tensor.begin != at:
            fault = "overlaps the tensor before it" if tensor.begin < at else "leaves a hole before it"
            raise refusal(f"tensor {shown(tensor.name)} {fault}", where)
        at += tensor.size
    if at != size:
        raise refusal(f"it ends {'early' if size < at else 'late'}: {size} bytes, its tensors end at {at}", where)
    if not found:
        raise refusal("it holds no tensor", where)
    return found


def read_exactly(fd: int, begin: int, size: int, where: str) -> bytes:
    """Bytes of an open file.

    Raises:
        Refused: the file ends before.
    """
    parts = []
    while size > 0:
        part = os.pread(fd, min(size, 2**30), begin)
        if not part:
            raise refusal("it ends early", where)
        parts.append(part)
        begin, size = begin + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _stored(name: str, entry: Any, fd: int, data_begin: int, where: str) -> Stored:
    if not is_tensor_name(name):
        raise refusal(f"{shown(name)} is no name of a tensor", where)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refusal(f"tensor {shown(name)} is not described by dtype, shape and data_offsets alone", where)
    dtype, shape, ends = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refusal(f"tensor {shown(name)} is of type {shown(dtype)}; only {', '.join(ITEM_BYTES)} leave", where)
    counts = [n for part in (shape, ends) for n in (part if isinstance(part, list) else [None])]
    if not all(type(n) is int and 0 <= n < 2**63 for n in counts) or len(ends) != 2 or len(shape) > 8:
        raise refusal(f"tensor {shown(name)} has a shape or a range that is none", where)
    tensor = Stored(name, dtype, tuple(shape), fd, data_begin + ends[0], where)
    if ends[1] - ends[0] != tensor.size:
        raise refusal(f"tensor {shown(name)} takes {ends[1] - ends[0]} bytes; its shape asks {tensor.size}", where)
    return tensor


def _open_all(source: Path, files: int, stack: ExitStack) -> list[tuple[str, int]]:
    """(name for messages, descriptor) of every safetensors file, in the order of their names."""
    if not source.is_dir() or source.is_symlink():
        return [(str(source), _open(source.name, str(source), _folder(source.parent, stack), stack))]
    folder = _folder(source, stack)
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries)
    if odd := [n for n in names if not _FILE.fullmatch(n) and n not in SIDE_FILES]:
        raise refusal(f"{shown(odd[0])} is no part of exported weights", str(source))
    names = [n for n in names if n not in SIDE_FILES]
    if not 1 <= len(names) <= files:
        raise refusal(f"it has {len(names)} files of weights; 1 to {files} are expected", str(source))
    return [(str(source / n), _open(n, str(source / n), folder, stack)) for n in names]


def _folder(path: Path, stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise refusal(f"the folder cannot be opened: {e.strerror}", str(path)) from None
    stack.callback(os.close, fd)
    return fd


def _open(name: str, where: str, folder: int, stack: ExitStack) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as e:
        what = "it is a symbolic link" if e.errno == errno.ELOOP else f"it cannot be opened: {e.strerror}"
        raise refusal(what, where) from None
    stack.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise refusal("it is no plain file", where)
    return fd


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):  # two readers could each believe another copy
        raise ValueError("a key occurs twice")
    return table


def _no(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not expected")
