"""Seal a folder that code which is not trusted may have written: in whole or not at all, and nothing from elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hagane.seal.folder import SealedFolder, made, open_folder, vouched_for
from hagane.seal.keyring import Keyring
from hagane.seal.sealed_list import VERSION, PlainEntry, SealedEntry, SealedList, check_path, write_list
from hagane.seal.shard_form import KEY, SHARD
from hagane.seal.shards import Layout, seal_bytes_to
from hagane.terms import StoreError
from hagane.terms.files import check_total, files_below, sync_folder, write_whole


def seal_folder(
    source: Path | int,
    target: Path,
    keyring: Keyring,
    name: str,
    owner: str,
    contract: str,
    layouts: Mapping[str, Layout] | None = None,
    plain: Mapping[str, str] | None = None,
    *,
    leave_out: frozenset[str] = frozenset(),
    extra: Mapping[str, bytes] | None = None,
    most_bytes: int | None = None,
    known: Callable[[str], bool] | None = None,
) -> SealedFolder:
    """Seal every file below a folder into a new one, which is whole or absent. Nothing in `source` changes.

    Links, pipes, devices and sockets in `source` are refused, and never followed, so it may have been written by code
    that is not trusted; while that still writes, files may be of different moments, but none is from elsewhere. Empty
    folders are not kept.

    Args:
        source: folder of plaintext, or a descriptor of one, which stays open.
        target: folder to make.
        keyring: gets a wrapping key of that owner and name when it has none.
        name: data set or run.
        owner: whose wrapping key.
        contract: sha256 of the contract that the data lie under, hex.
        layouts: by path with /; other files are cut into even records of 64 KiB.
        plain: reason by path, of files that are copied open. Name only files that trusted code wrote.
        leave_out: names directly in `source` that are not sealed.
        extra: content by path of files that trusted code adds; what `source` has in their place is left out.
        most_bytes: a `source` whose files claim more in all is refused before anything is written: a file with holes
            would fill the disk. Every file counts as 4 KiB at least.
        known: names stay readable in the list and on the disk, so that a name could carry what it liked: files of a
            path for which this is False stay out.

    Raises:
        StoreError: the target exists; a link or odd name in `source`; it is too large; the disk refuses.
        Refused: the key of that name was erased.
    """
    if target.exists():
        raise StoreError("the folder exists and is not overwritten", where=str(target))
    for path in extra or ():
        check_path(path)
    with folder_of(source) as fd:
        if most_bytes is not None:
            check_total(fd, most_bytes, leave_out)
        keyring.fresh(owner, name)
        folder_id = os.urandom(16).hex()
        keyring.enrol(owner, name, folder_id, target.absolute())
        making = target.with_name(f".{target.name}.sealing-{folder_id[:8]}")
        sealing = _Sealing(making, keyring, name, owner, contract)
        try:
            making.mkdir(parents=True)
            for path, file in _plaintexts(fd, leave_out, extra or {}, most_bytes, known):
                if plain and path in plain:
                    sealing.copy(path, file, plain[path])
                else:
                    sealing.seal(path, file, (layouts or {}).get(path))
            sealing.finish(folder_id)
            making.rename(target)
            sync_folder(target.parent)
        except OSError as e:
            raise StoreError(f"cannot be sealed: {e.strerror}", where=str(e.filename or target)) from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return open_folder(target)


@contextmanager
def folder_of(source: Path | int) -> Iterator[int]:
    """A descriptor of a folder that is given by path, or by descriptor; errors of the block get its place.

    Raises:
        StoreError: it is a link, or cannot be read.
    """
    where = f"an open folder ({source})" if isinstance(source, int) else str(source)
    try:
        if isinstance(source, int):
            yield source
            return
        if source.is_symlink():
            raise StoreError("a link, which is not followed")
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as e:
        raise StoreError(f"cannot be read: {e.strerror}", where=where) from None
    except StoreError as e:
        raise type(e)(e.what, where=e.where or where, next_step=e.next_step) from None


@dataclass
class _Sealing:
    """A sealed folder in the making."""

    folder: Path
    keyring: Keyring
    name: str
    owner: str
    contract: str
    files: dict[str, SealedEntry] = field(default_factory=dict)
    opened: dict[str, PlainEntry] = field(default_factory=dict)

    def seal(self, path: str, data: BinaryIO | bytes, layout: Layout | None) -> None:
        """Seal a file under a fresh key."""
        shard, key = os.urandom(SHARD).hex(), os.urandom(KEY)
        done = seal_bytes_to(made(self.folder, path, sealed=True), data, key, shard, self.contract, layout)
        wrapped = self.keyring.wrap(self.owner, self.name, key, shard, self.contract)
        self.files[path] = SealedEntry(shard, done.sha256, done.bytes, wrapped.generation, wrapped.data)

    def copy(self, path: str, data: BinaryIO | bytes, reason: str) -> None:
        """Copy a file that lies open."""
        digest, size = hashlib.sha256(), 0

        def blocks() -> Iterator[bytes]:
            nonlocal size
            while block := data.read(1 << 20) if not isinstance(data, bytes) else data[size:]:
                digest.update(block)
                size += len(block)
                yield block

        write_whole(made(self.folder, path, sealed=False), blocks())
        self.opened[path] = PlainEntry(reason, digest.hexdigest(), size)

    def finish(self, folder_id: str) -> None:
        """Write the list, and make all of it last."""
        files, opened = dict(sorted(self.files.items())), dict(sorted(self.opened.items()))
        listed = SealedList(VERSION, folder_id, self.name, self.owner, self.contract, files, opened)
        write_list(self.folder, vouched_for(listed, self.keyring))
        for folder, _, _ in os.walk(self.folder):
            sync_folder(Path(folder))


def _plaintexts(
    source: int,
    leave_out: frozenset[str],
    extra: Mapping[str, bytes],
    most_bytes: int | None,
    known: Callable[[str], bool] | None,
) -> Iterator[tuple[str, BinaryIO | bytes]]:
    """Path and content of every file to seal; the limit is kept while `source` grows, too."""
    total = 0
    for path, fd in files_below(source, leave_out):
        total += os.fstat(fd).st_size  # sealing reads so much and no more
        if most_bytes is not None and total > most_bytes:
            raise StoreError(f"its files grew to more than {most_bytes} bytes meanwhile")
        if not any(_same_place(path, other) for other in extra) and (known is None or known(path)):
            with open(fd, "rb", closefd=False) as file:
                yield check_path(path), file
    yield from extra.items()


def _same_place(path: str, other: str) -> bool:
    """True when two files cannot lie beside each other: the same path, or one a folder of the other."""
    return path == other or path.startswith(other + "/") or other.startswith(path + "/")
