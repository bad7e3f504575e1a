"""Weights as plain safetensors files, tensor by tensor: no process ever holds the model.

OUT/
    model.toml                                 shape of the weights
    <owner>.00001-of-00002.safetensors         averaged weights and buffers; a tensor whole, in one file
    model.safetensors.index.json               tensor to file, as other tools read it
    manifest.json                              the checkpoint's, with digests of these files: written last

Such a folder is a checkpoint of one table: a policy loads it, and a run starts from it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from hagane.model.chunks import read_chunks, read_index, reads_of, whole
from hagane.model.config import ModelConfig
from hagane.model.generalist import Generalist
from hagane.model.naming import pieces
from hagane.model.weights import (
    INDEX,
    MANIFEST,
    Manifest,
    load_config,
    manifest_id,
    manifest_of,
    names_in,
    parse_manifest,
    served_files,
    served_state,
    table_folder,
    verify_files,
    whole_chunks,
)
from hagane.terms import CheckpointError, digest_file

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
"""Names of number types in a safetensors header."""


def export_weights(checkpoint: Path, out: Path, file_bytes: int = 4 * 2**30) -> Manifest:
    """Write a checkpoint's served weights as plain safetensors files; peak memory is about one tensor.

    Args:
        checkpoint: whole; what is exported is compared with its sha256 first.
        out: folder that is not there yet; whole or absent.
        file_bytes: largest size of a file (one tensor may be larger).

    Raises:
        CheckpointError: incomplete, or `out` is there already.
        CorruptError: a file was changed.
        OSError: the disk is full or cannot be written; nothing is left.
    """
    if out.exists():
        raise CheckpointError("is there already", where=str(out), next_step="choose another --out")
    manifest = manifest_of(checkpoint)
    verify_files(checkpoint, manifest, served_files(checkpoint, manifest))
    folder = table_folder(checkpoint, "served")
    index = read_index(folder)
    making = out.with_name(f".making-{out.name}")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        shutil.copyfile(checkpoint / "model.toml", making / "model.toml")
        places: dict[str, str] = {}
        for name, tensors in files_of(index, file_bytes):
            _write(making / name, folder, index, tensors)
            places |= dict.fromkeys(tensors, name)
        size = sum(_bytes(index, tensor) for tensor in places)
        text = json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1, sort_keys=True)
        (making / INDEX).write_text(text, "utf-8")
        made = finished(making, manifest)
        making.rename(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return made


def finished(folder: Path, source: Manifest) -> Manifest:
    """Digest the files of an export and write its manifest."""
    files = {name: digest_file(folder / name) for name in sorted(names_in(folder))}
    blank = replace(source, files=files, source=source.id)
    made = replace(blank, id=manifest_id(asdict(blank)))
    with (folder / MANIFEST).open("w") as f:
        json.dump(asdict(made), f, indent=1, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    return made


def take_back(folder: Path) -> Manifest:
    """Give an export that other tools changed a manifest of its own, once it still fits its model.

    Its record stays: where weights come from is not forgotten by passing through another tool.

    Raises:
        CheckpointError: no record of where it comes from, or a tensor is missing, left over, or of another shape.
    """
    before, config, index = parse_manifest(folder), load_config(folder), read_index(folder)
    with torch.device("meta"):
        model = Generalist(config)
    wanted = whole_chunks(model, served_state(model, None))
    for c in wanted:
        reads_of(c, index, str(folder))
    for name in sorted(set(index.state_dict_metadata) - {c.name for c in wanted}):
        raise CheckpointError(f"made for another model: it holds {name!r}, which the model has not", where=str(folder))
    return finished(folder, before)


def exported_tensors(config: ModelConfig) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Name, owner, number type and shape of every tensor that an export of such a model holds; no memory is taken."""
    with torch.device("meta"):
        model = Generalist(config)
    state = served_state(model, None)
    out = []
    for p in pieces(model, tuple(state)):
        known = state[p.stacked]
        out.append((p.name, p.owner, DTYPES[known.dtype], tuple(known.shape[0 if p.row < 0 else 1 :])))
    return out


def files_of(index: Metadata, file_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """Names of files and of the tensors in each: one owner's only, of at most `file_bytes` or one tensor."""
    owners = {at.fqn: Path(found.relative_path).name.split(".")[0] for at, found in index.storage_data.items()}
    for owner in sorted(set(owners.values())):
        cuts: list[list[str]] = [[]]
        room = file_bytes
        for name in sorted(n for n, o in owners.items() if o == owner):
            if cuts[-1] and _bytes(index, name) > room:
                cuts.append([])
                room = file_bytes
            cuts[-1].append(name)
            room -= _bytes(index, name)
        for i, names in enumerate(cuts, 1):
            yield f"{owner}.{i:05d}-of-{len(cuts):05d}.safetensors", names


def _write(path: Path, folder: Path, index: Metadata, names: list[str]) -> None:
    """One safetensors file, written as its tensors are read."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        known = _known(index, name)
        ends = [at, at + _bytes(index, name)]
        header[name] = {"dtype": DTYPES[known.properties.dtype], "shape": list(known.size), "data_offsets": ends}
        at = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            known = _known(index, name)
            tensor = torch.empty(known.size, dtype=known.properties.dtype)
            read_chunks(folder, [whole(name, tensor)], index)
            f.write(tensor.view(-1).view(torch.uint8).numpy().data)
        f.flush()
        os.fsync(f.fileno())


def _known(index: Metadata, name: str) -> TensorStorageMetadata:
    known = index.state_dict_metadata[name]
    if not isinstance(known, TensorStorageMetadata) or known.properties.dtype not in DTYPES:
        raise CheckpointError(f"{name!r} is of a type that is not exported")
    return known


def _bytes(index: Metadata, name: str) -> int:
    known = _known(index, name)
    return known.size.numel() * known.properties.dtype.itemsize
