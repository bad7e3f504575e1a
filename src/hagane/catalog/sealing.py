"""What of a data set lies sealed, what lies open and why, and how each file is cut into records.

The keeper calls `seal_set` and `seal_cache` after code in a jail made a folder. That code is not trusted: what lies
open must be what trusted code expects to the byte, and sizes that it wrote down are believed only where they add up.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from hagane.catalog import pictures, video
from hagane.catalog.columns import PICTURE_MODES, read_facts
from hagane.catalog.manifest import NAME as MANIFEST
from hagane.catalog.manifest import read_manifest
from hagane.catalog.shelf import PlainShelf
from hagane.catalog.store import OURS, RECORD, as_json, put_contract
from hagane.intake.lerobot_journal import disk_error
from hagane.seal import (
    Keyring,
    Layout,
    OwnKeys,
    SealedFolder,
    SignedContract,
    check_name,
    is_digest,
    is_name,
    open_folder,
    seal_folder,
)
from hagane.seal.folder import check_proof_of, vouched_for
from hagane.seal.folder_write import folder_of
from hagane.seal.sealed_list import NAME as LIST
from hagane.seal.sealed_list import PlainEntry, write_list
from hagane.terms import CorruptError, StoreError, digest_bytes
from hagane.terms.embodiment import Domain
from hagane.terms.files import check_total


@dataclass(frozen=True)
class Tier:
    """One kind of file."""

    where: str
    """Glob below a site's folder."""
    sealed: bool
    """False: it lies open."""
    why: str
    """How it is cut into records; or why it lies open."""


_RECORD = "what `hagane catalog ls` shows: names, counts, length, digest of the whole; no recorded value"
_TERMS = "the owner's terms and signature: they are verified before a key is asked for"
PLAINTEXT: Mapping[str, str] = {
    RECORD: _RECORD,
    f"{OURS}/contract.toml": _TERMS,
    f"{OURS}/contract.toml.sig": _TERMS,
}
"""Reason by path of the files of a set that lie open. Of a cache none does: its index names episodes and tasks."""
_ROWS_BYTES = 4096
"""Of one sealed record of control steps, at most, where a step is smaller: a call costs as much as some KiB."""
_MOST = 10**12
"""Of episodes, steps, findings or seconds of a set: a number without end could be anything."""
_SET, _CACHE = "catalog/sets/*", "catalog/cache/*"
TIERS = (
    *(Tier(f"{_SET}/{path}", False, why) for path, why in PLAINTEXT.items()),
    Tier(f"{_SET}/sealed.json", False, "the list: digests of ciphertexts, wrapped keys; no digest of a plaintext"),
    Tier(f"{_SET}/data/**", True, "a record an episode"),
    Tier(f"{_SET}/{OURS}/streams/**", True, "a record an episode"),
    Tier(f"{_SET}/meta/**", True, "64 KiB; tasks, ids and statistics of episodes"),
    Tier(f"{_SET}/{OURS}/manifest.json", True, "64 KiB; its digests of small files would confirm guesses"),
    Tier(f"{_SET}/{OURS}/embodiment.toml", True, "64 KiB; channels and limits are how a plant works"),
    Tier(f"{_SET}/{OURS}/episodes.json", True, "64 KiB; ids, tasks, outcomes, findings"),
    Tier(f"{_SET}/{OURS}/stats.npz", True, "64 KiB; ranges and quantiles of every channel"),
    Tier(f"{_CACHE}/sealed.json", False, "as that of a set"),
    Tier(f"{_CACHE}/rows.bin", True, "neighbouring control steps, about 4 KiB; a sample is a window of them"),
    Tier(f"{_CACHE}/pictures-*.[0-9]*.bin", True, "a record a picture, or a video of an episode"),
    Tier(f"{_CACHE}/pictures-*.index.bin", True, "64 KiB; sizes of pictures tell what they show"),
    Tier(f"{_CACHE}/flags.bin", True, "64 KiB"),
    Tier(f"{_CACHE}/last.bin", True, "64 KiB"),
    Tier(f"{_CACHE}/index.json", True, "64 KiB; ids, tasks, lengths"),
    Tier("catalog/memory.json", False, "what the site remembers of contracts: owner, data set, number, newest day"),
    Tier("catalog/.memory.json.lock", False, "empty"),
    Tier("catalog/.locks/*", False, "empty; a name of a data set each"),
)
"""Every file of a data set under a contract that asks for a jail. Journals in catalog/staging and caches in the making
live in the jail's private memory only, and never reach the disk."""


