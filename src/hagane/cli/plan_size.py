"""`hagane plan size 1t`: exact parameter counts before anything is bought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.terms import ConfigError, Embodiment, load_toml
from hagane.terms.amount import long_count


@dataclass(frozen=True)
class SizeArgs:
    """Count a model's parameters: in closed form, and on the meta device, which must agree."""

    size: Annotated[str, tyro.conf.Positional]
    """1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    embodiment: tuple[Path, ...] = ()
    """Embodiment files; without any, the three machines of the demo."""
    members: int = 0
    """Members with experts of their own; 0 means the embodiments' owners, or 16 from 400b up."""


def main(argv: list[str]) -> int:
    """Print counts by part and by owner.

    Raises:
        ConfigError: the closed form and the model disagree.
    """
    args = tyro.cli(SizeArgs, args=argv, prog="hagane plan size")
    from hagane.model import ModelConfig, make_config, split_experts
    from hagane.model.sizes import size_named
    from hagane.plan.count import closed_form, counted, meta_model

    widths = size_named(args.size)
    embodiments = tuple(load_toml(p, Embodiment) for p in args.embodiment) or own_worlds()
    members = args.members or (16 if widths.experts >= 256 else 0)
    if members:
        owners = sorted({e.owner for e in embodiments})
        owners += [f"member-{i:02d}" for i in range(len(owners) + 1, members + 1)]
        ordered = tuple(sorted(embodiments, key=lambda e: e.name))
        config = ModelConfig(args.size, ordered, split_experts(widths.experts, tuple(owners)))
    else:
        config = make_config(args.size, embodiments)
    count = closed_form(config)
    total, by_owner = counted(meta_model(config))
    if (total, by_owner) != (count.total, dict(count.owners)):
        raise ConfigError(f"the closed form counts {count.total:,}, the model {total:,}", where="hagane plan size")
    experts = f"{widths.experts} experts of ffn {widths.expert_ffn}, top-{widths.top_k} + 1 shared"
    print(f"size {args.size}: {widths.layers} layers, d {widths.d_model}, {experts}; {len(embodiments)} embodiments\n")
    for part, n in count.parts.items():
        print(f"  {part:<16} {n:>22,}  {n / count.total:7.2%}")
    print(f"  {'total':<16} {count.total:>22,}  {long_count(count.total)}")
    print(f"  {'active a token':<16} {count.active:>22,}  {long_count(count.active)}\n")
    for owner, n in count.owners.items():
        held = config.experts.get(owner, 0)
        print(f"  {owner:<16} {n:>22,}  {n / count.total:7.2%}  {held} experts a layer")
    print("\nclosed form and meta-device model agree to the last parameter")
    return 0


def own_worlds() -> tuple[Embodiment, ...]:
    """The demo's three machines, from their files; no simulator is started."""
    import hagane.worlds

    folder = Path(hagane.worlds.__file__).parent
    return tuple(load_toml(folder / f"{name}.toml", Embodiment) for name in ("arm", "mill", "road"))
