"""Each wall of the jail, seen from inside by a small program; and what becomes of a jail however it ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hagane.jail import LAYERS, Bind, Layer, Layers, Plan, python_reads, start, system_reads
from hagane.terms import JailError
from tests.jail_fixture import AS_NOBODY, as_nobody, plan_of, python_plan, read_all, running, said, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no jail here: {WHY_NOT}")
NO_PYTHON_STARTUP = ("-I", "-S", "-c")


def probe(code: str, *without: Layer, **fields: object) -> dict[str, object]:
    """Run code inside that sets `seen`, a table; returns it."""
    text = (
        f"import os, ctypes, json\nC = ctypes.CDLL(None, use_errno=True)\nseen = {{}}\n{code}\nprint(json.dumps(seen))"
    )
    command = (sys.executable, *NO_PYTHON_STARTUP, text)
    got = said(Plan(command, reads=python_reads(), layers=Layers().without(*without), **fields))  # type: ignore[arg-type]
    assert got.code == 0, got.err
    return dict(json.loads(got.out))


def test_nothing_of_the_host_is_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    seen = probe(
        f"""
seen["root"] = sorted(os.listdir("/"))
seen["secret"] = os.path.exists({str(tmp_path / "secret")!r})
seen["processes"] = [p for p in os.listdir("/proc") if p.isdigit()]
seen["dev"] = sorted(os.listdir("/dev"))
seen["tmp"] = os.listdir("/tmp") + os.listdir("/dev/shm")
seen["env"] = sorted(os.environ)
seen["name"] = os.uname().nodename
seen["user"] = [os.getuid(), os.getgid(), os.getgroups()]
seen["devices"] = [l.split(":")[0].strip() for l in open("/proc/net/dev").readlines()[2:]]
seen["sys"] = os.listdir("/sys")
"""
    )
    places = {Path(b.target).parts[1] for b in python_reads()} | {"dev", "etc", "proc", "sys", "tmp"}
    assert seen["root"] == sorted(places)
    # an interpreter may itself lie below /tmp, as in a clone made there
    ours = {Path(b.target).parts[2] for b in python_reads() if Path(b.target).parts[1] == "tmp"}
    assert not seen["secret"] and set(seen["tmp"]) == ours and seen["env"] == ["LC_CTYPE"]  # which Python itself sets
    assert len(seen["processes"]) == 1, "only its own"  # type: ignore[arg-type]
    assert seen["dev"] == ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert seen["name"] == "hagane" and seen["user"][:2] == [1000, 1000]  # type: ignore[index]
    assert seen["devices"] == ["lo"] and seen["sys"] == ["devices"]


def test_writing_reaches_the_works_alone_and_the_parent_reads_them_until_release(tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "given").write_text("given")
    code = """
for path in ("/x", "/tmp/x", "/dev/shm/x", "/usr/x", "/work/x", "/etc/x", "/dev/x", "/proc/self/comm", PLACE, GIVEN):
    try:
        open(path, "w").write("written"); seen[path] = 0
    except OSError as e:
        seen[path] = e.errno
""".replace("PLACE", repr(f"{tmp_path}/read/x")).replace("GIVEN", repr(f"{tmp_path}/read/given"))
    text = f"import json\nseen = {{}}\n{code}\nprint(json.dumps(seen))"
    reads = (*python_reads(), Bind.at(tmp_path / "read"))
    plan = Plan((sys.executable, *NO_PYTHON_STARTUP, text), reads=reads, works=(Path("/work/w"), Path("/w")))
    with running(plan) as (jailed, out, _):
        seen = json.loads(read_all(out))
        assert jailed.wait() == 0
        assert (jailed.root / "tmp/x").read_text() == (jailed.root / "dev/shm/x").read_text() == "written"
        root = jailed.root
        jailed.release()
        assert not root.exists()
    written = sorted(path for path, errno in seen.items() if errno == 0)
    assert written == ["/dev/shm/x", "/tmp/x"]
    assert (tmp_path / "read" / "given").read_text() == "given" and len(list((tmp_path / "read").iterdir())) == 1


def test_works_are_filled_before_the_command_runs_and_are_limited_in_size(tmp_path: Path) -> None:
    def fill(root: Path) -> None:
        (root / "w" / "before").write_text("from the parent")

    sh = "cat /w/before; head -c 3000000 /dev/zero > /w/large; echo $?"
    got = said(plan_of("/bin/sh", "-c", sh, works=(Path("/w"),), size_bytes=1 << 21), fill=fill)
    assert got.out == "from the parent1\n" and "No space" in got.err


def test_it_holds_no_privilege_and_can_get_none() -> None:
    status = said(plan_of("/bin/cat", "/proc/self/status")).out
    fields = dict(re.findall(r"^(\w+):\s+(\S+)", status, re.M))
    assert {fields[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
    limits = said(plan_of("/bin/cat", "/proc/self/limits")).out
    assert re.search(r"Max core file size\s+[01]\s+[01]\s", limits)


def test_the_init_is_out_of_reach_by_two_walls() -> None:
    code = """
