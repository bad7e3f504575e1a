"""`hagane jail run`, the record, the probe, what is collected, and ranks of torch behind the walls."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.jail import LAYERS, Layers, collect, probe, python_env, record_of, run, seccomp
from hagane.jail.syscalls import LAST_KNOWN, MACHINES, number
from hagane.terms import JailError
from tests.jail_fixture import plan_of, python_plan, running, said, why_not

WHY_NOT = why_not()
needs_jail = pytest.mark.skipif(bool(WHY_NOT), reason=f"no jail here: {WHY_NOT}")


def verdict(program: list[seccomp.Instruction], nr: int, arch: int, args: tuple[int, ...]) -> int:
    """Run a filter as the kernel would (the six kinds of instruction that ours has)."""
    data = [nr, arch, 0, 0]
    for a in (*args, 0, 0, 0, 0, 0, 0)[:6]:
        data += [a & 0xFFFFFFFF, a >> 32]
    acc = at = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            acc = data[k // 4]
        elif code == 0x06:
            return k
        else:
            holds = {0x15: acc == k, 0x35: acc >= k, 0x25: acc > k, 0x45: bool(acc & k)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("arch", MACHINES)
def test_the_filter_says_of_every_call_what_its_table_says(arch: str) -> None:
    every = frozenset(LAYERS)
    filter_, audit = seccomp.program(every, arch), seccomp.ARCH[arch]
    unconditional = {
        number(name, arch): errno
        for rules in seccomp.RULES.values()
        for name, conditions, errno in rules
        if not conditions
    }
    conditional = {"socket", "clone", "ioctl", "setrlimit", "prlimit64"}
    for nr in range(LAST_KNOWN + 1):
        if nr not in {number(name, arch) for name in conditional}:
            wanted = seccomp._ERRNO | unconditional[nr] if nr in unconditional else seccomp.ALLOW
            assert verdict(filter_, nr, audit, ()) == wanted, nr
    assert verdict(filter_, LAST_KNOWN + 1, audit, ()) == seccomp._ERRNO | seccomp.ENOSYS
    assert verdict(filter_, 0, 0x40000003, ()) == seccomp.KILL  # i386
    if arch == "x86_64":
        assert verdict(filter_, 0x40000000 | 1, audit, ()) == seccomp.KILL
    cases: list[tuple[str, tuple[int, ...], bool]] = [
        *(("socket", (family, 1, 0), family in (1, 2, 10, 16)) for family in range(64)),
        ("socket", (16, 3, 15), False),
        ("clone", (0x11,), True),
        ("clone", (0x003D0F00,), True),  # a thread
        *(("clone", (1 << bit | 0x11,), False) for bit in (17, 25, 26, 27, 28, 29, 30)),
        ("ioctl", (0, 0x5412, 0), False),
        ("ioctl", (0, 1 << 32 | 0x5412, 0), False),  # the kernel reads the low half
        ("ioctl", (0, 0x541B, 0), True),  # FIONREAD
        ("setrlimit", (4, 1), False),
        ("setrlimit", (7, 1), True),
        ("prlimit64", (0, 4, 0, 1), True),  # reads
        ("prlimit64", (0, 4, 1 << 32, 0), False),
        ("prlimit64", (0, 4, 1, 0), False),
        ("prlimit64", (0, 7, 1, 0), True),
    ]
    for name, args, passes in cases:
        nr = number(name, arch)
        assert nr is not None
        assert (verdict(filter_, nr, audit, args) == seccomp.ALLOW) == passes, (name, args)
    assert verdict(seccomp.program(every - {"seccomp_vsock"}, arch), number("socket", arch) or 0, audit, (40,)) == (
        seccomp.ALLOW
    )


@needs_jail
def test_a_command_runs_and_leaves_record_and_works(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record, keep = tmp_path / "record.json", tmp_path / "keep"
    flags = ["--work", "/w", "--keep", str(keep), "--json", str(record), "--env", "A=b", "--read", __file__]
    sh = f"echo out $A; echo err >&2; mkdir /w/d; echo x > /w/d/file; test -f {__file__}; exit 9"
    assert main(["jail", "run", *flags, "--", "sh", "-c", sh]) == 1
    said_ = capfd.readouterr()
    assert (said_.out, said_.err) == ("out b\n", "err\n")
    assert [p.relative_to(keep) for p in keep.rglob("*") if p.is_file()] == [Path("w/d/file")]
    facts = json.loads(record.read_text("utf-8"))
    assert facts["exit"] == 1 and facts["layers"] == list(LAYERS) and facts["taken_away"] == []
    assert main(["jail", "run", *flags, "--", "sh", "-c", sh]) == 1
    assert "exists already" in capfd.readouterr().err


@pytest.mark.parametrize("args", [[], ["--"], ["--", "absent-program"], ["--env", "ABSENT", "--", "true"]])
def test_a_wrong_command_line_is_one_message(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jail", "run", *args]) == 1
    assert capsys.readouterr().err.startswith("hagane jail: ")
    assert main(["jail", "rum"]) == 2


@needs_jail
def test_the_record_changes_with_every_wall_and_bind() -> None:
    digests = set()
    for plan in (plan_of("/bin/true"), plan_of("/bin/true", layers=Layers().without("timens"))):
        with running(plan) as (jailed, _, _):
            record = record_of(plan, jailed)
            assert record.swap in ("forbidden", "none", "possible")
            digests.add(record.digest)
        with running(plan) as (jailed, _, _):
            digests.add(record_of(plan, jailed).digest)
    assert len(digests) == 2


@needs_jail
def test_a_kernel_that_lacks_a_wall_is_told_with_what_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe().missing == ()
    probe().demand_all()
    # the stage is another process, so the fault is planted in what it is told
    real = run._order

    def older(plan: object, wired: bool) -> object:
        order = real(plan, wired)  # type: ignore[arg-type]
        if "landlock" in order.layers:
            order.works = (*order.works, "/absent")  # its rule cannot be made
            order.layers = order.layers - {"private_tmpfs", "mountns"}
        return order

    monkeypatch.setattr(run, "_order", older)
    kernel = probe()
    assert [m.layer for m in kernel.missing] == ["landlock"]
    with pytest.raises(JailError, match=r"landlock: Landlock: No such file.*would pass: file drops") as e:
        kernel.demand_all()
    assert "lsm=" in e.value.next_step


@needs_jail
@pytest.mark.parametrize("made", ["ln -s /etc/hostname /w/link", "mkfifo /w/pipe", "ln -s /etc /w/folder"])
def test_what_a_jail_leaves_is_never_followed(made: str) -> None:
    with running(plan_of("/bin/sh", "-c", made, works=(Path("/w"),))) as (jailed, _, _):
        assert jailed.wait() == 0
        with pytest.raises(JailError, match="files and folders with plain names only"):
            list(collect(jailed, Path("/w")))


@needs_jail
def test_the_parent_can_reach_the_network_namespace_before_the_command_runs() -> None:
    seen: list[str] = []
    with running(plan_of("/bin/true"), wire=lambda pid: seen.append(str(Path(f"/proc/{pid}/ns/net").readlink()))) as (
        jailed,
        _,
        _,
    ):
        assert jailed.wait() == 0
    assert seen and seen[0] != str(Path("/proc/self/ns/net").readlink())


RANKS = """
import torch, pyarrow, av
import torch.distributed as dist
import torch.multiprocessing as mp
def work(rank):
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29500", rank=rank, world_size=2)
    x = torch.full((3,), rank + 1.0)
    dist.all_reduce(x)
    if rank == 0:
        print("sum", x.tolist(), torch.backends.cpu.get_cpu_capability(), flush=True)
    dist.destroy_process_group()
def load():
    data = torch.utils.data.DataLoader(list(range(8)), batch_size=4, num_workers=2, multiprocessing_context="spawn")
    print("loaded", [b.tolist() for b in data], flush=True)
if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
    load()
"""


@needs_jail
@pytest.mark.slow
def test_ranks_and_loader_workers_run_inside() -> None:
    import torch

    def fill(root: Path) -> None:
        (root / "w" / "ranks.py").write_text(RANKS)

    plan = python_plan("", works=(Path("/w"),), env={**python_env(), "OMP_NUM_THREADS": "1"})
    got = said(replace(plan, command=(sys.executable, "/w/ranks.py")), fill=fill)
    assert got.code == 0, got.err
    assert f"sum [3.0, 3.0, 3.0] {torch.backends.cpu.get_cpu_capability()}\n" in got.out
    assert "loaded [[0, 1, 2, 3], [4, 5, 6, 7]]" in got.out
    assert got.err == ""
