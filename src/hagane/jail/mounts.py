"""Mounts: a root of our own on a tmpfs. Of the host it holds only what the order binds, read-only.

Trees are cloned as file descriptors and attached below descriptors of the new root, each step without following
links, so that no name on the host or in a bound folder can lead a mount elsewhere (open_tree(2), move_mount(2)).
"""

from __future__ import annotations

import ctypes
import os
import stat

from hagane.jail.order import Order
from hagane.jail.syscalls import call, libc

# include/uapi/linux/mount.h and fcntl.h
_AT_FDCWD, _AT_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_TREE_CLONE = 1
_FROM_FD, _TO_FD = 0x4, 0x40
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
"""Attributes of a mount."""
_PRIVATE = 1 << 18
_LINK, _WORK = -1, -2
_MNT_DETACH = 2
_PLACE = "/tmp"  # where the new root is put together; trees are cloned before it is covered
AREA = ".area"
"""Name of the private work area below the new root while it is put together."""
SHARED = ("/tmp", "/dev/shm")
"""Folders of the work area that every jail has."""
DEVICES = ("null", "zero", "full", "random", "urandom")
"""All devices of a jail: no terminal, no disk."""
_PROC_KEPT = frozenset(("self", "thread-self", "net", "mounts", "filesystems", "version", "sys")) | frozenset(
    ("cpuinfo", "meminfo", "stat", "vmstat", "uptime", "loadavg")
)


class _Attributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def tmpfs(size_bytes: int, inodes: int, mode: str, noswap: bool = False) -> int:
    """A new tmpfs that is attached nowhere yet; returns its descriptor. `noswap` is for real root alone (Linux 6.4).

    Raises:
        OSError: no right to mount, or no such option.
    """
    options = {"size": str(size_bytes), "nr_inodes": str(inodes), "mode": mode}
    return _filesystem(b"tmpfs", options, ("noswap",) if noswap else (), NOSUID | NODEV)


def may_forbid_swap() -> bool:
    """Whether we are root outside of any user namespace, whom alone tmpfs grants "noswap"."""
    with open("/proc/self/uid_map", "rb") as f:
        return os.geteuid() == 0 and f.read().split() == [b"0", b"0", b"4294967295"]


def work_area(size_bytes: int, noswap: bool) -> int:
    """The private work area: a tmpfs of limited size, attached nowhere yet. Before Linux 6.4 swap cannot be forbidden.

    Raises:
        OSError: as `tmpfs`.
    """
    try:
        return tmpfs(size_bytes, 1 << 18, "755", noswap)
    except OSError as e:
        if not noswap or e.errno != 22:  # EINVAL: no such option
            raise
        return tmpfs(size_bytes, 1 << 18, "755")


def clone(source: str, set_attributes: int) -> int:
    """A copy of the tree mounted at a path, with attributes added on all of it; returns its descriptor.

    The last part of the path is not followed when it is a link.

    Raises:
        OSError: the path is not there, or the kernel is older than 5.12.
    """
    flags = _TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_NOFOLLOW
    fd = call("open_tree", _AT_FDCWD, source.encode(), flags)
    if set_attributes:
        attributes = _Attributes(attr_set=set_attributes)
        call("mount_setattr", fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    return fd


def attach(fd: int, place: int | str) -> None:
    """Mount a detached tree on a file or folder, given by path or descriptor, and close the tree's descriptor.

    Raises:
        OSError: as move_mount(2).
    """
    there = os.open(place, os.O_PATH | os.O_CLOEXEC) if isinstance(place, str) else place
    try:
        call("move_mount", fd, b"", there, b"", _FROM_FD | _TO_FD)
    finally:
        os.close(fd)
        if there != place:
            os.close(there)


def build_root(order: Order, area: int, proc: int) -> None:
    """Put the new root together and make it ours; nothing of the old one can be reached afterwards.

    Args:
        order: reads, works, sockets and files; without "read_only" reads may be written, without "private_tmpfs" works
            are the host's own folders (for trials of what each layer stops).
        area: descriptor of the detached work area, which is put to use.
        proc: descriptor of the detached /proc.

    Raises:
        OSError: with the path it was about.
    """
    attributes = _Attributes(propagation=_PRIVATE)
    call("mount_setattr", _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    trees = [("/proc", "proc", proc), *_clone_all(order)]
    attach(tmpfs(8 << 20, 4096, "755"), _PLACE)
    os.chdir(_PLACE)
    top = os.open(_PLACE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    attach(area, point(top, "/" + AREA, folder=True))
    for path, data in order.files.items():
        _put(top, path, data)
    for target, source, fd in trees:
        try:
            _attach_at(top, target, source, fd)
        except OSError as e:
            raise OSError(e.errno, e.strerror, f"{source} on {target}") from None
    libc("umount2", f"{_PLACE}/{AREA}".encode(), _MNT_DETACH)
    os.rmdir(AREA, dir_fd=top)
    _enter_root()


def point(top: int, path: str, folder: bool) -> int:
    """The mount point at a path below the new root, made where it is missing; no link is followed.

    Raises:
        OSError: a part is a link or a file (ENOTDIR), or is missing in a folder that is read-only (EROFS).
    """
    here, parts = os.dup(top), [p for p in path.split("/") if p]
    if ".." in parts:
        raise OSError(22, "a path with ..", path)
    for depth, part in enumerate(parts, 1):
        last_file = depth == len(parts) and not folder
        try:
            if last_file:
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=here))
            else:
                os.mkdir(part, 0o755, dir_fd=here)
        except FileExistsError:
            pass
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if last_file else os.O_DIRECTORY)
        here, before = os.open(part, flags, dir_fd=here), here
        os.close(before)
    return here


