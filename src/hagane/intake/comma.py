"""CAN traffic as a folder of NumPy arrays: the layout of the comma2k19 data set (raw_can/{t,address,data,src}.npy)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import refuse_outside
from hagane.intake.frames import EXTENDED, Frames, Recording
from hagane.terms import LogError, digest_file

_PARTS = ("t", "address", "data", "src")


def _folder(path: Path) -> Path:
    return path / "raw_can" if (path / "raw_can").is_dir() else path


def looks_like_comma(path: Path) -> bool:
    """True for a folder that holds the arrays, or holds them in `raw_can`."""
    return all((_folder(path) / f"{name}.npy").is_file() for name in _PARTS)


def read_comma(path: Path) -> Recording:
    """Frames of such a folder; the digest is the sha256 over the digests of its files.

    The layout does not keep the frames' lengths: all count as 8 bytes. Times are seconds (float64).

    Raises:
        LogError: an array is missing, damaged, of another type, of another length than the others, or a link out of
            the folder.
    """
    folder = _folder(path)
    for name in _PARTS:
        refuse_outside(folder / f"{name}.npy", path)
    arrays = {name: _load(folder / f"{name}.npy") for name in _PARTS}
    digest = hashlib.sha256("".join(digest_file(folder / f"{name}.npy") for name in _PARTS).encode()).hexdigest()
    rows = {name: len(a) for name, a in arrays.items()}
    if len(set(rows.values())) > 1:
        raise LogError(f"arrays of different lengths: {rows}", where=str(folder), next_step="copy the folder again")
    data = arrays["data"]
    if data.dtype.kind == "S" and data.dtype.itemsize <= 8:
        payload = np.ascontiguousarray(data.astype("S8")).view(np.uint8).reshape(-1, 8)
    elif data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 8:
        payload = data.view(np.uint8)
    else:
        raise LogError(f"data.npy holds {data.dtype} {data.shape}, not 8 bytes a frame", where=str(folder))
    seconds = arrays["t"].astype(np.float64)
    if not np.isfinite(seconds).all():
        raise LogError("t.npy holds times that are no numbers", where=str(folder))
    ids = arrays["address"].astype(np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= 1 << 29):
        raise LogError("address.npy holds numbers that are no CAN ids", where=str(folder))
    times_ns = np.round(seconds * 1e9).astype(np.int64)
    ids = np.where(ids >= 0x800, ids | EXTENDED, ids)
    lengths = np.full(len(ids), 8, np.uint8)
    frames = Frames(times_ns, ids.astype(np.uint32), payload, lengths, arrays["src"].astype(np.uint8))
    return Recording(frames, digest=digest)


def _load(path: Path) -> NDArray[np.generic]:
    try:
        _refuse_claim(path)
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise LogError("no such file", where=str(path), next_step="copy the folder again") from None
    except (ValueError, OSError, EOFError) as e:
        raise LogError(
            f"damaged or truncated array: {e}", where=str(path), next_step="copy the file again from the machine"
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim < 1 or array.dtype.kind not in "biufSV":
        raise LogError("is no array of rows of numbers", where=str(path))
    return array


def _refuse_claim(path: Path) -> None:
    """Compare the size that the header claims with the file's, before NumPy takes memory for it."""
    with path.open("rb") as f:
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(f)
        claimed, have = math.prod(shape) * dtype.itemsize, path.stat().st_size - f.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpacked")
    if claimed != have:
        raise ValueError(f"its header claims {claimed:,} bytes of values, the file holds {have:,}")
