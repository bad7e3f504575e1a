"""Boxes of tensors in safetensors files: written by whoever holds them, read back as any other boxes.

The files are those of torch's distributed checkpoint in its safetensors form: a tensor may be spread over files, each
header tells in JSON where its part begins. Nothing is pickled, and a plain safetensors file is one of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from hagane.terms import CheckpointError

FILE_BYTES = 2**31
"""A file is closed at this size: it is made in memory before it is written."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The box of a tensor on disk that this process holds."""

    name: str
    """Name of the tensor on disk."""
    local: Tensor
    """The numbers of the box, contiguous; read into in place."""
    offset: tuple[int, ...]
    """Where the box begins."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    @property
    def box(self) -> ChunkStorageMetadata:
        """Begin and size."""
        return ChunkStorageMetadata(torch.Size(self.offset), self.local.shape)


def whole(name: str, tensor: Tensor) -> Chunk:
    """A tensor that is all here."""
    return Chunk(name, tensor, (0,) * tensor.ndim, tuple(tensor.shape))


class _Writing(DefaultSavePlanner):
    """Hands the writer what each item names."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        super().__init__()
        self.held = {c.name: c.local for c in chunks}

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.held[write_item.index.fqn]


class _Reading(DefaultLoadPlanner):
    """Hands the reader the place that each item fills."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        super().__init__()
        self.held = {c.name: c.local for c in chunks}

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.held[index.fqn]


def write_chunks(folder: Path, chunks: Mapping[str, Sequence[Chunk]], rank: int) -> list[Path]:
    """Write the chunks of this rank, one group of files a key, each file synced.

    Args:
        folder: made if it is not there.
        chunks: by the start of the files' names, an owner. A name is in one group only, once.
        rank: of this process; part of the files' names, so ranks write side by side.

    Returns:
        The files: `<key>.r00003.0.safetensors`, where 3 is the rank and 0 counts files of `FILE_BYTES`.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    groups = {f"{key}.r{rank:05d}.{k}": part for key, held in chunks.items() for k, part in enumerate(_cut(held))}
    if not groups:
        folder.mkdir(parents=True, exist_ok=True)
        return []
    every = [c for part in groups.values() for c in part]
    number = {c.name: i for i, part in enumerate(groups.values(), 1) for c in part}
    writer = HuggingFaceStorageWriter(str(folder), number, save_distributed=True)
    writer.set_up_storage_writer(is_coordinator=True)
    plan = writer.prepare_local_plan(SavePlan([_item(c) for c in every]))
    # what torch's own planning over all ranks would give this one; it is not needed, and takes long on many ranks
    mine = writer.prepare_global_plan([plan] * (rank + 1))[rank]
    writer.write_data(mine, _Writing(every)).wait()
    paths = []
    for i, name in enumerate(groups, 1):
        (made,) = folder.glob(f"shard-{rank + 1:05d}-model-{i:05d}-of-*.safetensors")
        _order_header(made)
        paths.append(made.rename(folder / f"{name}.safetensors"))
    return paths


def _order_header(path: Path) -> None:
    """Sort a file's own notes: the library writes them in an order that differs from process to process."""
    with path.open("r+b") as f:
        head = f.read(int.from_bytes(f.read(8), "little"))
        tensors = json.loads(head)
        notes = dict(sorted(tensors.pop("__metadata__").items()))
        text = json.dumps({"__metadata__": notes, **tensors}, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= len(head) and text != head:
            f.seek(8)
            f.write(text.ljust(len(head)))
            f.flush()
            os.fsync(f.fileno())


def _cut(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in runs of at most `FILE_BYTES` (or one chunk)."""
    part: list[Chunk] = []
    size = 0
    for c in chunks:
        if part and size + c.local.nbytes > FILE_BYTES:
            yield part
            part, size = [], 0
        part.append(c)
        size += c.local.nbytes
    if part:
        yield part


def _item(c: Chunk) -> WriteItem:
    data = TensorWriteData(c.box, TensorProperties.create_from_tensor(c.local), torch.Size(c.shape))
    return WriteItem(MetadataIndex(c.name, c.box.offsets), WriteItemType.SHARD, tensor_data=data)


def read_index(folder: Path) -> Metadata:
    """What is in a folder's safetensors files: read from their headers.

    Raises:
        CheckpointError: a file is no safetensors file, or says nonsense of its parts.
    """
    with readable(folder):
        return HuggingFaceStorageReader(str(folder)).read_metadata()


@torch.no_grad()
def read_chunks(folder: Path, chunks: Sequence[Chunk], index: Metadata) -> None:
    """Fill chunks from files, whatever boxes those hold. Nothing is touched before all is found to be there.

    Args:
        folder: of the files.
        chunks: to fill, each name once.
        index: from `read_index`.

    Raises:
        CheckpointError: a tensor is missing, of another shape or type, or a part of it is in no file.
    """
    items = [item for c in chunks for item in reads_of(c, index, str(folder))]
    reader = HuggingFaceStorageReader(str(folder))
    reader.set_up_storage_reader(index, is_coordinator=True)
    with readable(folder):
        reader.read_data(LoadPlan(items), _Reading(chunks)).wait()


def reads_of(c: Chunk, index: Metadata, where: str) -> list[ReadItem]:
    """What to read to fill a chunk (which may be on the meta device).

    Raises:
        CheckpointError: the tensor is missing, of another shape or type, or a part of it is in no file.
    """
    known = index.state_dict_metadata.get(c.name)
    if not isinstance(known, TensorStorageMetadata):
        raise CheckpointError(f"made for another model: it lacks {c.name!r}", where=where)
    if tuple(known.size) != c.shape:
        raise CheckpointError(f"{c.name!r} has shape {tuple(known.size)}, the model {c.shape}", where=where)
    if known.properties.dtype != c.local.dtype:
        raise CheckpointError(f"{c.name!r} is {known.properties.dtype}, the model {c.local.dtype}", where=where)
    reads = create_read_items_for_chunk_list(c.name, known, [c.box])
    if sum(prod(r.lengths) for r in reads) != c.local.numel():
        raise CheckpointError(
            f"a part of {c.name!r} is in no file or in two", where=where, next_step="use another checkpoint of the run"
        )
    return reads


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """One message for files that cannot be read.

    Raises:
        CheckpointError: instead of the reader's own errors.
    """
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AssertionError, RuntimeError) as e:
        raise CheckpointError(f"cannot be read: {e}", where=str(folder)) from None
