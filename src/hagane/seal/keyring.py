"""Keyring: the folder of wrapping keys, one file an owner. A wrapping key wraps the keys of sealed files, no data.

Files are read again whenever they change on disk, so a key that another process destroys is gone here too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from hagane.seal.key_file import KeyFile, Lock, Place, WrappingKey, decode, encode, new_lock, open_lock, salt_of
from hagane.seal.names import check_name, is_name
from hagane.seal.private_files import read_private, write_private
from hagane.terms import ContractError, CorruptError, Refused
from hagane.terms.files import alone

NONCE = 12


@dataclass(frozen=True)
class Wrapped:
    """A file's key under a wrapping key, or a proof of a list under it."""

    generation: int
    """Generation of the wrapping key."""
    data: bytes
    """Nonce, ciphertext, tag."""


class Keyring:
    """Wrapping keys on disk. Several processes and threads may use it; a change is whole or not there.

    Args:
        folder: of the files, mode 0700; made by the first key.
        passphrase: asked, with the owner's name, when a file is protected; None refuses such files.
        clock: Unix nanoseconds; for tests.
    """

    def __init__(
        self, folder: Path, passphrase: Callable[[str], bytes] | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.folder, self._passphrase, self._clock = Path(folder), passphrase, clock
        self._mutex = threading.RLock()
        self._locks: dict[str, Lock] = {}
        self._read: dict[str, tuple[tuple[int, int, int], KeyFile]] = {}

    def path_of(self, owner: str) -> Path:
        """The file of an owner's keys, whether or not it exists.

        Raises:
            ConfigError: the owner's name is not safe.
        """
        return self.folder / f"{check_name(owner)}.keys"

    def owners(self) -> tuple[str, ...]:
        """Owners that have a file here, sorted."""
        return tuple(sorted(p.stem for p in self.folder.glob("*.keys") if is_name(p.stem)))

    def file_of(self, owner: str) -> KeyFile:
        """What an owner's file holds now; empty when there is none.

        Raises:
            ContractError: other users may read it; the passphrase is missing or wrong.
            CorruptError: it is damaged.
        """
        path = self.path_of(owner)
        with self._mutex:
            try:
                stat = path.stat()
            except FileNotFoundError:
                self._read.pop(owner, None)
                return KeyFile(owner)
            except OSError as e:
                raise ContractError(f"the keys cannot be read: {e.strerror}", where=str(path)) from None
            mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if owner not in self._read or self._read[owner][0] != mark:
                data = read_private(path)
                self._read[owner] = mark, decode(data, self._lock_of(owner, data, path), path, owner)
            return self._read[owner][1]

    def fresh(self, owner: str, name: str) -> int:
        """See that a data set or run has a wrapping key; returns its newest generation.

        Raises:
            ConfigError: the owner's or the data set's name is not safe.
            Refused: this key was erased on purpose.
            ContractError, CorruptError, StoreError: the file cannot be read or written.
        """
        check_name(name, "name of a key")
        self._refuse_erased(owner, name)
        if self.generations(owner, name):
            return self.generations(owner, name)[-1]

        def first(file: KeyFile) -> KeyFile:
            self._refuse_erased(owner, name)
            if any(k.name == name for k in file.keys):
                return file
            return replace(file, keys=(*file.keys, WrappingKey(name, 1, os.urandom(32), self._clock())))

        self.change(owner, first)
        return self.generations(owner, name)[-1]

    def enrol(self, owner: str, name: str, folder_id: str, path: Path) -> None:
        """Note that a sealed folder needs this key, so that no rotation forgets it.

        Raises:
            ContractError, CorruptError, StoreError: the file cannot be read or written.
        """
        place = Place(name, folder_id, str(path))
        self.change(owner, lambda file: replace(file, places=(*file.places, place)))

    def generations(self, owner: str, name: str) -> tuple[int, ...]:
        """Living generations of a key, oldest first; more than one only while a rotation is not finished.

        Raises:
            ContractError, CorruptError: the file cannot be read.
        """
        return tuple(sorted(k.generation for k in self.file_of(owner).keys if k.name == name))

    def wrap(self, owner: str, name: str, key: bytes, shard: str, contract: str) -> Wrapped:
        """Wrap a file's key; bound to owner, name, shard and contract.

        Args:
            owner: whose wrapping key.
            name: data set or run.
            key: 32 bytes.
            shard: 32 hex digits.
            contract: 64 hex digits.

        Raises:
            Refused: there is no such wrapping key, or it was erased.
            ContractError, CorruptError: the keys cannot be read.
        """
        return self._encrypt(owner, name, key, _about("key", owner, name, shard, contract))

    def unwrap(self, owner: str, name: str, wrapped: Wrapped, shard: str, contract: str) -> bytes:
        """The 32 bytes that `wrap` was given with the same words.

        Raises:
            Refused: there is no such wrapping key, or it was erased.
            CorruptError: another key, shard or contract than it was wrapped for; changed bytes.
        """
        return self._decrypt(owner, name, wrapped, _about("key", owner, name, shard, contract))

    def vouch(self, owner: str, name: str, text: bytes) -> Wrapped:
        """A proof that only a holder of the wrapping key can make for a text.

        Raises:
            Refused: as `wrap`.
        """
        return self._encrypt(owner, name, b"", _about("list", owner, name) + text)

    def check(self, owner: str, name: str, proof: Wrapped, text: bytes) -> None:
        """Check a proof of `vouch`.

        Raises:
            Refused: as `wrap`.
            CorruptError: the text is not the one that was vouched for.
        """
        self._decrypt(owner, name, proof, _about("list", owner, name) + text)

    def change(self, owner: str, step: Callable[[KeyFile], KeyFile]) -> KeyFile:
        """Replace an owner's file under the lock of the folder; an equal file is not written.

        Raises:
            ContractError, CorruptError, StoreError: the file cannot be read or written; it is as it was.
        """
        path = self.path_of(owner)
        with self._mutex, alone(self.folder / ".lock", private=True):
            before = self.file_of(owner)
            after = step(before)
            if after != before or not path.exists():
                write_private(path, encode(after, self._locks.get(owner)))
            return after

    def protect(self, owner: str, passphrase: bytes | None) -> None:
        """Protect an owner's file with a (new) passphrase; None takes the protection off.

        Raises:
            ContractError, CorruptError, StoreError: the file cannot be read or written; it is as it was.
        """
        path = self.path_of(owner)
        with self._mutex, alone(self.folder / ".lock", private=True):
            file = self.file_of(owner)
            lock = new_lock(passphrase) if passphrase is not None else None
            write_private(path, encode(file, lock))
            self._locks.pop(owner, None)
            if lock:
                self._locks[owner] = lock

    def _lock_of(self, owner: str, data: bytes, path: Path) -> Lock | None:
        salt, kept = salt_of(data, path), self._locks.get(owner)
        if not salt:
            self._locks.pop(owner, None)
            return None
        if kept and kept.salt == salt:
            return kept
        if self._passphrase is None:
            raise ContractError(
                f"the keys of {owner!r} are protected by a passphrase, and none was given",
                where=str(path),
                next_step="name the descriptor that it can be read from: --passphrase-fd N",
            )
        lock = open_lock(data, self._passphrase(owner), path)
        decode(data, lock, path, owner)  # a wrong passphrase is not kept
        self._locks[owner] = lock
        return lock

    def _refuse_erased(self, owner: str, name: str) -> None:
        if any(t.name == name for t in self.file_of(owner).erased):
            raise Refused(
                f"the key of {name!r} was erased on purpose: its sealed data can never be read again",
                where=str(self.path_of(owner)),
                next_step="bring the data in again under another name, if its owner wants that",
            )

    def _newest(self, owner: str, name: str, generation: int | None = None) -> WrappingKey:
        self._refuse_erased(owner, name)
        found = [k for k in self.file_of(owner).keys if k.name == name and generation in (None, k.generation)]
        if not found:
            which = "" if generation is None else f" of generation {generation}"
            raise Refused(
                f"there is no key{which} for {name!r} of {owner!r}",
                where=str(self.path_of(owner)),
                next_step="name the right folder of keys, or take the owner's file from a copy",
            )
        return max(found, key=lambda k: k.generation)

    def _encrypt(self, owner: str, name: str, data: bytes, about: bytes) -> Wrapped:
        key = self._newest(owner, name)
        nonce = os.urandom(NONCE)
        return Wrapped(key.generation, nonce + AESGCM(key.key).encrypt(nonce, data, about))

    def _decrypt(self, owner: str, name: str, wrapped: Wrapped, about: bytes) -> bytes:
        key = self._newest(owner, name, wrapped.generation)
        try:
            return AESGCM(key.key).decrypt(wrapped.data[:NONCE], wrapped.data[NONCE:], about)
        except (InvalidTag, ValueError):
            raise CorruptError(
                f"a key of {name!r} was changed, or belongs to another shard, contract or data set",
                where=str(self.path_of(owner)),
            ) from None


def _about(*words: str) -> bytes:
    return "\n".join(("hagane 1", *words, "")).encode()
