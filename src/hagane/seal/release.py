"""The export gate: which tensors leave, checked against a list from outside, and written again by the gate itself.

What is inside is not believed, neither its manifest nor its headers: names, shapes and types come from a list that
the owner made from the model's configuration, frozen parts from the anchor. The numbers are copied block by block,
and all else in the files that leave is the gate's own, so nothing but the numbers can carry a message. That they
carry none cannot be shown: `CANNOT_EXCLUDE` goes into every record, with the bits that would fit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from hagane.seal.floats import Telling, all_finite, round_to_bf16
from hagane.seal.names import is_name
from hagane.seal.tensorfile import ITEM_BYTES, NOTES, Stored, is_tensor_name, read_exactly, refusal, shown, stored_in
from hagane.terms import ConfigError, digest_value

Rounding = Literal["none", "bf16"]
ANCHOR_OWNER = "consortium"
"""Owner of the frozen parts."""
CANNOT_EXCLUDE = (
    "the numbers themselves may carry anything: weights can memorise, and their lowest bits can be chosen freely; "
    "free_bits is what would fit at most, told_bits an estimate of order 0 of what they tell"
)
BLOCK = 2**20


@dataclass(frozen=True)
class Expected:
    """A tensor that may leave."""

    name: str
    """Name on disk."""
    owner: str
    """Member that owns it; "consortium" for the anchor."""
    dtype: str
    """F32, F16 or BF16."""
    shape: tuple[int, ...]
    """Its shape, exactly."""

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Gate:
    """What may leave, as the owner wants it.

    Raises:
        ConfigError: no tensor, one twice, or one with a name, a type or a shape that is none.
    """

    expected: tuple[Expected, ...]
    """All tensors, no more and no fewer."""
    stay: tuple[str, ...] = ()
    """Names of other owners' tensors that may lie beside them; they are not read."""
    anchor: Path | None = None
    """Safetensors file or folder: tensors of the consortium must equal it to the bit."""
    budget_bytes: int = 0
    """Most bytes of weights files that leave; 0: what the list comes to."""
    rounding: Rounding = "none"
    """bf16: numbers that are not frozen leave rounded, which halves the bits that would fit."""
    file_bytes: int = 4 * 2**30
    """Largest size of a file (one tensor may be larger)."""

    def __post_init__(self) -> None:
        names = [e.name for e in self.expected]
        odd = [
            e.name
            for e in self.expected
            if not is_tensor_name(e.name) or not is_name(e.owner) or e.dtype not in ITEM_BYTES
        ]
        if not names or len(set(names)) < len(names) or odd:
            what = f"it holds {shown(odd[0])}, which may not leave" if odd else "it is empty, or names a tensor twice"
            raise ConfigError(f"the list of what may leave is no such list: {what}")

    @property
    def digest(self) -> str:
        """sha256 over the list, in the order of its names."""
        return digest_value(sorted([e.name, e.owner, e.dtype, list(e.shape)] for e in self.expected))


@dataclass(frozen=True)
class Passed:
    """What the gate wrote, and what it found."""

    files: Mapping[str, str]
    """File name to sha256."""
    places: Mapping[str, str]
    """Tensor to file name."""
    size: int
    """Bytes of the files."""
    numbers: int
    """Numbers in them."""
    frozen: int
    """Of these, equal to the anchor to the bit."""
    anchor: str
    """sha256 over names and digests of the frozen tensors; "" without an anchor."""
    free_bits: int
    """Bits that the numbers which are not frozen could carry at most."""
    told_bits: int
    """Bits that they seem to tell: entropy of their bytes, sampled (`floats.Telling`)."""


def pass_tensors(source: Path, target: Path, gate: Gate) -> Passed:
    """Check weights and write what may leave into a folder; memory is a few blocks and the headers.

    Args:
        source: safetensors file, or folder as `hagane export` writes it; nothing in it is believed.
        target: folder that is there and empty; after an error what it holds is worth nothing.
        gate: what may leave.

    Raises:
        Refused: a tensor too many, missing, of another shape or type, not finite, or frozen and changed; a file
            that is not exactly what the format says; more bytes than the budget.
        OSError: the disk is full or cannot be written.
    """
    # a name of 255 characters, escaped, and its figures take at most this much
    names = [*(e.name for e in gate.expected), *gate.stay]
    header = 1024 + sum(256 + 6 * len(name) for name in names)
    stay = set(gate.stay)
    with ExitStack() as stack:
        found = stack.enter_context(stored_in(source, header, len(names)))
        found = {name: tensor for name, tensor in found.items() if name not in stay}
        _compare(found, gate.expected, str(source))
        anchor: Mapping[str, Stored] = {}
        if gate.anchor is not None:
            frozen = [e for e in gate.expected if e.owner == ANCHOR_OWNER]
            # the anchor is the owner's own and may hold other parts: its header is bounded by what the format allows
            held = stack.enter_context(stored_in(gate.anchor, 100_000_000, 2**20))
            anchor = {e.name: held[e.name] for e in frozen if e.name in held}
            _compare(anchor, frozen, f"{gate.anchor} (the anchor)")
        size = sum(e.size for e in gate.expected)
        if gate.budget_bytes and size > gate.budget_bytes:
            raise refusal(f"{size} bytes are more than the budget of {gate.budget_bytes}", str(source))
        return _Writing(target, gate, found, anchor).run()


