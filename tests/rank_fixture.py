"""Ranks of one thread on this machine, for tests: a function is called on each, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(ranks: int, work: Callable[..., None], *args: object) -> None:
    """Call `work(*args)` on so many gloo ranks; an error on any of them is raised here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # torch is imported once, by the server that all ranks are forked from
    multiprocessing.set_forkserver_preload(["hagane.train", "hagane.policy", "torch._dynamo", __name__])
    mp.start_processes(_one, (ranks, port, work, args), nprocs=ranks, start_method="forkserver")


def _one(number: int, ranks: int, port: int, work: Callable[..., Any], args: tuple[object, ...]) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=ranks)
    work(*args)
    dist.destroy_process_group()
