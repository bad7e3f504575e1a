"""CAN traffic as a folder of NumPy arrays: the layout of the comma2k19 data set (raw_can/{t,address,data,src}.npy)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import refuse_outside
from hagane.intake.frames import EXTENDED, Frames, Recording
from hagane.intake.streams import MOST_S
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
    files = {name: folder / f"{name}.npy" for name in _PARTS}
    for file in files.values():
        refuse_outside(file, path)
    arrays = {name: _load(file) for name, file in files.items()}
    digest = hashlib.sha256("".join(map(digest_file, files.values())).encode()).hexdigest()
    rows = {name: len(a) for name, a in arrays.items()}
    if len(set(rows.values())) > 1:
        raise LogError(f"arrays of different lengths: {rows}", where=str(folder), next_step="copy the folder again")
    data = arrays["data"]
    if data.dtype.kind == "S" and data.dtype.itemsize <= 8:
        payload = np.ascontiguousarray(data.astype("S8")).view(np.uint8).reshape(-1, 8)
    elif data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 8:
        payload = data.view(np.uint8)
    else:
        what = f"holds {data.dtype} {data.shape}, not 8 bytes a frame"
        raise LogError(what, where=str(files["data"]), next_step="copy the folder again")
    seconds = _numbers(arrays["t"], -MOST_S, MOST_S, "times in seconds", files["t"])
    ids = _numbers(arrays["address"], 0, (1 << 29) - 1, "CAN ids", files["address"]).astype(np.int64)
    buses = _numbers(arrays["src"], 0, 255, "numbers of buses", files["src"])
    times_ns = np.round(seconds * 1e9).astype(np.int64)
    ids = np.where(ids >= 0x800, ids | EXTENDED, ids)
    lengths = np.full(len(ids), 8, np.uint8)
    frames = Frames(times_ns, ids.astype(np.uint32), payload, lengths, buses.astype(np.uint8))
    return Recording(frames, digest=digest)


def _numbers(array: NDArray[np.generic], low: float, high: float, what: str, path: Path) -> NDArray[np.float64]:
    """[N] values of an array that holds one number a frame, from low to high; float64 holds ids exactly."""
    values = array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "iuf" else None
    # NaN is not within anything
    if values is None or not ((values >= low) & (values <= high)).all():
        raise LogError(f"does not hold {what}", where=str(path), next_step="copy the folder again")
    return values


def _load(path: Path) -> NDArray[np.generic]:
    try:
        _refuse_claim(path)
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise LogError("no such file", where=str(path), next_step="copy the folder again") from None
    except Exception as e:
        # NumPy reads the header as Python's own text, which fails in many ways where a byte is damaged
        raise LogError(
            f"damaged or truncated array: {e}", where=str(path), next_step="copy the file again from the machine"
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim < 1:
        raise LogError("is no array of rows of numbers", where=str(path), next_step="copy the folder again")
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