def _clone_all(order: Order) -> list[tuple[str, str, int]]:
    """(target, source, tree) for all that will be mounted, outer folders first. A link has tree `_LINK` and
    as source what it says; a part of the work area has tree `_WORK` and as source its number there."""
    keep = RDONLY if "read_only" in order.layers else 0
    trees: list[tuple[str, str, int]] = []
    for source, target in (*order.reads, *order.sockets):
        try:
            if stat.S_ISLNK(os.lstat(source).st_mode):
                trees.append((target, os.readlink(source), _LINK))
            else:
                trees.append((target, source, clone(source, keep | NOSUID | NODEV)))
        except OSError as e:
            raise OSError(e.errno, e.strerror, source) from None
    for device in DEVICES:
        trees.append((f"/dev/{device}", f"/dev/{device}", clone(f"/dev/{device}", NOSUID | NOEXEC)))
    for index, work in enumerate((*SHARED, *order.works)):
        private = "private_tmpfs" in order.layers
        trees.append((work, str(index), _WORK) if private else (work, work, clone(work, NOSUID | NODEV)))
    # mounts of the same depth do not lie within each other; a work wins over a read at its own place
    return sorted(trees, key=lambda t: (t[0].rstrip("/").count("/"), t[2] == _WORK))


def _attach_at(top: int, target: str, source: str, fd: int) -> None:
    if fd == _LINK:
        here = point(top, os.path.dirname(target), folder=True)
        os.symlink(source, os.path.basename(target), dir_fd=here)
        os.close(here)
        return
    if fd == _WORK:
        name, mode = f"{_PLACE}/{AREA}/{source}", 0o1777 if target in SHARED else 0o700
        os.mkdir(name)
        os.chmod(name, mode)  # whatever the umask took
        fd = clone(name, NOSUID | NODEV)
    here = point(top, target, folder=stat.S_ISDIR(os.fstat(fd).st_mode))
    attach(fd, here)
    os.close(here)


def _enter_root() -> None:
    """pivot_root(2) onto the working folder, with the old root stacked below and then let go of."""
    call("pivot_root", b".", b".")
    libc("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def finish_root(order: Order) -> None:
    """Last touches inside the new root: links of /dev, and then the root itself becomes read-only.

    Raises:
        OSError: as the calls.
    """
    for name, to in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{to}", f"/dev/{name}")
    attributes = _Attributes(attr_set=RDONLY if "read_only" in order.layers else 0)
    call("mount_setattr", _AT_FDCWD, b"/", 0, attributes, ctypes.sizeof(attributes))


def mount_proc(order: Order) -> int:
    """A detached /proc of our process namespace, in which only processes that one may trace show.

    Must be made while a whole /proc is still visible: else the kernel refuses it in a user namespace.

    Raises:
        OSError: EPERM where the host's /proc is partly covered, as in many containers.
    """
    if "pidns" not in order.layers:
        return clone("/proc", NOSUID | NODEV | NOEXEC)
    options = {"hidepid": "ptraceable"} if "proc_masked" in order.layers else {}
    try:
        return _filesystem(b"proc", options, (), NOSUID | NODEV | NOEXEC)
    except OSError as e:
        covers = _mounted_below("/proc/") if e.errno == 1 else ""
        if not covers:
            raise
        raise OSError(1, f"the host's /proc is partly covered, so the kernel gives no new one: {covers}") from None


def _mounted_below(top: str) -> str:
    """Places below a folder where something is mounted, a few of them by name; "" for none."""
    with open("/proc/self/mountinfo", "rb") as f:
        places = [line.split()[4].decode("utf-8", "replace") for line in f]
    below = sorted({p for p in places if p.startswith(top)})
    return ", ".join(below[:4]) + (f" and {len(below) - 4} more" if len(below) > 4 else "")


def mask_proc() -> None:
    """Cover all of /proc that tells of the host or acts on it; what is left of /proc/sys is read-only.

    Raises:
        OSError: as the calls.
    """
    os.mkdir("/.empty")
    attach(tmpfs(4096, 4, "555"), "/.empty")
    for name in os.listdir("/proc"):
        path = f"/proc/{name}"
        if name.isdigit() or name in _PROC_KEPT or os.path.islink(path):
            continue
        attach(clone("/.empty" if os.path.isdir(path) else "/dev/null", RDONLY | NOSUID | NOEXEC), path)
    libc("umount2", b"/.empty", _MNT_DETACH)
    os.rmdir("/.empty")
    attach(clone("/proc/sys", RDONLY | NOSUID | NODEV | NOEXEC), "/proc/sys")


def _filesystem(kind: bytes, options: dict[str, str], flags: tuple[str, ...], attributes: int) -> int:
    context = call("fsopen", kind, 1)
    try:
        for name, value in options.items():
            call("fsconfig", context, _SET_STRING, name.encode(), value.encode(), 0)
        for name in flags:
            call("fsconfig", context, _SET_FLAG, name.encode(), None, 0)
        call("fsconfig", context, _CREATE, None, None, 0)
        return call("fsmount", context, 1, attributes)
    finally:
        os.close(context)


def _put(top: int, path: str, data: bytes) -> None:
    here = point(top, os.path.dirname(path), folder=True)
    fd = os.open(os.path.basename(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444, dir_fd=here)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
        os.close(here)
