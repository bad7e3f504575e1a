"""`hagane serve runs/demo/checkpoints/step-000100`: answer machines over the openpi wire."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.drive import read_key
from hagane.cli.noted import note_deployment
from hagane.terms import ConfigError


@dataclass(frozen=True)
class ServeArgs:
    """Serve a checkpoint to openpi clients until Ctrl-C or SIGTERM; replies under way are finished first."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of the checkpoint."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own need a key."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with a key that clients must send as "Authorization: Api-Key ..."."""
    home: Path = Path()
    """The site's folder; its ledger notes which weights serve which machines."""


def main(argv: list[str]) -> int:
    """Run `hagane serve`."""
    args = tyro.cli(ServeArgs, args=argv, prog="hagane serve")
    key = read_key(args.api_key_file)
    if not key and not _is_loopback(args.host):
        raise ConfigError(
            f"without a key only this machine is served, not {args.host}",
            next_step="give --api-key-file, or listen on 127.0.0.1",
        )
    # torch is loaded only now: --help and wrong flags are answered at once
    from hagane.policy import load_policy
    from hagane.serve import serve_policy

    policy = load_policy(args.checkpoint)
    for machine in sorted(policy.embodiments):
        note_deployment(args.home, policy.checkpoint_id, machine)

    def ready(url: str) -> None:
        print(f"serving {', '.join(sorted(policy.embodiments))} at {url}", flush=True)
        print(f"  weights {policy.checkpoint_id}", flush=True)
        print(f"  next: hagane drive {min(policy.embodiments)} --at {url}     (stop with Ctrl-C)", flush=True)

    serve_policy(
        policy,
        policy.embodiments,
        host=args.host,
        port=args.port,
        api_key=key,
        checkpoint_id=policy.checkpoint_id,
        ready=ready,
    )
    print("stopped: all replies under way were finished")
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
