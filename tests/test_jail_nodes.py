"""`hagane jail run --peer` on two nodes: nothing runs before both accepted; ranks of torch add up across them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hagane.jail import netlink
from tests.veth_nodes import CARD, HOSTS, JAILS, SITES, nodes, sites, why_no_nodes

WHY_NOT = why_no_nodes()
needs_nodes = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def command(site: Path, me: int, *flags: str) -> list[str]:
    """`hagane jail run` on a node, up to the command inside."""
    other = 1 - me
    peer = f"{SITES[other]}={JAILS[other]}@{HOSTS[other]}"
    words = ["--peer", peer, "--address", str(JAILS[me]), "--card", CARD, "--listen", str(HOSTS[me])]
    return [sys.executable, "-m", "hagane", "jail", "run", *words, "--site", str(site), *flags, "--"]


def run_both(folders: tuple[Path, ...], inside: list[list[str]], *flags: list[str]) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of `hagane jail run` on two nodes at once."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    with nodes() as net, ThreadPoolExecutor(2) as threads:

        def go(me: int) -> tuple[int, str, str]:
            words = [*command(folders[me], me, *flags[me], "--host-key", str(folders[me] / "host.pem")), *inside[me]]
            started = netlink.inside(net.spaces[me], lambda: subprocess.Popen(words, **how))  # type: ignore[call-overload]
            out, err = started.communicate()
            return started.returncode, out, err

        return list(threads.map(go, (0, 1)))


@needs_nodes
def test_commands_run_when_both_nodes_accept_and_neither_when_one_refuses(tmp_path: Path) -> None:
    folders = sites(tmp_path)
    record = tmp_path / "record.json"
    sh = ["/bin/sh", "-c", "cat /proc/net/route; echo ran"]
    done = run_both(folders, [sh, sh], ["--json", str(record)], [])
    assert [code for code, _, _ in done] == [0, 0], done
    for _, out, _ in done:
        assert out.endswith("ran\n") and out.count("net0") == 1
    facts = json.loads(record.read_text("utf-8"))
    assert facts["peers"] == ["10.7.0.2"] and [s["site"] for s in facts["seen"]] == ["lab-2"]
    other = sites(tmp_path / "other")  # another consortium, of the same names
    done = run_both((folders[0], other[1]), [sh, sh], ["--wait", "20"], ["--wait", "20"])
    assert [(code, out) for code, out, _ in done] == [(1, ""), (1, "")]
    assert all("its signature does not count" in err and "Traceback" not in err for _, _, err in done), done


RANK = """
import socket, sys
import torch
import torch.distributed as dist
rank = int(sys.argv[1])
store = dist.TCPStore("10.7.0.1", 29500, 2, is_master=rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
x = torch.full((1 << 20,), rank + 1.0)
dist.all_reduce(x)
print("sum", x.unique().tolist(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
@needs_nodes
def test_two_ranks_of_torch_add_up_across_nodes(tmp_path: Path) -> None:
    flags = ["--env", "OMP_NUM_THREADS=1", "--env", "GLOO_SOCKET_IFNAME=net0"]
    inside = [[sys.executable, "-c", RANK, str(rank)] for rank in (0, 1)]
    done = run_both(sites(tmp_path), inside, flags, flags)
    assert [(code, out) for code, out, _ in done] == [(0, "sum [3.0]\n")] * 2, done