@dataclass(frozen=True)
class CatalogKeys:
    """Keys of all sealed folders of a catalog, out of a keyring: outside of jails only."""

    root: Path
    """Folder of the catalog."""
    keyring: Keyring
    """Holds the wrapping keys."""

    def key(self, dataset: str, shard: str) -> bytes:
        """As `hagane.seal.Keys.key`.

        Raises:
            Refused: there is no wrapping key.
            StoreError: no such shard; CorruptError: a list is not the one that was sealed.
        """
        check_name(dataset, "data set name")
        for place in (self.root / "sets" / dataset, *sorted((self.root / "cache").glob(f"{dataset}-*"))):
            if (place / LIST).exists():
                folder = open_folder(place)
                if folder.name == dataset and shard in folder.shards:
                    return OwnKeys(folder, self.keyring).key(dataset, shard)
        raise StoreError(f"no shard {shard!a} of {dataset!a} is listed", where=str(self.root))


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """record.json, strictly."""

    digest: str
    domain: Domain
    embodiment: str
    episodes: int
    findings: int
    name: str
    owner: str
    seconds: float
    site: str
    steps: int


def seal_set(
    made: Path | int,
    target: Path,
    keyring: Keyring,
    name: str,
    signed: SignedContract,
    site: str,
    most_bytes: int | None = None,
    machines: frozenset[str] | None = None,
) -> SealedFolder:
    """Seal a finished data set, whole or not at all.

    Args:
        made: its folder, in plaintext, that nothing writes to any more; or a descriptor of it, which stays open.
        target: the folder to make, `sets/<name>` of a catalog.
        keyring: gets a wrapping key of that data set when it has none.
        name: data set.
        signed: the contract that it came under, verified.
        site: name of the site that it was brought in at.
        most_bytes: a folder whose files claim more in all is refused before it is looked at.
        machines: names that its machine may have; None: any.

    Raises:
        CorruptError: what is to lie open is not what it should be, or its own facts do not add up.
        StoreError: the target exists; a link or odd name; it is too large; the disk refuses.
        Refused: the key of that name was erased.
    """
    owner, contract = signed.contract.owner, signed.digest
    with folder_of(made) as fd:
        folder = _bounded(made, fd, most_bytes)
        shelf = PlainShelf(folder)
        _check_record(shelf, name, owner, site, machines)
        for path, told in ((f"{OURS}/contract.toml", signed.toml), (f"{OURS}/contract.toml.sig", signed.signature)):
            if _no_link(shelf, path).read(path) != told:
                raise _odd(folder, path, "it is not the contract that the data came under")
        layouts = layouts_of(folder)
        return seal_folder(fd, target, keyring, name, owner, contract, layouts, PLAINTEXT, most_bytes=most_bytes)


def seal_cache(
    made: Path | int,
    target: Path,
    keyring: Keyring,
    name: str,
    signed: SignedContract,
    most_bytes: int | None = None,
) -> SealedFolder:
    """Seal a finished training cache; one of an earlier version that lies at the target goes.

    Args:
        made: its folder, as of `seal_set`.
        target: the folder to make, in `cache/` of a catalog.
        keyring: as `seal_set`.
        name: the data set that it was made from.
        signed: that data set's contract, verified.
        most_bytes: as `seal_set`.

    Raises:
        as `seal_set`.
    """
    owner, contract = signed.contract.owner, signed.digest
    with folder_of(made) as fd:
        layouts = layouts_of(_bounded(made, fd, most_bytes))
        shutil.rmtree(target, ignore_errors=True)
        return seal_folder(fd, target, keyring, name, owner, contract, layouts, most_bytes=most_bytes)


def renew_set(folder: Path, signed: SignedContract, keyring: Keyring) -> None:
    """Put a newer contract of the same owner beside a sealed data set; the data stay bound to the one that they were
    sealed under. Killed on the way, list and contract differ, and the set stays closed until this is done again.

    Raises:
        CorruptError: the list is not the one that was sealed.
        Refused: there is no key for this data set.
        StoreError: the disk refuses.
    """
    sealed = open_folder(folder)
    check_proof_of(sealed, keyring)
    texts = {f"{OURS}/contract.toml": signed.toml, f"{OURS}/contract.toml.sig": signed.signature}
    entries = {path: PlainEntry(_TERMS, digest_bytes(data), len(data)) for path, data in texts.items()}
    listed = replace(sealed.listed, plain=dict(sorted({**sealed.listed.plain, **entries}.items())))
    try:
        put_contract(folder / OURS, signed)
        write_list(folder, vouched_for(listed, keyring))
    except OSError as e:
        raise disk_error(e, folder) from None


