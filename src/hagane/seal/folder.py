"""Sealed folders: every file under a key of its own, the keys wrapped in sealed.json beside them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from msgspec.structs import replace

from hagane.seal.keyring import Keyring, Wrapped
from hagane.seal.private_files import sync_folder
from hagane.seal.sealed_file import SealedFile, open_sealed
from hagane.seal.sealed_list import (
    NAME,
    SUFFIX,
    VERSION,
    PlainEntry,
    SealedEntry,
    SealedList,
    check_path,
    on_disk,
    read_list,
    write_list,
)
from hagane.seal.shard_form import KEY, SHARD
from hagane.seal.shards import Layout, seal_bytes_to
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


def seal_folder(
    source: Path,
    target: Path,
    keyring: Keyring,
    name: str,
    owner: str,
    contract: str,
    layouts: Mapping[str, Layout] | None = None,
    plain: Mapping[str, str] | None = None,
) -> SealedFolder:
    """Seal every file below a folder into a new one, which is whole or absent. Nothing in `source` changes.

    Links, devices and sockets in `source` are refused, and never followed, so it may have been written by code that is
    not trusted, once that has ended. Empty folders are not kept.

    Args:
        source: folder of plaintext.
        target: folder to make.
        keyring: gets a wrapping key of that owner and name when it has none.
        name: data set or run.
        owner: whose wrapping key.
        contract: sha256 of the contract that the data lie under, hex.
        layouts: by path with /; other files are cut into even records of 64 KiB.
        plain: reason by path, of files that are copied open. Name only files that trusted code wrote.

    Raises:
        StoreError: the target exists; a link or odd name in `source`; the disk refuses.
        Refused: the key of that name was erased.
    """
    if target.exists() or source.is_symlink():
        what = "a link, which is not followed" if source.is_symlink() else "the folder exists and is not overwritten"
        raise StoreError(what, where=str(source if source.is_symlink() else target))
    keyring.fresh(owner, name)
    folder_id = os.urandom(16).hex()
    keyring.enrol(owner, name, folder_id, target.absolute())
    making = target.with_name(f".{target.name}.sealing-{folder_id[:8]}")
    files: dict[str, SealedEntry] = {}
    opened: dict[str, PlainEntry] = {}
    try:
        making.mkdir(parents=True)
        for path, file in _plaintexts(source):
            if plain and path in plain:
                opened[path] = _copy(file, _made(making, path, sealed=False), plain[path])
            else:
                shard, key = os.urandom(SHARD).hex(), os.urandom(KEY)
                layout = (layouts or {}).get(path)
                done = seal_bytes_to(_made(making, path, sealed=True), file, key, shard, contract, layout)
                wrapped = keyring.wrap(owner, name, key, shard, contract)
                files[path] = SealedEntry(shard, done.sha256, done.bytes, wrapped.generation, wrapped.data)
        listed = SealedList(VERSION, folder_id, name, owner, contract, _sorted(files), _sorted(opened))
        write_list(making, vouched_for(listed, keyring))
        for folder, _, _ in os.walk(making):
            sync_folder(Path(folder))
        making.rename(target)
        sync_folder(target.parent)
    except OSError as e:
        raise StoreError(f"cannot be sealed: {e.strerror}", where=str(e.filename or target)) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return open_folder(target)


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
            write_whole(_made(target, path, sealed=False), folder._blocks(path, given))
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


def _plaintexts(source: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Path and open file of everything below a folder, in order; no link is followed at any depth."""
    for top, folders, names, fd in os.fwalk(source, follow_symlinks=False, onerror=_raise):
        folders.sort()
        for name in sorted((*folders, *names)):
            path = check_path((Path(top) / name).relative_to(source).as_posix())
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise StoreError(f"neither file nor folder (a link?): {path!a}", where=str(source))
            with open(name, "rb", opener=_opener(fd)) as file:
                yield path, file


def _opener(folder: int) -> Callable[[str, int], int]:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return lambda name, mode: os.open(name, mode | flags, dir_fd=folder)


def _made(folder: Path, path: str, *, sealed: bool) -> Path:
    file = on_disk(folder, path, sealed=sealed)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _copy(file: BinaryIO, target: Path, reason: str) -> PlainEntry:
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        while block := file.read(1 << 20):
            digest.update(block)
            yield block

    write_whole(target, blocks())
    return PlainEntry(reason, digest.hexdigest(), target.stat().st_size)


def _sorted(table: dict[str, T]) -> dict[str, T]:
    return dict(sorted(table.items()))


def _raise(error: OSError) -> None:
    raise error


def _differs(file: Path) -> CorruptError:
    return CorruptError("not the file that was sealed", where=str(file), next_step="restore it from a copy")