for path in ("/proc/1/root", "/proc/1/mem", "/proc/1/environ", "/proc/1/fd/4"):
    try:
        os.open(path, os.O_RDONLY); seen[path] = 0
    except OSError as e:
        seen[path] = e.errno
try:
    os.kill(1, 15); seen["kill"] = 0
except OSError as e:
    seen["kill"] = e.errno
"""
    assert all(probe(code).values())
    # without these the init's own capabilities still guard it, as ours are none
    seen = probe(code.replace("15", "0"), "proc_masked", "landlock", "landlock_scope")
    assert seen.pop("kill") == 0 and all(seen.values())


def test_descriptors_of_the_parent_are_closed_unless_that_wall_is_taken_away() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    code = f"""
try:
    os.fstat({read}); seen["open"] = True
except OSError:
    seen["open"] = False
"""
    try:
        assert probe(code) == {"open": False}
        assert probe(code, "fds") == {"open": True}
    finally:
        os.close(read)
        os.close(write)


CALLS: dict[str, tuple[Layer, str]] = {
    "vsock": ("seccomp_vsock", "socket.socket(40, socket.SOCK_STREAM)"),
    "kernel events": ("seccomp_families", "socket.socket(16, socket.SOCK_RAW, 15)"),  # NETLINK_KOBJECT_UEVENT
    "io_uring": ("seccomp_io_uring", "syscall(425, 1, ctypes.create_string_buffer(120))"),
    "reading memory": ("seccomp_ptrace", "syscall(310, os.getpid(), None, 0, None, 0, 0)"),
    "new user namespace": ("seccomp_namespaces", "syscall(272, 0x10000000)"),
    "file handle": ("seccomp_mounts", "syscall(303, -100, b'/', ctypes.create_string_buffer(bytes([8]), 200), M, 0)"),
    "performance events": ("seccomp_kernel", "syscall(321, 99, None, 0)"),
    "keys": ("seccomp_keys", "syscall(250, 0, -3, 0)"),
    "core limit": ("core", "resource.setrlimit(resource.RLIMIT_CORE, (0, 1))"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_each_filter_refuses_and_each_taken_away_alone_lets_through() -> None:
    head = "import socket, resource\nM = ctypes.create_string_buffer(8)\ndef syscall(*a):\n"
    head += "    if C.syscall(*a) < 0: raise OSError(ctypes.get_errno(), 'x')\n"
    code = head + "".join(
        f"try:\n    {call}; seen[{name!r}] = 0\nexcept OSError as e:\n    seen[{name!r}] = e.errno\n"
        f"except ValueError:\n    seen[{name!r}] = 1\n"  # so setrlimit says EPERM
        for name, (_, call) in CALLS.items()
    )
    refused = {1, 38, 97}
    shut = probe(code)
    assert all(errno in refused for errno in shut.values()), shut
    filters = {layer for layer, _ in CALLS.values()}
    opened = probe(code, *filters)
    still = {name for name, errno in opened.items() if errno in refused}
    # the kernel itself refuses these without privileges: the filter is a second wall
    assert still <= {"performance events"}, opened


def test_exit_codes_are_one_bit() -> None:
    assert said(plan_of("/bin/sh", "-c", "exit 0")).code == 0
    assert said(plan_of("/bin/sh", "-c", "exit 77")).code == 1
    assert said(plan_of("/bin/sh", "-c", "kill -9 $$")).code == 1
    assert said(plan_of("/bin/sh", "-c", "exit 77", layers=Layers().without("exit_code"))).code == 77


def test_the_end_of_the_command_is_the_end_of_all_inside() -> None:
    with running(plan_of("/bin/sh", "-c", "(sleep 1000 &) ; echo out")) as (jailed, out, _):
        assert read_all(out) == "out\n"  # its writers are gone
        assert jailed.wait() == 0


def test_a_signal_is_passed_on() -> None:
    with running(plan_of("/bin/sh", "-c", "trap 'echo told; exit 0' TERM; echo up; while :; do :; done")) as (
        j,
        out,
        _,
    ):
        assert os.read(out, 10) == b"up\n"
        j.terminate()
        assert read_all(out) == "told\n" and j.wait() == 0


def test_a_killed_parent_takes_the_jail_with_it() -> None:
    code = """
