"""Our own catalog and loader, and the ceiling that decoding alone sets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from source import CAMERAS, CHUNK, FPS, SIZE, WIDTH, Source
from worker import BATCH, Loaded, cpu_seconds, folder_bytes, serve

from hagane.catalog import Ahead, Catalog, Loader, Mixture
from hagane.seal import Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import Batch, Channel, Contract, Embodiment, Episode, Stream, dump_toml

NAME = "bench-arm"
ARM = Embodiment(
    NAME,
    "robot",
    "member-robots",
    float(FPS),
    CHUNK,
    (
        *(Channel(c, kind="image", shape=(SIZE, SIZE, 3), role="camera") for c in CAMERAS),
        Channel("state", shape=(WIDTH,), unit=("rad",)),
    ),
    (Channel("action", shape=(WIDTH,), unit=("rad",)),),
)


def episodes(source: Source) -> Iterator[Episode]:
    """The source as our nouns; the task names the episode, so that a sample can be found again."""
    steps = source.spec.steps
    times_ns = np.arange(steps, dtype=np.int64) * ARM.step_ns
    valid = np.ones(steps, bool)
    for number in range(source.spec.episodes):
        rows = range(number * steps, (number + 1) * steps)
        streams = {}
        for camera, name in enumerate(CAMERAS):
            jpegs = np.empty(steps, object)
            jpegs[:] = [source.jpeg(row, camera) for row in rows]
            streams[name] = Stream(times_ns, jpegs, valid)
        streams["state"] = Stream(times_ns, source.state[rows.start : rows.stop], valid, ("rad",))
        streams["action"] = Stream(times_ns, source.action[rows.start : rows.stop], valid, ("rad",))
        yield Episode(f"{NAME}/{number:06d}", NAME, streams, str(number), digest="ab" * 32)


def open_catalog(folder: Path) -> Catalog:
    """The catalog of a folder, with its owner's key trusted."""
    trust = TrustStore(folder / "trust")
    return Catalog.open(folder / "catalog", Site("plant-7", "JP", "consortium"), trust)


def add(catalog: Catalog, folder: Path, made: Iterator[Episode]) -> None:
    """Bring episodes in under a contract made for the occasion."""
    key = generate_key(folder / "key.pem")
    catalog.trust.add(ARM.owner, public_of(key))
    path = folder / "contract.toml"
    terms = Contract(
        ARM.owner,
        (NAME,),
        ("JP",),
        ("plant-7",),
        ("anchor",),
        date(2099, 12, 31),
        date(2026, 1, 1),
        1,
        protection="process",
    )
    path.write_text(dump_toml(terms), "utf-8")
    sign_contract(path, key)
    catalog.add(NAME, ARM, load_contract(path, catalog.trust), made)


def open_loader(catalog: Catalog, pictures: str, *, samples: int = BATCH) -> Loader:
    """The loader of a sample as every row here has it: this step's pictures, and not the next step's as well."""
    pick: Any = {"pictures": pictures, "next_pictures": False}
    return Loader(catalog, [NAME], Mixture(seed=0), purpose="anchor", samples_per_step=samples, **pick)


def hold_few_episodes(most_bytes: int) -> None:
    """Let the video cache hold a few decoded episodes only: this small set would fit whole, a real one does not."""
    from hagane.catalog import video

    if not hasattr(video, "_HELD_BYTES"):
        raise RuntimeError("the video cache has no limit to set: its row would measure copies, not decoding")
    video._HELD_BYTES = most_bytes


class Ours:
    """JPEG cache, memory-mapped; the loader that training uses, every check on."""

    packages = ("numpy", "simplejpeg")
    random_access = True

    def __init__(self, mode: str) -> None:
        self.mode, self._step = mode or "jpeg", 0
        self.floor_db = 40.0 if self.mode == "jpeg" else 28.0

    def write(self, source: Source, folder: Path) -> None:
        catalog = open_catalog(folder)
        add(catalog, folder, episodes(source))
        open_loader(catalog, self.mode)

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        self._folder, self._source = folder, source
        if self.mode == "video":
            hold_few_episodes(10 * source.spec.steps * SIZE * SIZE * 3)
        self._loader = open_loader(open_catalog(folder), self.mode)

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Batch]:
        # the order is a function of the step, so passes go on where the last one ended
        first, self._step = self._step, self._step + count
        steps = range(first, first + count)
        ahead = Ahead(self._loader.at, workers, last=steps.stop)
        return map(ahead.at, steps)

    def loaded(self, batch: Batch) -> Loaded:
        (part,) = batch.parts
        seen = part.observation
        steps = np.rint(seen.time_ns / ARM.step_ns).astype(np.int64)
        rows = np.array([int(t) for t in seen.tasks]) * self._source.spec.steps + steps
        pictures = np.stack([seen.channels[c].values[:, 0] for c in CAMERAS], 1)
        return Loaded(rows, pictures, seen.channels["state"].values[:, 0], part.actions_NHA)

    def facts(self) -> dict[str, Any]:
        (part,) = self._loader.at(0).parts
        (columns,) = self._loader.datasets.values()
        return {
            "dtype": str(part.observation.channels[CAMERAS[0]].values.dtype),
            "loader_bytes": folder_bytes(columns.folder),
            "canonical_bytes": folder_bytes(self._folder / "catalog" / "sets"),
            "pictures_per_sample": len(CAMERAS) + sum(c in part.next for c in CAMERAS),
            "epoch_samples": self._loader.samples[NAME],
            **({"order": "mixed within 8 episodes, 10 held decoded"} if self.mode == "video" else {}),
        }

    def decode_settings(self) -> dict[str, Any]:
        """The arguments with which the loader calls simplejpeg, seen by listening to one batch."""
        calls: list[dict[str, Any]] = []
        plain = simplejpeg.decode_jpeg

        def listen(data: Any, **kwargs: Any) -> Any:
            calls.append({k: v for k, v in kwargs.items() if k != "buffer"})
            return plain(data, **kwargs)

        holders = [(m, "decode_jpeg") for m in list(sys.modules.values()) if getattr(m, "decode_jpeg", None) is plain]
        for module, name in holders:
            setattr(module, name, listen)
        try:
            self._loader.at(self._step)
        finally:
            for module, name in holders:
                setattr(module, name, plain)
        return {"settings": calls[0] if calls else {}, "pictures": len(calls)}

    def ceiling(self, batches: int, seed: int, decode: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing but decoding: the same JPEGs in random order, with the loader's settings, into one buffer."""
        rng = np.random.default_rng(seed)
        rows = rng.permutation(np.resize(np.arange(len(self._source)), batches * BATCH)).reshape(batches, BATCH)
        jpegs = [[self._source.jpeg(int(r), c) for r in batch for c in range(len(CAMERAS))] for batch in rows]
        out = np.zeros((BATCH * len(CAMERAS), SIZE, SIZE, 3), np.uint8)
        wall, cpu = time.perf_counter(), cpu_seconds()
        for batch in jpegs:
            for data, place in zip(batch, out, strict=True):
                simplejpeg.decode_jpeg(data, buffer=place, **decode)
        return {"samples": rows.size, "cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}


if __name__ == "__main__":
    raise SystemExit(serve(Ours))
