"""`hagane export`: a checkpoint's weights as plain safetensors files, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.opens import in_jail
from hagane.cli.sealed_run import sealed_run_at
from hagane.terms import CheckpointError, ConfigError


@dataclass(frozen=True)
class Export:
    """Write the weights that a policy loads as plain safetensors files, one group of files an owner.

    The folder serves, evaluates and starts runs like a checkpoint. Memory needed: about one tensor.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, or a run's folder (its newest checkpoint); with --back, an exported folder."""
    out: Path | None = None
    """Folder to make."""
    file_gib: float = 4.0
    """Largest size of a file."""
    back: bool = False
    """Take an exported folder back after another tool wrote its tensors: check them, and write its manifest again."""


def main(argv: list[str]) -> int:
    """Run `hagane export`.

    Raises:
        ConfigError: flags that do not go together.
        CheckpointError: incomplete, made for another model, or the folder is there already.
    """
    o = tyro.cli(Export, args=argv, prog="hagane export")
    if o.back == (o.out is not None) or o.file_gib <= 0:
        raise ConfigError("say one of --out DIR and --back, and a size above 0", next_step="see `hagane export --help`")
    if not in_jail() and sealed_run_at(o.checkpoint) is not None:
        raise CheckpointError(
            "this run lies sealed: its weights leave by the gate",
            where=str(o.checkpoint),
            next_step="hagane release shape, read it, then hagane release make",
        )
    from hagane.model import latest
    from hagane.model.export import export_weights, take_back

    if o.out is None:
        manifest, place = take_back(o.checkpoint), o.checkpoint
    else:
        found = latest(o.checkpoint / "checkpoints") or o.checkpoint
        manifest, place = export_weights(found, o.out, int(o.file_gib * 2**30)), o.out
    size = sum((place / name).stat().st_size for name in manifest.files)
    owners = sorted({name.split(".")[0] for name in manifest.files if name.endswith(".safetensors")})
    print(f"{place}: {size / 2**20:,.1f} MiB in {len(manifest.files)} files, weights of {', '.join(owners)}")
    print(f"id {manifest.id[:16]}, from {manifest.source[:16]} at step {manifest.step} of run {manifest.record.id}")
    return 0
