"""HDF5 files with care: what is in them, without following links and without believing the sizes they claim.

An HDF5 file can point at other files (external links, external storage, virtual datasets), can claim shapes that no
memory holds, and can unpack a thousand times larger than it is. All of that is refused here, before a value is read;
h5py itself never unpickles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hagane.intake.files import head_of
from hagane.terms import LogError

MAGIC = b"\x89HDF\r\n\x1a\n"
MOST_BYTES = 2 << 30
"""Numbers of one dataset that would take more memory are refused; pictures are read one by one."""
_MOST_CHUNK_BYTES = 1 << 28
_MOST_RATIO = 1100  # deflate cannot do better than 1032
_MOST_OBJECTS = 1_000_000
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False)
class Contents:
    """Datasets of an open file by path without the leading slash, and the links that lead elsewhere."""

    datasets: Mapping[str, Any]
    """Datasets by path."""
    links: Mapping[str, str]
    """What soft and external links point at, by path."""


def is_hdf5(path: Path) -> bool:
    """True for a file with the HDF5 signature, at its start or behind a user block."""
    return any(head_of(path, at + 8)[at:] == MAGIC for at in (0, 512, 1024, 2048))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An h5py file, read-only; whatever damaged bytes make h5py raise inside becomes a LogError.

    Raises:
        LogError: h5py is not installed, or the file is damaged or truncated.
    """
    try:
        import h5py
    except ImportError:
        raise LogError("reading HDF5 needs h5py", where=str(path), next_step='pip install "hagane[intake]"') from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _DAMAGED as e:
        # h5py turns one damaged byte into any of these
        words = (str(e).splitlines() or [""])[0] or type(e).__name__
        raise LogError(
            f"a truncated or damaged HDF5 file: {words}", where=str(path), next_step="copy it again from the machine"
        ) from None


def list_contents(file: Any, where: str) -> Contents:
    """All datasets of an open file. Each group is entered once; links are listed, never followed.

    Raises:
        LogError: more objects than any log has.
    """
    import h5py

    datasets: dict[str, Any] = {}
    links: dict[str, str] = {}
    todo, seen = [("", file["/"])], set()
    while todo:
        prefix, group = todo.pop()
        if (here := h5py.h5o.get_info(group.id).addr) in seen:
            continue
        seen.add(here)
        for name in group:
            path, link = prefix + name, group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                links[path] = f"{getattr(link, 'filename', '')}:{getattr(link, 'path', '')}".lstrip(":")
                continue
            child = group[name]
            if isinstance(child, h5py.Group):
                todo.append((path + "/", child))
            elif isinstance(child, h5py.Dataset):
                datasets[path] = child
        if len(datasets) + len(seen) + len(links) > _MOST_OBJECTS:
            raise LogError("holds more objects than any log has", where=where, next_step="split the file")
    return Contents(datasets, links)


def check_dataset(dataset: Any, name: str, file_bytes: int, where: str) -> None:
    """Refuse a dataset whose bytes lie elsewhere, or that claims more than its file can hold.

    Raises:
        LogError: it does.
    """
    place = f"{where}, {name}"
    if dataset.is_virtual or dataset.external:
        raise LogError(
            "its values lie in other files", where=place, next_step="write them into the file itself: h5repack"
        )
    if dataset.shape is None:
        raise LogError(
            "is empty: it has no shape", where=place, next_step="take it out of the sources, or record again"
        )
    plain = int(np.prod([int(n) for n in dataset.shape], dtype=object)) * dataset.dtype.itemsize
    stored = int(dataset.id.get_storage_size())
    if stored > file_bytes or plain > stored * _MOST_RATIO + 4096:
        raise LogError(
            f"claims {plain} bytes of values in {stored} bytes of a file of {file_bytes}",
            where=place,
            next_step="the file is damaged or not finished: write it again",
        )
    if dataset.chunks is None and plain > file_bytes:
        raise LogError(
            f"claims {plain} bytes of values in a file of {file_bytes}",
            where=place,
            next_step="write the file again: h5repack",
        )
    if dataset.chunks and int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize > _MOST_CHUNK_BYTES:
        raise LogError(
            f"its chunks {dataset.chunks} take more than 256 MiB each",
            where=place,
            next_step="write it with smaller chunks: h5repack",
        )
