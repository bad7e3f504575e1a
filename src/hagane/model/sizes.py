"""The one dial: `size`. A row of eleven numbers per size; every other width follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from hagane.terms import ConfigError

CONSORTIUM = "consortium"


@dataclass(frozen=True)
class Size:
    """Widths of the trunk and of the action tower."""

    d_model: int
    """D: width of the trunk."""
    layers: int
    """Trunk layers."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads (grouped-query attention)."""
    head_dim: int
    """Width of a head."""
    experts: int
    """Routed experts a layer."""
    top_k: int
    """Routed experts a token reaches, beside the shared one."""
    expert_ffn: int
    """Hidden width of an expert (SwiGLU)."""
    tower_d: int
    """Width of the action tower."""
    tower_layers: int
    """Layers of the action tower."""
    prompts: int
    """Learned prompt tokens an embodiment."""

    @property
    def tower_heads(self) -> int:
        """Heads of the tower: 32 wide below 512, 64 wide from there."""
        return self.tower_d // (64 if self.tower_d >= 512 else 32)

    @property
    def tower_ffn(self) -> int:
        """Hidden width of the tower's SwiGLU."""
        return 2 * self.tower_d

    @property
    def text_tokens(self) -> int:
        """Tokens for the instruction; each holds 64 bytes."""
        return 1 if self.d_model < 512 else 8

    @property
    def pack_tokens(self) -> int:
        """Least token budget of one packed row."""
        return 32 if self.d_model < 512 else 1024


SIZES: dict[str, Size] = {
    #            d     L   heads kv  hd   E   k  ffn   tower   prompts
    "1m": Size(128, 4, 4, 2, 32, 8, 2, 64, 96, 2, 2),
    "4m": Size(192, 6, 6, 2, 32, 8, 2, 96, 128, 3, 4),
    "40m": Size(512, 8, 8, 2, 64, 16, 2, 160, 256, 4, 16),
    "400m": Size(1024, 16, 16, 4, 64, 32, 4, 208, 512, 6, 16),
    "4b": Size(2048, 28, 16, 4, 128, 64, 6, 320, 1024, 8, 32),
    "40b": Size(4096, 40, 32, 8, 128, 128, 8, 576, 1024, 12, 32),
    "400b": Size(6144, 56, 48, 8, 128, 256, 8, 1472, 1536, 12, 32),
    "1t": Size(7168, 61, 64, 8, 128, 384, 8, 2048, 1536, 16, 32),
}


def size_named(name: str) -> Size:
    """The size of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SIZES:
        raise ConfigError(f"unknown size {name!r}", next_step=f"use one of {', '.join(SIZES)}")
    return SIZES[name]


def split_experts(experts: int, members: tuple[str, ...]) -> dict[str, int]:
    """Experts of each owner in one layer: a twelfth (rounded up) to the consortium, the rest in equal shares.

    What does not divide stays with the consortium: 384 over 16 members is 22 each and 32.

    Raises:
        ConfigError: more members than experts to give.
    """
    others = tuple(sorted(set(members) - {CONSORTIUM}))
    share = (experts - ceil(experts / 12)) // len(others) if others else 0
    if others and share < 1:
        raise ConfigError(f"{experts} experts are too few for {len(others)} members", next_step="choose a larger size")
    return {CONSORTIUM: experts - share * len(others), **dict.fromkeys(others, share)}
