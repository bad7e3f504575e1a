"""`hagane serve runs/demo/checkpoints/step-000100`: answer machines over the openpi wire."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.drive import read_key
from hagane.cli.evaluate import find_checkpoint
from hagane.cli.noted import note_deployment
from hagane.cli.opens import in_jail
from hagane.cli.sealed_run import sealed_run_at
from hagane.cli.site import open_catalog
from hagane.terms import ConfigError


@dataclass(frozen=True)
class ServeArgs:
    """Serve a checkpoint to openpi clients until Ctrl-C or SIGTERM; replies under way are finished first.

    Weights that lie sealed are loaded in a jail: only actions come out of it, and every contract of the data that they
    were trained on must grant to serve.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, or a run's folder (its newest checkpoint)."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own need a key."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with a key that clients must send as "Authorization: Api-Key ..."."""
    home: Path | None = None
    """The site's folder, by default this one: its ledger notes which weights serve which machines. Where it is given,
    the contracts of its catalog are asked whether weights trained on their data may be served."""
    model_timeout_s: float = 10.0
    """Weights that lie sealed: a model that takes longer for an answer is taken for dead, and the server ends."""


def main(argv: list[str]) -> int:
    """Run `hagane serve`.

    Raises:
        HaganeError: a contract that does not permit it, weights that cannot be loaded, a jail that cannot be made.
    """
    args = tyro.cli(ServeArgs, args=argv, prog="hagane serve")
    if in_jail():
        return answer_keeper(args.checkpoint)
    if args.model_timeout_s <= 0:
        raise ConfigError("--model-timeout-s must be positive")
    key = read_key(args.api_key_file)
    if not key and not _is_loopback(args.host):
        raise ConfigError(
            f"without a key only this machine is served, not {args.host}",
            next_step="give --api-key-file, or listen on 127.0.0.1",
        )
    if (run := sealed_run_at(args.checkpoint)) is not None:
        from hagane.cli.gateway import Door, serve_sealed

        door = Door(args.host, args.port, key, args.model_timeout_s, say_ready)
        code = serve_sealed(["serve", *argv], args.home or Path(), run, door)
    else:
        code = serve_plain(args, key)
    print("stopped: all replies under way were finished")
    return code


def serve_plain(args: ServeArgs, key: str) -> int:
    """Serve weights that lie open, in this process."""
    # torch is loaded only now: --help and wrong flags are answered at once
    from hagane.policy import load_policy
    from hagane.serve import serve_policy

    policy = load_policy(find_checkpoint(args.checkpoint))
    if args.home is not None and policy.record is not None:
        ask_to_serve(args.home, policy.record.datasets)
    for machine in sorted(policy.embodiments):
        note_deployment(args.home or Path(), policy.checkpoint_id, machine)
    serve_policy(
        policy,
        policy.embodiments,
        host=args.host,
        port=args.port,
        api_key=key,
        checkpoint_id=policy.checkpoint_id,
        ready=lambda url: say_ready(url, policy.checkpoint_id, sorted(policy.embodiments)),
    )
    return 0


def ask_to_serve(home: Path, datasets: Iterable[str]) -> None:
    """Ask the contracts of the data sets behind weights that lie open.

    Raises:
        Refused: one does not permit it; StoreError: a data set is not in this catalog, so that nobody can be asked.
    """
    catalog = open_catalog(home)
    for name in datasets:
        catalog.ask(name, "serve")


def answer_keeper(checkpoint: Path) -> int:
    """In the jail: load the weights, and answer what the gateway outside passes on until it ends."""
    from hagane.cli.gateway import SOCKET
    from hagane.policy import load_policy
    from hagane.serve.relay import answer_link, jail_answerer

    policy = load_policy(find_checkpoint(checkpoint))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.connect(str(SOCKET))
        answer_link(link, jail_answerer(policy, policy.embodiments), policy.checkpoint_id)
    return 0


def say_ready(url: str, checkpoint_id: str, machines: Sequence[str]) -> None:
    """Say what is served where, and what to do with it."""
    print(f"serving {', '.join(machines)} at {url}", flush=True)
    print(f"  weights {checkpoint_id}", flush=True)
    print(f"  next: hagane drive {machines[0]} --at {url}     (stop with Ctrl-C)", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
