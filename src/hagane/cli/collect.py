"""What a verb made in the memory of its jail, sealed onto the disk by the keeper, and what lies sealed, laid into it.

Code in the jail may have made links in place of folders to lead the keeper elsewhere: every step below the jail's
root is one folder by its descriptor, and no link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from hagane.cli.house import House
from hagane.cli.sealed_run import KEPT, SealedRun, closing_fd
from hagane.terms import CorruptError, HaganeError, StoreError, digest_file
from hagane.terms.files import files_below, folder_at, write_whole

OURS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES})
"""Errors of the disk that a person has to know of."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
ODD = "a link, a pipe, an odd name or size, or not what the verb makes"
"""All that is said of what the jail chose itself."""


class Collector:
    """Moves what a verb makes between the jail's memory and the disk.

    Args:
        house: the site.
        size_bytes: of the jail's memory: nothing larger is believed.
    """

    def __init__(self, house: House, size_bytes: int) -> None:
        self.house, self.size_bytes = house, size_bytes
        sources = house.sources() if house.opens.makes else ()
        about = (house.catalog.site.operator, sources, house.opens.purpose)
        self.runs = {
            path: SealedRun(path, *about, steps=house.steps_of(path), words=house.words()) for path in house.opens.makes
        }
        """Runs that the verb makes or adds to, by folder."""
        self._taken = 0
        self._saved = threading.Event()
        self._ended = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold every run that the verb makes, and finish what a killed keeper left half done.

        Raises:
            StoreError: another keeper is at work on one of them.
        """
        with ExitStack() as held:
            for run in self.runs.values():
                held.enter_context(_only_one(run.folder))
                run.tidy()
            yield

    def fill(self, root: Path) -> None:
        """Lay the runs that the verb reads into its memory, before it runs."""
        for run in self.house.runs:
            run.unseal(_at(root, run.folder), self.house.keyring)

    def saved(self) -> None:
        """A checkpoint may be whole: look for it soon."""
        self._saved.set()

    @contextmanager
    def watching(self, root: Path) -> Iterator[None]:
        """Seal every checkpoint as it becomes whole, while the verb runs."""
        watcher = threading.Thread(target=self._watch, args=(root,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._ended = True
            self._saved.set()
            watcher.join()

    def collect(self, root: Path, texts: Mapping[str, bytes], code: int) -> None:
        """Seal and lay down all that the verb made; the jail has ended, and nothing in it runs.

        Raises:
            StoreError: the disk refuses; CorruptError: what was made is not what the verb makes.
        """
        for run in self.runs.values():
            with _nameless(run.folder):
                self._end(run, root, texts)
        if code == 0:
            for name in self.house.brings:
                with _nameless(self.house.catalog.root / "sets" / name):
                    self._take_set(root, name)
            with _nameless(self.house.catalog.root / "cache"):
                self._take_caches(root)
            for path in self.house.opens.gives:
                self._give(root, path)

    def _end(self, run: SealedRun, root: Path, texts: Mapping[str, bytes]) -> None:
        """Seal what is left of a run: the checkpoints, and the rest also where those cannot be taken."""
        try:
            with reached(root, run.folder) as place:
                if place is not None:
                    self._take(run, place)
        finally:
            with reached(root, run.folder) as place:
                if place is not None:
                    self._take_rest(run, place, texts)

    def _watch(self, root: Path) -> None:
        while True:
            self._saved.wait()
            self._saved.clear()
            if self._ended:
                return
            for run in self.runs.values():
                # what changes while it is looked at is looked at again; what is still odd in the end is said then
                with suppress(HaganeError, OSError), reached(root, run.folder) as place:
                    if place is not None and self._taken < KEPT:
                        # a checkpoint goes on with the configuration and the skips that lie beside it: those first
                        self._take(run, place, partial(self._take_rest, run, place, {}))

    def _take_rest(self, run: SealedRun, place: int, texts: Mapping[str, bytes]) -> None:
        run.take_rest(place, self.house.keyring, self.size_bytes, texts)
        self._note(run, "rest")

    def _take(self, run: SealedRun, place: int, first: Callable[[], None] = lambda: None) -> None:
        run.write_lineage()
        for name in run.take_checkpoints(place, self.house.keyring, self.size_bytes, first):
            self._taken += 1
            self._note(run, name)

    def _note(self, run: SealedRun, name: str) -> None:
        digest = digest_file(run.sealed / name / "sealed.json")
        datasets = {s.dataset: s.digest for s in run.sources}
        self.house.ledger.append(
            "sealed", {"run": run.folder.name, "folder": name, "list": digest, "datasets": datasets}
        )

    def _take_set(self, root: Path, name: str) -> None:
        from hagane.catalog.sealing import seal_set

        house, catalog, signed = self.house, self.house.catalog, self.house.brings[name]
        target = catalog.root / "sets" / name
        made = folder_in(root, target)
        if made is None:
            return  # the same content was there before
        if target.exists():
            raise StoreError(f"data set {name!r} was brought in by somebody else meanwhile", where=str(target))
        about = (house.keyring, name, signed, catalog.site.name)
        seal_set(made, target, *about, most_bytes=self.size_bytes, machines=house.opens.words)
        house.came_in(name)

    def _take_caches(self, root: Path) -> None:
        """Caches that were made; one that lay there before is mounted, and no new folder."""
        from hagane.catalog.sealing import seal_cache

        house, caches = self.house, self.house.catalog.root / "cache"
        for folder, name in house.caches().items():  # a name of the jail's own would stand open
            target = caches / folder
            made = None if target.exists() else folder_in(root, target)
            if made is not None:
                signed = house.brings.get(name) or house.catalog.contract(name)
                seal_cache(made, target, house.keyring, name, signed, most_bytes=self.size_bytes)

    def _give(self, root: Path, path: Path) -> None:
        """A page or a folder that leaves as plaintext: its purpose is to be looked at or to be given away.

        The verb found its own place free; what lies there now was put there since, and stays.
        """
        found = [str(p) for p in self._given(root, path)]
        for name in self.house.datasets if found and not self.house.opens.handed else ():
            facts = {"files": {f: digest_file(Path(f)) for f in found[:100]}, "count": len(found)}
            self.house.catalog.note("left", name, {**facts, "purpose": self.house.opens.purpose})

    def _given(self, root: Path, path: Path) -> Iterator[Path]:
        to = self.house.opens.handed or path
        with reached(root, path.parent) as above:
            if above is None:
                return
            try:
                kind = os.stat(path.name, dir_fd=above, follow_symlinks=False).st_mode
            except OSError:
                return  # the verb made none
            if stat.S_ISREG(kind):
                with closing_fd(os.open(path.name, _FILE, dir_fd=above)) as file:
                    yield self._copied(file, to)
        if stat.S_ISDIR(kind):
            with reached(root, path) as top:
                for name, file in files_below(top) if top is not None else ():
                    yield self._copied(file, to / name)

    def _copied(self, file: int, to: Path) -> Path:
        """Copy an open file out; it is whole or absent."""
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > self.size_bytes:
            raise CorruptError("what should leave is no plain file", where=str(to))
        to.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "rb", closefd=False) as f:
            write_whole(to, iter(lambda: f.read(1 << 20), b""))
        return to


@contextmanager
def _nameless(place: Path) -> Iterator[None]:
    """Errors of the block without the words that the jail chose: a name in a message would be a way out.

    Raises:
        CorruptError: what was made cannot be taken.
    """
    try:
        yield
    except (HaganeError, OSError) as e:
        number = _errno_of(e)
        why = os.strerror(number) if number in OURS else ODD
        raise CorruptError(
            f"what came out of the jail cannot be taken: {why}",
            where=str(place),
            next_step="what was whole before is as it was; see the code that ran, or free some disk",
        ) from None


def _errno_of(error: BaseException | None) -> int:
    """Of the system's error behind another one; 0 where there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return (error.errno or 0) if error is not None else 0


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a run's lock.

    Raises:
        StoreError: another keeper has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / ".keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with closing_fd(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                "another keeper is at work on this run", where=str(folder), next_step="wait until it has ended"
            ) from None
        yield


@contextmanager
def reached(root: Path, path: Path) -> Iterator[int | None]:
    """Descriptor of a folder below the root of a jail, reached without following a link; None when it is not there.

    Raises:
        CorruptError: something on the way is a link or no folder.
    """
    try:
        fd = folder_at(root, path.absolute())
    except FileNotFoundError:
        yield None
        return
    except OSError:
        raise CorruptError("a link or file where a folder should be", where=str(path)) from None
    with closing_fd(fd):
        yield fd


def folder_in(root: Path, path: Path) -> Path | None:
    """A folder below the root of a jail in which nothing runs any more, so that nobody puts a link in its way now.

    Raises:
        CorruptError: as `reached`.
    """
    with reached(root, path) as fd:
        return None if fd is None else _at(root, path)


def _at(root: Path, path: Path) -> Path:
    return root / path.absolute().relative_to("/")
