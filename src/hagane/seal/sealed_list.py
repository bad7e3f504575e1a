"""sealed.json: which files of a folder are sealed, under which keys, and which lie open and why.

It gives the sha256 and size of every file as it lies on disk, so a folder can be checked without a key. It does not
give the sha256 of a plaintext: that would confirm a guess. Every changed byte shows without a key (sha256); a list that
somebody wrote anew shows with one (a proof under the wrapping key).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec

from hagane.seal.names import is_name
from hagane.terms import CorruptError, StoreError, digest_bytes
from hagane.terms.files import DEPTH, write_whole

NAME, VERSION = "sealed.json", 1
SUFFIX = ".sealed"
"""A sealed file's name on disk ends with it."""
_LIMIT = 1 << 30


class SealedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sealed file, `<path>.sealed` on disk."""

    shard: str
    """Shard id, 32 hex digits."""
    sha256: str
    """Of the sealed file, hex."""
    size: int
    """Bytes of the sealed file."""
    generation: int
    """Of the wrapping key."""
    wrapped: bytes
    """The file's key under it: nonce, ciphertext, tag."""


class PlainEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that lies open."""

    reason: str
    """Why, in words."""
    sha256: str
    """Of its bytes, hex."""
    size: int
    """Its bytes."""


class SealedList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of sealed.json."""

    version: int
    """Of this form."""
    id: str
    """Of the folder, 32 hex digits; the keyring knows it by this."""
    name: str
    """Data set or run: the name of the wrapping key."""
    owner: str
    """Whose wrapping key."""
    contract: str
    """sha256 of the contract that the data were sealed under, hex."""
    files: dict[str, SealedEntry]
    """By path in the plaintext folder, with /."""
    plain: dict[str, PlainEntry]
    """By path."""
    generation: int = 0
    """Of the wrapping key that vouches."""
    proof: bytes = b""
    """Proof for all of the above."""
    sha256: str = ""
    """Of all of the above, hex."""

    def vouched(self) -> bytes:
        """What the proof is for."""
        return msgspec.json.encode(msgspec.structs.replace(self, generation=0, proof=b"", sha256=""))


def read_list(folder: Path) -> SealedList:
    """Read and check sealed.json, but for its proof.

    Raises:
        StoreError: it cannot be read: this is no sealed folder.
        CorruptError: it is not what was written.
    """
    path = folder / NAME
    try:
        with path.open("rb") as f:
            data = f.read(_LIMIT)
    except OSError as e:
        raise StoreError(f"no sealed folder: {e.strerror}", where=str(path)) from None
    try:
        found = msgspec.json.decode(data, type=SealedList)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _damaged(path) from None
    if _encoded(found) != data or found.version != VERSION or not _sound(found):
        raise _damaged(path)
    return found


def write_list(folder: Path, new: SealedList) -> None:
    """Write sealed.json: the old one or the new one, never half of it.

    Raises:
        OSError: the disk refuses.
    """
    write_whole(folder / NAME, [_encoded(new)])


def check_path(path: str) -> str:
    """The path itself, when it is one of a file below its folder on every system.

    Raises:
        StoreError: empty or odd parts, letters that do not print, too many folders.
    """
    parts = path.split("/")
    good = len(parts) <= DEPTH and all(p not in ("", ".", "..") and p.isprintable() and "\\" not in p for p in parts)
    if good and path != NAME and path.isprintable():
        return path
    raise StoreError(f"a file's name is not usable in a sealed folder: {path!a}", next_step="name it otherwise")


def on_disk(folder: Path, path: str, *, sealed: bool) -> Path:
    """Where a listed file lies."""
    return folder / PurePosixPath(path + SUFFIX if sealed else path)


def _encoded(value: SealedList) -> bytes:
    bare = msgspec.structs.replace(value, sha256="")
    digest = digest_bytes(msgspec.json.encode(bare))
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(bare, sha256=digest)), indent=1) + b"\n"


def _sound(value: SealedList) -> bool:
    """True when nothing in it could lead outside the folder or to a key of another kind."""
    try:
        for path in (*value.files, *value.plain):
            check_path(path)
    except StoreError:
        return False
    taken = {path + SUFFIX for path in value.files}
    return (
        is_name(value.name)
        and is_name(value.owner)
        and _hex(value.id, 32)
        and _hex(value.contract, 64)
        and all(_hex(e.shard, 32) and len(e.wrapped) == 60 for e in value.files.values())
        and len({e.shard for e in value.files.values()}) == len(value.files)
        and not taken & set(value.plain)
    )


def _hex(text: str, digits: int) -> bool:
    return len(text) == digits and not set(text) - set("0123456789abcdef")


def _damaged(path: Path) -> CorruptError:
    return CorruptError(
        "the list of sealed files is not the one that was written", where=str(path), next_step="restore it from a copy"
    )
