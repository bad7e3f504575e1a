"""`hagane keys`: the keys of sealed data: new, ls, rotate, passphrase, erase."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from hagane.cli.site import ledger_of
from hagane.seal import Keyring, check_name, erase, out_of_reach, rotate
from hagane.terms import ConfigError

Name = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class Where:
    """What all of them need."""

    owner: str
    """The member whose keys they are."""
    home: Path = Path()
    """The site's folder; its keys/ holds one file an owner."""
    passphrase_fd: int = -1
    """Descriptor to read the passphrase from, its first line; without one, a protected file asks at the terminal."""


W = TypeVar("W", bound=Where)


@dataclass(frozen=True)
class New(Where):
    """Make the key of a data set or run, as sealing its first file does by itself."""

    name: Name = ""
    """Data set or run."""


@dataclass(frozen=True)
class Ls(Where):
    """List an owner's keys: generations, sealed folders, and what was erased."""


@dataclass(frozen=True)
class Rotate(Where):
    """Put the keys of all sealed files under a new wrapping key, and destroy the old one. Data are not touched."""

    name: Name = ""
    """Data set or run."""
    folder: tuple[Path, ...] = ()
    """Sealed folders that were moved since they were made."""
    gone: bool = False
    """Go on although folders are missing: these can then never be read again."""


@dataclass(frozen=True)
class Passphrase(Where):
    """Protect an owner's file of keys with a passphrase, or change it."""

    new_fd: int = -1
    """Descriptor to read the new passphrase from; without one it is asked for, twice."""
    remove: bool = False
    """Take the protection off."""


@dataclass(frozen=True)
class Erase(Where):
    """Destroy the key of a data set or run: its sealed files can never be read again, wherever copies of them lie."""

    name: Name = ""
    """Data set or run."""
    yes: str = ""
    """The name once more: there is no way back."""


def new(argv: list[str]) -> int:
    """Run `hagane keys new`."""
    o, keyring = _open(New, "new", argv)
    generation = keyring.fresh(o.owner, o.name)
    print(f"{keyring.path_of(o.owner)}: key of {o.name}, generation {generation}; who holds this file reads the data")
    return 0


def ls(argv: list[str]) -> int:
    """Run `hagane keys ls`."""
    o, keyring = _open(Ls, "ls", argv)
    file = keyring.file_of(o.owner)
    for key in file.keys:
        print(f"{key.name}  generation {key.generation}  made {_day(key.made_ns)}")
        for place in file.places:
            if place.name == key.name:
                print(f"  {place.path}")
    for stone in file.erased:
        print(f"{stone.name}  erased {_day(stone.time_ns)}")
    if not file.keys and not file.erased:
        print(f"no keys of {o.owner} in {keyring.folder}")
    return 0


def rotate_(argv: list[str]) -> int:
    """Run `hagane keys rotate`; exit code 1 while folders are missing."""
    o, keyring = _open(Rotate, "rotate", argv)
    done = rotate(keyring, o.owner, o.name, o.folder, gone=o.gone)
    for path in done.folders:
        print(f"{path}: keys are under generation {done.generation}")
    for place in done.missing:
        print(f"{place.path}: not found" + ("; it can never be read again" if done.destroyed else ""))
    if done.missing and not done.destroyed:
        print("the old key is kept: name where they are with --folder, or say --gone if they are no more")
        return 1
    print(f"destroyed: generation {', '.join(map(str, done.destroyed))}; copies of {keyring.folder} still hold it")
    return 0


def passphrase(argv: list[str]) -> int:
    """Run `hagane keys passphrase`."""
    o, keyring = _open(Passphrase, "passphrase", argv)
    if not keyring.path_of(o.owner).exists():
        raise ConfigError(f"{o.owner!r} has no keys here", where=str(keyring.folder), next_step="hagane keys new")
    if o.remove:
        keyring.protect(o.owner, None)
        print(f"{keyring.path_of(o.owner)}: not protected any more; who can read the file reads the data")
        return 0
    word = _line(o.new_fd) if o.new_fd >= 0 else _ask_twice(o.owner)
    if not word:
        raise ConfigError("the new passphrase is empty", where="hagane keys passphrase")
    keyring.protect(o.owner, word)
    print(f"{keyring.path_of(o.owner)}: protected; without the passphrase nobody reads the data, you included")
    return 0


def erase_(argv: list[str]) -> int:
    """Run `hagane keys erase`, also as `hagane erase`."""
    o, keyring = _open(Erase, "erase", argv)
    if o.yes != o.name:
        raise ConfigError(
            f"erasing {o.name!r} cannot be undone", where="hagane keys erase", next_step=f"say it again: --yes {o.name}"
        )
    ledger = ledger_of(o.home)
    done = erase(keyring, o.owner, o.name, ledger.append)
    print(f"erased: the key of {o.name}, {len(done.generations)} generation(s); ledger entry {done.entry}")
    for place in done.places:
        print(f"  {place.path}: nobody can read it any more; its files may be deleted")
    print("not reached by this:")
    for line in out_of_reach(o.name, ledger.entries()):
        print(f"  {line}")
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "new": new,
    "ls": ls,
    "rotate": rotate_,
    "passphrase": passphrase,
    "erase": erase_,
}


def main(argv: list[str]) -> int:
    """Run `hagane keys VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane keys {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane keys: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2


def _open(kind: type[W], verb: str, argv: list[str]) -> tuple[W, Keyring]:
    """Flags, and the site's keyring."""
    o = tyro.cli(kind, args=argv, prog=f"hagane keys {verb}")
    check_name(o.owner)
    if hasattr(o, "name"):
        check_name(o.name, "name of a data set or run")
    return o, Keyring(o.home / "keys", lambda owner: passphrase_of(owner, o.passphrase_fd))


def passphrase_of(owner: str, fd: int = -1) -> bytes:
    """A passphrase from a descriptor or the terminal; never from a flag: other users see the flags of a process.

    Raises:
        ConfigError: there is neither.
    """
    if fd >= 0:
        return _line(fd)
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the keys of {owner!r} are protected by a passphrase, and there is no terminal to ask at",
            next_step="name a descriptor to read it from: --passphrase-fd 3 3<FILE",
        )
    return getpass.getpass(f"passphrase of {owner}: ").encode()


def _ask_twice(owner: str) -> bytes:
    first = passphrase_of(owner, -1)
    if passphrase_of(f"{owner}, again", -1) != first:
        raise ConfigError("the two passphrases differ", where="hagane keys passphrase")
    return first


def _line(fd: int) -> bytes:
    try:
        with os.fdopen(os.dup(fd), "rb") as f:
            return f.readline(4096).rstrip(b"\n")
    except OSError as e:
        raise ConfigError(f"descriptor {fd} cannot be read: {e.strerror}", next_step="open it: 3<FILE") from None


def _day(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).date().isoformat()