import os, sys, threading
from tests.jail_fixture import plan_of
from hagane.jail import start
def run():
    start(plan_of("/bin/sh", "-c", "echo up; exec sleep 1000"), 1, 1)
    threading.Event().wait()
t = threading.Thread(target=run); run() if sys.argv[1] == "main" else (t.start(), t.join())
"""
    for thread in ("main", "other"):
        parent = subprocess.Popen([sys.executable, "-c", code, thread], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        with parent.stdout:
            assert parent.stdout.readline() == b"up\n"
            parent.kill()
            parent.wait()
            assert parent.stdout.read() == b"", "the last writer inside is gone"


def test_nothing_runs_when_a_step_fails(tmp_path: Path) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    cases: dict[str, Plan] = {
        "mounts: No such file": plan_of("/bin/true", reads=(*system_reads(), Bind.at(tmp_path / "gone"))),
        "executing the command: No such file": plan_of("/bin/absent"),
        "working folder: No such file": plan_of("/bin/true", cwd=Path("/absent")),
        "mounts: Read-only": plan_of("/bin/true", works=(Path("/usr/absent"),)),
    }
    try:
        for words, plan in cases.items():
            with pytest.raises(JailError, match=words) as e:
                start(plan, null, null)
            assert "nothing ran" in str(e.value) and "next:" in str(e.value)
    finally:
        os.close(null)


def test_a_link_among_the_reads_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    reads = (*system_reads(), Bind.at(tmp_path / "set"), Bind.at(tmp_path / "link"))
    got = said(plan_of("/bin/cat", f"{tmp_path}/set/link", f"{tmp_path}/link", reads=reads))
    assert got.code == 1 and got.out == "" and got.err.count("No such file") == 2


def test_a_socket_that_is_bound_can_be_connected_to(tmp_path: Path) -> None:
    path = Path(os.path.relpath(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        code = """
import socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/hagane/broker.sock"); seen["got"] = s.recv(9).decode()
"""

        def answer() -> None:
            with server.accept()[0] as s:
                s.send(b"hello")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        bound = Bind(tmp_path / "s", Path("/run/hagane/broker.sock"))
        assert probe(code, sockets=(bound,)) == {"got": "hello"}
        thread.join()


def test_output_is_a_pipe_or_nothing(tmp_path: Path) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    with (tmp_path / "file").open("wb") as f, socket.socket() as s:
        for fd in (f.fileno(), s.fileno()):
            with pytest.raises(JailError, match="must be a pipe"):
                start(plan_of("/bin/true"), null, fd)
    os.close(null)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_wall_can_be_taken_away_alone(layer: Layer) -> None:
    if layer == "userns" and os.geteuid() != 0:
        pytest.skip("without it only root builds the others")
    assert said(plan_of("/bin/echo", "up", layers=Layers().without(layer))).out == "up\n"


def test_plans_that_make_no_sense_are_refused() -> None:
    for bad in (
        {"command": ()},
        {"command": ("true",)},
        {"command": ("/bin/true",), "works": (Path("/proc/x"),)},
        {"command": ("/bin/true",), "works": (Path("/a/../b"),)},
        {"command": ("/bin/true",), "reads": (Bind(Path("/"), Path("/")),)},
        {"command": ("/bin/true", "a\0b")},
        {"command": ("/bin/true",), "size_bytes": 0},
    ):
        with pytest.raises(JailError):
            Plan(**bad)  # type: ignore[arg-type]
    with pytest.raises(JailError, match="no layers"):
        Layers().without("netsn")  # type: ignore[arg-type]
    assert Layers().on == set(LAYERS)


def test_python_children_with_semaphores_work_inside() -> None:
    code = """
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(double, [1, 2]))
"""
    got = said(python_plan(code))
    assert got.out == "[2, 4]\n", got.err


@pytest.mark.skipif(AS_NOBODY in os.environ or os.geteuid() != 0, reason="a second pass, of root")
def test_all_of_this_again_as_an_unprivileged_user() -> None:
    done = as_nobody("-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs", __file__)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no jail here" not in done.stdout, done.stdout
