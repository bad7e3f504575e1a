"""Sealed folders: every file under a key of its own, the keys wrapped in sealed.json beside them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec.structs import replace

from hagane.seal.keyring import Keyring, Wrapped
from hagane.seal.sealed_file import SealedFile, open_sealed
from hagane.seal.sealed_list import (
    NAME,
    SUFFIX,
    SealedEntry,
    SealedList,
    on_disk,
    read_list,
)
from hagane.terms import CorruptError, StoreError, digest_file
from hagane.terms.files import write_whole

T = TypeVar("T")


class Keys(Protocol):
    """Where keys of sealed files come from: the broker inside a jail, a keyring outside."""

    def key(self, dataset: str, shard: str) -> bytes:
        """The 32 bytes of a shard of a data set or run.

        Raises:
            Refused: it is not given.
        """
        ...


@dataclass(frozen=True)
class SealedFolder:
    """A folder with a sealed.json; made by `open_folder`."""

    path: Path
    """Where it lies."""
    listed: SealedList
    """What sealed.json says."""

    @property
    def name(self) -> str:
        """Data set or run."""
        return self.listed.name

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all files, sealed or not, sorted."""
        return tuple(sorted((*self.listed.files, *self.listed.plain)))

    @cached_property
    def shards(self) -> Mapping[str, SealedEntry]:
        """Sealed files by shard id."""
        return {e.shard: e for e in self.listed.files.values()}

    def open(self, path: str, keys: Keys) -> SealedFile:
        """Map a sealed file.

        Raises:
            Refused: its key is not given.
            StoreError: no such sealed file, or it cannot be read.
            CorruptError: it is not the file that was sealed.
        """
        if path not in self.listed.files:
            raise StoreError(f"no sealed file {path!a} is listed", where=str(self.path / NAME))
        shard = self.listed.files[path].shard
        key = keys.key(self.name, shard)
        return open_sealed(on_disk(self.path, path, sealed=True), key, shard=shard, contract=self.listed.contract)

    def read(self, path: str, keys: Keys) -> bytes:
        """The plaintext of a file, sealed or not.

        Raises:
            Refused, StoreError, CorruptError: as `open`.
        """
        if path in self.listed.plain:
            return b"".join(self._plain_blocks(path))
        return self.open(path, keys).read()

    def _blocks(self, path: str, keys: Keys) -> Iterator[bytes]:
        return self._plain_blocks(path) if path in self.listed.plain else self.open(path, keys).blocks()

    def _plain_blocks(self, path: str) -> Iterator[bytes]:
        file, digest = on_disk(self.path, path, sealed=False), hashlib.sha256()
        try:
            with file.open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
                    yield block
        except OSError as e:
            raise StoreError(f"cannot be read: {e.strerror}", where=str(file)) from None
        if digest.hexdigest() != self.listed.plain[path].sha256:
            raise _differs(file)


@dataclass(frozen=True)
class OwnKeys:
    """Keys of one folder from a keyring. The folder's list is checked before the first key is given."""

    folder: SealedFolder
    """The folder."""
    keyring: Keyring
    """Holds its wrapping key."""

    def key(self, dataset: str, shard: str) -> bytes:
        """As `Keys.key`.

        Raises:
            Refused: there is no wrapping key, or no such shard in this folder.
            CorruptError: the list is not the one that was sealed.
        """
        listed = self.folder.listed
        if dataset != listed.name or shard not in self.folder.shards:
            raise StoreError(f"no shard {shard!a} of {dataset!a} is listed", where=str(self.folder.path / NAME))
        _ = self._checked
        entry = self.folder.shards[shard]
        wrapped = Wrapped(entry.generation, entry.wrapped)
        return self.keyring.unwrap(listed.owner, listed.name, wrapped, shard, listed.contract)

    @cached_property
    def _checked(self) -> None:
        check_proof_of(self.folder, self.keyring)


def check_proof_of(folder: SealedFolder, keyring: Keyring) -> None:
    """Check that the holder of the wrapping key wrote this list.

    Raises:
        Refused: there is no wrapping key.
        CorruptError: somebody else wrote it.
    """
    listed = folder.listed
    keyring.check(listed.owner, listed.name, Wrapped(listed.generation, listed.proof), listed.vouched())


def open_folder(path: Path) -> SealedFolder:
    """Read a sealed folder's list.

    Raises:
        StoreError: it is no sealed folder.
        CorruptError: its list is not the one that was written.
    """
    return SealedFolder(path, read_list(path))


def vouched_for(listed: SealedList, keyring: Keyring) -> SealedList:
    """The list with a proof of the newest wrapping key.

    Raises:
        Refused: there is no wrapping key.
    """
    proof = keyring.vouch(listed.owner, listed.name, listed.vouched())
    return replace(listed, generation=proof.generation, proof=proof.data)


def unseal_folder(source: Path, target: Path, keys: Keyring | Keys) -> None:
    """Write the plaintext of a sealed folder into a new one: on a private tmpfs, where no disk sees it.

    Raises:
        Refused: a key is not given.
        CorruptError: a file is not the one that was sealed.
        StoreError: the target exists, or the disk refuses. What was written is then removed.
    """
    folder = open_folder(source)
    given: Keys = OwnKeys(folder, keys) if isinstance(keys, Keyring) else keys
    if target.exists():
        raise StoreError("the folder exists and is not overwritten", where=str(target))
    whole = False
    try:
        target.mkdir(parents=True, mode=0o700)
        for path in folder.files:
            write_whole(made(target, path, sealed=False), folder._blocks(path, given))
        whole = True
    except OSError as e:
        raise StoreError(f"cannot be unsealed: {e.strerror}", where=str(e.filename or target)) from None
    finally:
        if not whole:
            shutil.rmtree(target, ignore_errors=True)


def check_folder(path: Path) -> SealedFolder:
    """Check every file's size and sha256 without a key, and that nothing lies beside them.

    Raises:
        StoreError: it is no sealed folder, or cannot be read.
        CorruptError: a file is missing, changed or not listed.
    """
    folder = open_folder(path)
    sealed = {p + SUFFIX: (e.sha256, e.size) for p, e in folder.listed.files.items()}
    wanted = {**sealed, **{p: (e.sha256, e.size) for p, e in folder.listed.plain.items()}}
    found = {str(f.relative_to(path).as_posix()) for f in path.rglob("*") if f.is_symlink() or not f.is_dir()} - {NAME}
    if strange := sorted(found - set(wanted)):
        raise CorruptError(f"a file is not on the list: {strange[0]!a}", where=str(path))
    for name, (sha256, size) in wanted.items():
        file = path / name
        try:
            same = not file.is_symlink() and file.stat().st_size == size and digest_file(file) == sha256
        except OSError as e:
            raise CorruptError(f"a listed file cannot be read: {e.strerror}", where=str(file)) from None
        if not same:
            raise _differs(file)
    return folder


def made(folder: Path, path: str, *, sealed: bool) -> Path:
    """Where a listed file lies, its folders made.

    Raises:
        OSError: the disk refuses.
    """
    file = on_disk(folder, path, sealed=sealed)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _differs(file: Path) -> CorruptError:
    return CorruptError("not the file that was sealed", where=str(file), next_step="restore it from a copy")