def _compare(found: Mapping[str, Stored], expected: Iterable[Expected], where: str) -> None:
    """Names, types and shapes, exactly."""
    left = dict(found)
    for e in expected:
        tensor = left.pop(e.name, None)
        if tensor is None:
            raise refusal(f"tensor {shown(e.name)} is missing", where)
        if (tensor.dtype, tensor.shape) != (e.dtype, e.shape):
            has, wants = f"{tensor.dtype} {list(tensor.shape)}", f"{e.dtype} {list(e.shape)}"
            raise refusal(f"tensor {shown(e.name)} is {has}, not {wants}", tensor.where)
    for tensor in left.values():
        raise refusal(f"tensor {shown(tensor.name)} is on no list", tensor.where)


@dataclass
class _Writing:
    target: Path
    gate: Gate
    found: Mapping[str, Stored]
    anchor: Mapping[str, Stored]
    telling: Telling = field(default_factory=Telling)
    frozen: dict[str, str] = field(default_factory=dict)
    free_bits: int = 0

    def run(self) -> Passed:
        files: dict[str, str] = {}
        places: dict[str, str] = {}
        size = 0
        for name, tensors in _cuts(self.gate.expected, self.gate.file_bytes):
            digest = hashlib.sha256()
            with (self.target / name).open("xb") as f:
                for block in self.blocks(tensors):
                    digest.update(block)
                    f.write(block)
                f.flush()
                os.fsync(f.fileno())
                size += f.tell()
            files[name] = digest.hexdigest()
            places |= {e.name: name for e in tensors}
        if self.gate.budget_bytes and size > self.gate.budget_bytes:
            raise refusal(f"{size} bytes with headers, more than {self.gate.budget_bytes}", str(self.target))
        numbers = sum(prod(e.shape) for e in self.gate.expected)
        kept = numbers - self.telling.numbers
        anchor = digest_value(self.frozen) if self.anchor else ""
        told = round(self.telling.bits())
        return Passed(files, places, size, numbers, kept, anchor, self.free_bits, told)

    def blocks(self, tensors: list[Expected]) -> Iterator[bytes]:
        """A file's bytes: a header of the gate's own, then each tensor."""
        table: dict[str, object] = {"__metadata__": NOTES}
        at = 0
        for e in tensors:
            table[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [at, at + e.size]}
            at += e.size
        text = json.dumps(table, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        yield len(text).to_bytes(8, "little") + text
        for e in tensors:
            yield from self.kept(e) if e.name in self.anchor else self.free(e)

    def kept(self, e: Expected) -> Iterator[bytes]:
        """A frozen tensor, compared with the anchor's."""
        digest = hashlib.sha256()
        for block, same in zip(_read(self.found[e.name]), _read(self.anchor[e.name]), strict=True):
            if block != same:
                raise refusal(f"frozen tensor {shown(e.name)} is not the anchor's", self.found[e.name].where)
            digest.update(block)
            yield block
        self.frozen[e.name] = digest.hexdigest()

    def free(self, e: Expected) -> Iterator[bytes]:
        """A tensor that is the owner's: finite, rounded if asked."""
        rounds = self.gate.rounding == "bf16" and e.dtype == "F32"
        for block in _read(self.found[e.name]):
            if not all_finite(block, e.dtype):
                raise refusal(f"tensor {shown(e.name)} has numbers that are not finite", self.found[e.name].where)
            out = round_to_bf16(block) if rounds else block
            if rounds and not all_finite(out, e.dtype):
                raise refusal(f"tensor {shown(e.name)} has numbers too large to round", self.found[e.name].where)
            self.telling.add(out, e.dtype)
            yield out
        self.free_bits += prod(e.shape) * (16 if rounds else 8 * ITEM_BYTES[e.dtype])


def _read(tensor: Stored) -> Iterator[bytes]:
    for at in range(0, tensor.size, BLOCK):
        yield read_exactly(tensor.fd, tensor.begin + at, min(BLOCK, tensor.size - at), tensor.where)


def _cuts(expected: Iterable[Expected], file_bytes: int) -> Iterator[tuple[str, list[Expected]]]:
    """Names of files and the tensors in each: one owner's only, by name, of at most `file_bytes` or one tensor."""
    by_owner: dict[str, list[list[Expected]]] = {}
    room = 0
    for e in sorted(expected, key=lambda e: (e.owner, e.name)):
        if e.owner not in by_owner or e.size > room:
            by_owner.setdefault(e.owner, []).append([])
            room = file_bytes
        by_owner[e.owner][-1].append(e)
        room -= e.size
    for owner, cuts in by_owner.items():
        for i, tensors in enumerate(cuts, 1):
            yield f"{owner}.{i:05d}-of-{len(cuts):05d}.safetensors", tensors
