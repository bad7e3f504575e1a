"""WebDataset: tar shards read in order through a shuffle buffer. It cannot give a random sample: its order is only
mixed within a buffer of 1,000. Modes: "" decodes as our loader does; "pil" uses the peer's own "rgb8" decoder.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from source import CAMERAS, CHUNK, SIZE, WIDTH, Source
from worker import BATCH, Loaded, episode_chunks, serve

SHARDS, BUFFER = 8, 1000
NAMES = (*(f"{c}.jpg" for c in CAMERAS), "row.npy", "state.npy", "chunk.npy")


class Decode:
    """Decoder of a .jpg member; a class, so that it can travel to a worker."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def __call__(self, key: str, data: bytes) -> Any:
        import simplejpeg

        if not key.endswith("jpg"):
            return None
        return simplejpeg.decode_jpeg(data, buffer=np.empty((SIZE, SIZE, 3), np.uint8), **self.settings)


def tensors(samples: list[Any]) -> list[Any]:
    """Collate: one tensor a field."""
    import torch

    return [torch.from_numpy(np.stack(field)) for field in zip(*samples, strict=True)]


class WebDataset:
    """The peer's fluid interface."""

    packages = ("webdataset", "torch", "numpy", "simplejpeg", "pillow")
    floor_db = 40.0
    random_access = False

    def __init__(self, mode: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._mode = mode
        self._streams: dict[int, Iterator[Any]] = {}

    def write(self, source: Source, folder: Path) -> None:
        import webdataset as wds

        chunks = episode_chunks(source)
        with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-len(source) // SHARDS), verbose=0) as sink:
            for row in range(len(source)):
                vectors = {"row": np.int64(row), "state": source.state[row], "chunk": chunks[row]}
                files = {f"{k}.npy": _npy(v) for k, v in vectors.items()}
                files |= {f"{c}.jpg": source.jpeg(row, k) for k, c in enumerate(CAMERAS)}
                sink.write({"__key__": f"{row:08d}", **files})

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        self._shards, self._decode = sorted(str(p) for p in folder.glob("*.tar")), Decode(decode)

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Any]:
        # one stream goes on over all passes, so that filling the buffer is not paid again
        if workers not in self._streams:
            self._streams[workers] = self._stream(workers)
        return islice(self._streams[workers], count)

    def loaded(self, batch: Any) -> Loaded:
        *pictures, row, state, chunk = (v.numpy() for v in batch)
        return Loaded(row, np.stack(pictures, 1), state, chunk.reshape(-1, CHUNK, WIDTH))

    def facts(self) -> dict[str, Any]:
        return {"dtype": "uint8", "order": f"shuffle buffer of {BUFFER}", "decoder": self._mode or "simplejpeg"}

    def _stream(self, workers: int) -> Iterator[Any]:
        import webdataset as wds

        data = wds.WebDataset(self._shards, shardshuffle=100, seed=0).repeat().shuffle(BUFFER)
        data = data.decode("rgb8") if self._mode == "pil" else data.decode(self._decode)
        data = data.to_tuple(*NAMES).batched(BATCH, collation_fn=tensors, partial=False)
        return iter(wds.WebLoader(data, batch_size=None, num_workers=workers))


def _npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(serve(WebDataset))
