"""A run's folder as it lies on disk under the keeper: every checkpoint sealed once it is whole, the rest beside them.

    runs/first/lineage.json              plaintext: data sets, contracts, owners
    runs/first/metrics.jsonl             plaintext: the whitelisted numbers that the keeper heard
    runs/first/sealed/step-000100/       a checkpoint
    runs/first/sealed/rest/              configuration, metrics, records, score cards, text that was printed

In the jail the same folder has its usual form.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hagane.seal import Keyring, is_name, open_folder, seal_folder, unseal_folder
from hagane.seal.sealed_list import NAME as LIST
from hagane.terms import CorruptError, digest_bytes, digest_value
from hagane.terms.files import write_whole

REST = "rest"
_OLD = ".rest.old"
CHECKPOINTS = "checkpoints"
STEP = re.compile(r"step-(?P<step>[0-9]{6,12})")
MARKER = "manifest.json"
"""A checkpoint is whole once it has this file: it is written last."""
REST_NAMES = re.compile(
    r"(?:config\.toml|record\.json|(?:metrics|skips|changes)\.jsonl)|(?:scorecards|replays)/(?P<word>[a-z0-9-]+)\.json"
)
"""Files of a run beside its checkpoints. Names can be read on the disk, so others stay in the jail."""
CHECKPOINT_NAMES = re.compile(
    r"(?:manifest\.json|model\.toml)|"
    r"(?:weights|served|moments)/(?P<word>[a-z0-9-]+)\.r(?P<rank>[0-9]{5})\.(?P<part>0|[1-9][0-9]{0,4})\.safetensors"
)
"""Files of a checkpoint: an owner's part of it by rank."""
FILES = 10_000
"""In one sealed folder, at most."""
KEPT = 4_000
"""Checkpoints that are taken from one jail while it runs, at most: each is an entry in the ledger."""


@dataclass(frozen=True)
class Source:
    """One data set that a run read."""

    dataset: str
    """Its name."""
    digest: str
    """Of its content."""
    contract: str
    """Digest of the contract that granted it."""
    owner: str
    """Its owner."""