def layouts_of(folder: Path) -> dict[str, Layout]:
    """How the files of a set or a cache in plaintext are cut into records; those not named take the usual 64 KiB.

    Raises:
        CorruptError: what the folder says about itself does not add up.
    """
    shelf = PlainShelf(folder)
    try:
        if (folder / OURS / MANIFEST).exists():
            return _of_set(shelf)
        return _of_cache(shelf)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as e:
        raise _odd(folder, "", f"its index does not add up ({type(e).__name__})") from None


def _of_set(shelf: PlainShelf) -> dict[str, Layout]:
    """An episode a record in Parquet files: magic, row groups, footer."""
    out = {}
    place = f"{OURS}/{MANIFEST}"
    for path, told in read_manifest(_no_link(shelf, place), place).items():
        if "groups" in told:
            ends = [4, *(int(end) for _, end, _ in told["groups"]), _no_link(shelf, path).size(path)]
            out[path] = Layout(sizes=_sizes(shelf, path, ends))
    return out


def _of_cache(shelf: PlainShelf) -> dict[str, Layout]:
    facts = read_facts(_no_link(shelf, "index.json"))
    steps, size = sum(int(n) for n in facts["lengths"]), _no_link(shelf, "rows.bin").size("rows.bin")
    if facts["mode"] not in PICTURE_MODES or (steps and size % steps) or bool(steps) != bool(size):
        raise _odd(shelf.folder, "rows.bin", "its records are not of one size")
    each = size // steps if steps else 0
    out = {"rows.bin": Layout(stride=each * max(_ROWS_BYTES // each, 1))} if steps else {}
    for path in (n for n in shelf.names() if n.endswith(".index.bin")):
        index = _no_link(shelf, path).map(path).view(pictures.INDEX if facts["mode"] == "jpeg" else video.INDEX)
        shard = index["shard"] if facts["mode"] == "jpeg" else np.zeros(len(index), np.int64)
        for number in np.unique(shard).tolist():
            name = f"{path.removesuffix('.index.bin')}.{number:03d}.bin"
            here = index[shard == number]
            begins, ends = here["offset"].tolist(), (here["offset"] + here["length"]).tolist()
            if begins != [0, *ends[:-1]]:
                raise _odd(shelf.folder, name, "its pictures do not lie end to end")
            out[name] = Layout(sizes=_sizes(shelf, name, ends))
    return out


def _sizes(shelf: PlainShelf, path: str, ends: list[int]) -> list[int]:
    """Bytes between ends, which must not fall and must reach the end of the file."""
    sizes = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    if min(sizes, default=0) < 0 or sum(sizes) != _no_link(shelf, path).size(path):
        raise _odd(shelf.folder, path, "its index is that of another file")
    return sizes


def _check_record(shelf: PlainShelf, name: str, owner: str, site: str, machines: frozenset[str] | None) -> None:
    """record.json lies open, so nothing may stand in it but what is expected."""
    data = _no_link(shelf, RECORD).read(RECORD)
    try:
        told = msgspec.json.decode(data, type=_Told)
    except (msgspec.DecodeError, RecursionError):
        raise _odd(shelf.folder, RECORD, "it is no record of a data set") from None
    hexadecimal = is_digest(told.digest)
    known = (told.name, told.owner, told.site) == (name, owner, site) and is_name(told.embodiment)
    known = known and (machines is None or told.embodiment in machines)
    counts = (told.episodes, told.steps, told.findings)
    bounded = min(counts) >= 0 and max(counts) < _MOST and 0 <= told.seconds < _MOST
    if not (hexadecimal and known and bounded) or data != as_json(msgspec.structs.asdict(told)):
        raise _odd(shelf.folder, RECORD, "it says other things than the record of this data set")


def _bounded(made: Path | int, fd: int, most_bytes: int | None) -> Path:
    """A path to a folder, once nothing in it claims to be larger than it can be: parts of it are read into memory."""
    if most_bytes is not None:
        check_total(fd, most_bytes)
    return made if isinstance(made, Path) else Path(f"/proc/self/fd/{fd}")


def _no_link(shelf: PlainShelf, path: str) -> PlainShelf:
    """The shelf, when nothing on the way to a file leads elsewhere: the folder's maker is not trusted."""
    place = shelf.folder
    for part in Path(path).parts:
        place /= part
        if place.is_symlink() or part == "..":
            raise _odd(shelf.folder, path, "a link, which is not followed")
    return shelf


def _odd(folder: Path, path: str, what: str) -> CorruptError:
    return CorruptError(f"cannot be sealed: {what}", where=str(folder / path), next_step="make the folder again")
