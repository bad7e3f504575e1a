"""Sealed files and folders that several tests share."""

from __future__ import annotations

from pathlib import Path

from hagane.seal.folder import SealedFolder
from hagane.seal.folder_write import seal_folder
from hagane.seal.keyring import Keyring
from hagane.seal.shards import Layout

KEY = bytes(range(32))
SHARD = "a1" * 16
CONTRACT = "c0" * 32
OWNER = "member-cars"


def plaintexts(salt: bytes) -> dict[str, bytes]:
    """A small data set: even records, pictures of uneven length, a text; every 8 bytes differ between salts."""
    return {
        "rows.bin": b"".join(salt + b"row%05d" % i + bytes(range(24)) for i in range(9)),
        "pictures/front.000.bin": b"".join(salt + b"jpeg" * (i % 5) for i in range(7)),
        "record.json": b'{"frames": 9, "of": "%s"}' % salt,
        "none": b"",
    }


def write_plain(folder: Path, salt: bytes) -> dict[str, bytes]:
    """The data set as files; returns what was written."""
    files = plaintexts(salt)
    for path, data in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return files


def sealed(folder: Path, name: str, keyring: Keyring, *, owner: str = OWNER, contract: str = CONTRACT) -> SealedFolder:
    """The data set sealed in `folder/name`; its plaintext is in `folder/plain-name`."""
    salt = b"<%s>" % name.encode()
    files = write_plain(folder / f"plain-{name}", salt)
    pictures = "pictures/front.000.bin"
    sizes = [len(salt + b"jpeg" * (i % 5)) for i in range(7)]
    assert sum(sizes) == len(files[pictures])
    layouts = {"rows.bin": Layout(len(files["rows.bin"]) // 9), pictures: Layout(sizes=sizes)}
    plain = {"record.json": "counts only"}
    return seal_folder(folder / f"plain-{name}", folder / name, keyring, name, owner, contract, layouts, plain)