@dataclass(frozen=True)
class SealedRun:
    """A run's folder on disk."""

    folder: Path
    """runs/<id>."""
    owner: str
    """Whose wrapping key its files have: the site's operator."""
    sources: tuple[Source, ...]
    """What it read."""
    purpose: str
    """What for."""
    steps: int = 0
    """Optimiser steps that it has at most: a checkpoint of a later step is none."""
    words: frozenset[str] = frozenset()
    """Names that its files may carry, beside those of its owners: of worlds."""

    @property
    def name(self) -> str:
        """Name of its wrapping key."""
        place = self.folder.name.lower()
        return f"run-{place}"[:64] if is_name(f"run-{place}"[:64]) else f"run-{digest_bytes(place.encode())[:16]}"

    @property
    def contract(self) -> str:
        """Digest over all contracts that its sources lie under: what its files are bound to."""
        return digest_value(sorted({s.contract for s in self.sources}))

    @property
    def sealed(self) -> Path:
        """Folder of its sealed folders."""
        return self.folder / "sealed"

    def unseal(self, place: Path, keyring: Keyring) -> None:
        """Lay its plaintext into a folder in the memory of a jail.

        Raises:
            Refused: its key was erased; CorruptError: a file is not the one that was sealed.
        """
        for name in self._names():
            sealed, target = self.sealed / name, place / "unsealing"
            unseal_folder(sealed, target, keyring)
            if name == REST:
                for path in sorted(target.iterdir()):
                    path.rename(place / path.name)
                target.rmdir()
            else:
                (place / CHECKPOINTS).mkdir(exist_ok=True)
                target.rename(place / CHECKPOINTS / name)

    def tidy(self) -> None:
        """Finish or drop what a killed keeper left half done; the caller holds the run's lock."""
        old, target = self.sealed / _OLD, self.sealed / REST
        if not target.exists() and (old / LIST).exists():
            old.rename(target)
        for left in (p for p in self.sealed.glob(".*") if p.is_dir()):
            shutil.rmtree(left)

    def _names(self) -> list[str]:
        """Names of its whole sealed folders: what is in the making has another."""
        names = sorted(p.name for p in self.sealed.glob("*/"))
        return [name for name in names if name == REST or STEP.fullmatch(name)]

    def take_checkpoints(
        self, place: int, keyring: Keyring, most_bytes: int, first: Callable[[], None] = lambda: None
    ) -> tuple[str, ...]:
        """Seal checkpoints that became whole, and drop those that the run dropped; returns the new ones' names.

        Args:
            place: descriptor of the run's folder in the jail's memory: the jail may change what lies there.
            keyring: wraps the files' keys.
            most_bytes: larger checkpoints are not believed.
            first: called before the first new one is sealed.
        """
        top = further(place, CHECKPOINTS)
        if top is None:
            return ()
        with closing_fd(top):
            names = os.listdir(top)  # noqa: PTH208 - a descriptor
            there = {name for name in names if self._has_step(name) and _is_whole(top, name)}
            new = sorted(name for name in there if not (self.sealed / name).exists())[-KEPT:]
            if new:
                first()
            for name in new:
                folder = further(top, name)
                if folder is not None:
                    with closing_fd(folder):
                        self._seal(folder, self.sealed / name, keyring, most_bytes, self._known(CHECKPOINT_NAMES))
        for name in set(self._names()) - there - {REST}:
            dropped = self.sealed / f".{name}.dropped"
            (self.sealed / name).rename(dropped)
            shutil.rmtree(dropped)
        return tuple(new)

    def take_rest(self, place: int, keyring: Keyring, most_bytes: int, texts: Mapping[str, bytes]) -> None:
        """Seal all but the checkpoints, in place of what was sealed of it before.

        Args:
            place, keyring, most_bytes: as `take_checkpoints`.
            texts: what the jail printed, by name.
        """
        known = self._known(REST_NAMES)
        old, target = self.sealed / _OLD, self.sealed / REST
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        try:  # at its own place at once: the keyring remembers where a folder was sealed
            self._seal(place, target, keyring, most_bytes, known, frozenset({CHECKPOINTS}), texts)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _seal(
        self,
        source: int,
        target: Path,
        keyring: Keyring,
        most_bytes: int,
        known: Callable[[str], bool],
        leave_out: frozenset[str] = frozenset(),
        extra: Mapping[str, bytes] | None = None,
    ) -> None:
        about = (keyring, self.name, self.owner, self.contract)
        seal_folder(source, target, *about, leave_out=leave_out, extra=extra or {}, most_bytes=most_bytes, known=known)

    def _known(self, names: re.Pattern[str]) -> Callable[[str], bool]:
        """Whether a path is one that a run has; the first `FILES` of them."""
        words = {self.owner, "consortium", *(s.owner for s in self.sources), *self.words}
        rest = self.sealed / REST
        before = frozenset(open_folder(rest).files) if (rest / LIST).exists() else frozenset()
        left = iter(range(FILES))

        def known(path: str) -> bool:
            found = names.fullmatch(path)
            named = found is not None and (found["word"] is None or found["word"] in words or path in before)
            return named and next(left, None) is not None

        return known

    def _has_step(self, name: str) -> bool:
        """Whether a name is that of a checkpoint that this run can have; a step has one name only."""
        found = STEP.fullmatch(name)
        return found is not None and int(found["step"]) <= self.steps and name == f"step-{int(found['step']):06d}"

    def write_lineage(self) -> None:
        """Write what it read, for whoever looks without keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = {
            "run": self.folder.name,
            "owner": self.owner,
            "purpose": self.purpose,
            "steps": self.steps,
            "sources": [asdict(s) for s in self.sources],
        }
        write_whole(self.folder / "lineage.json", [json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"])


def is_sealed_run(folder: Path) -> bool:
    """True for a run that a keeper made."""
    return (folder / "lineage.json").exists()


def sealed_run_at(place: Path) -> Path | None:
    """The sealed run that a path lies in, or is; None for a plain one."""
    return next((p for p in (place, *place.absolute().parents[:3]) if is_sealed_run(p)), None)


def read_sealed_run(folder: Path) -> SealedRun:
    """A run's folder as it lies on disk.

    Raises:
        CorruptError: its lineage cannot be read.
    """
    path = folder / "lineage.json"
    try:
        table = json.loads(path.read_bytes())
        sources = tuple(Source(**{k: str(s[k]) for k in Source.__dataclass_fields__}) for s in table["sources"])
        return SealedRun(folder, str(table["owner"]), sources, str(table["purpose"]), int(table["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptError("the run's lineage cannot be read", where=str(path)) from None


def further(folder: int, name: str) -> int | None:
    """Descriptor of a folder in an open folder, no link followed; None when it is not there.

    Raises:
        CorruptError: a link or a file stands there.
    """
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        raise CorruptError("a link or file where a folder should be", where=repr(name)) from None


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor in the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _is_whole(top: int, name: str) -> bool:
    try:
        os.stat(f"{name}/{MARKER}", dir_fd=top, follow_symlinks=False)
    except OSError:
        return False
    return True
