"""Work: the operations of a training step in closed form, from the widths and the samples alone.

Only matrix products count, a multiplication and an addition as two, as in every published MFU (PaLM, arXiv
2204.02311, appendix B). A backward costs a product for each input that needs a gradient: two as a rule, one where
the input is data. Attention counts the whole [T, T] of a packed row, since the kernels that take a mask save nothing
by it; its fused backward makes the scores again: five products for the forward's two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hagane.model import ModelConfig
from hagane.model.attention import SHORT
from hagane.model.packing import pack
from hagane.model.slots import BYTE_WIDTH, DESCRIPTOR, TEXT_BYTES, SampleLayout, Slot, sample_layouts
from hagane.model.tower import TIME_FEATURES
from hagane.plan.count import closed_form
from hagane.plan.shape import Shape, trunk_of

BACKWARD = 2
"""Backward over forward, where what is useful is counted."""


@dataclass(frozen=True)
class Share:
    """What one rank computes of a microbatch; the defaults are all of it.

    Tensor-parallel ranks split the heads, context-parallel ranks the tokens; both have the same samples and each makes
    all their tokens. What is not tensor parallel (router, shared expert) works on the rank's own tokens, the tower on
    its own samples.
    """

    layers: int = -1
    """Trunk layers on the rank; -1 means all."""
    first: bool = True
    """The rank makes the tokens."""
    last: bool = True
    """The rank runs the tower and the losses."""
    tp: int = 1
    """Ranks that share the heads."""
    cp: int = 1
    """Ranks that share the tokens."""
    at: int = 0
    """Which of the cp * tp ranks: each takes the losses of every so-manieth sample of a part."""
    received: float = -1.0
    """Rows of tokens that reach the rank's experts, a layer; -1 means top-k times the tokens."""
    recompute: bool = False
    """Trunk layers run forward again in the backward."""
    packed: bool = True
    """Attention meets all places of packed rows, as kernels work it off; False counts a sample's own keys, and nothing
    that does not grow with the samples: what is useful."""
    short_plain: bool = True
    """Attention over few keys is plain matrix products, as on the CPU."""


@dataclass
class Work:
    """Operations by part: [forward, backward, recompute]."""

    parts: dict[str, list[int]] = field(default_factory=dict)
    """By part of the model."""

    def add(self, part: str, forward: float, backward: float = 2.0) -> None:
        """Add a part's forward, and a backward of so many times that."""
        row = self.parts.setdefault(part, [0, 0, 0])
        row[0] += round(forward)
        row[1] += round(forward * backward)

    def times(self, steps: int) -> Work:
        """So many of the same."""
        return Work({part: [n * steps for n in row] for part, row in self.parts.items()})

    @property
    def total(self) -> int:
        """All operations."""
        return sum(map(sum, self.parts.values()))

    def by_group(self) -> dict[str, int]:
        """By the groups that `flops.FlopMeter` tells apart: fused attention, grouped products, the rest."""
        out = {"attention": 0, "grouped matmul": 0, "matmul": 0}
        for part, row in self.parts.items():
            group = {"attention": "attention", "routed experts": "grouped matmul"}.get(part, "matmul")
            out[group] += sum(row)
        return out


def step_work(config: ModelConfig, samples: Mapping[int, int], share: Share | None = None) -> Work:
    """The operations of one forward and backward.

    Args:
        config: the model.
        samples: by embodiment row, how many; in row order.
        share: what of it this rank does.
    """
    share, layouts, work = share or Share(), sample_layouts(config), Work()
    present = {row: n for row, n in samples.items() if n}
    own = {row: len(range(share.at, n, share.tp * share.cp)) for row, n in present.items()}
    if share.first:
        _tokeniser(work, config, layouts, present, packed=share.packed)
    _trunk(work, config, layouts, present, share)
    if share.last:
        _tower(work, config, layouts, own, share)
        _next_heads(work, config, layouts, own)
    return work


def _tokeniser(
    work: Work, config: ModelConfig, layouts: tuple[SampleLayout, ...], samples: Mapping[int, int], *, packed: bool
) -> None:
    w = config.widths
    pixels = config.patch * config.patch * 3
    for row, n in samples.items():
        work.add("tokeniser", n * w.text_tokens * 2 * TEXT_BYTES * BYTE_WIDTH * w.d_model)
        for slot in layouts[row].slots:
            width = pixels if slot.channel.kind == "image" else slot.width
            # the input is data: only the weights get a gradient
            work.add("tokeniser", n * slot.tokens * 2 * width * w.d_model, 1)
            work.add("tokeniser", 2 * DESCRIPTOR * w.d_model if packed else 0, 1)


def _trunk(
    work: Work, config: ModelConfig, layouts: tuple[SampleLayout, ...], samples: Mapping[int, int], share: Share
) -> None:
    w, trunk = config.widths, trunk_of(config)
    layers, parts = w.layers if share.layers < 0 else share.layers, trunk.layer_parts(dense=False)
    tokens = sum(n * layouts[row].length for row, n in samples.items())
    own = tokens / (share.tp * share.cp)
    received = share.received if share.received >= 0 else tokens * w.top_k
    packing = pack(tuple(samples.values()), tuple(layouts[row].length for row in samples), w.pack_tokens)
    met = packing.rows * packing.tokens**2
    if not share.packed:
        met = sum(n * layouts[row].length ** 2 for row, n in samples.items())
    work.add("projections", layers * tokens / share.cp * parts["projections"] / share.tp)
    _attention(work, layers * met * trunk.key_flops / (share.tp * share.cp), packing.tokens, share)
    work.add("router", layers * own * parts["router"])
    work.add("shared experts", layers * own * parts["shared experts"])
    work.add("routed experts", layers * received * parts["routed experts"] / w.top_k)
    if share.recompute:
        # so far the work holds the tokens and the layers: the layers run again
        for part, row in work.parts.items():
            row[2] += row[0] if part != "tokeniser" else 0
        # the recomputation stops at the last tensor that the backward needs: before the shared expert's last product
        work.parts["shared experts"][2] -= work.parts["shared experts"][0] // 3


def _tower(
    work: Work, config: ModelConfig, layouts: tuple[SampleLayout, ...], samples: Mapping[int, int], share: Share
) -> None:
    w, t, n = config.widths, config.widths.tower_d, sum(samples.values())
    longest = max(layouts[row].length for row in samples)
    chunk = n * config.horizon
    work.add("tower", w.tower_layers * n * longest * 2 * w.d_model * 2 * t)
    work.add("tower", w.tower_layers * chunk * 2 * (6 * t * t + 3 * t * w.tower_ffn))
    for keys in (config.horizon, longest):
        _attention(work, w.tower_layers * 4 * chunk * keys * t, keys, share)
    work.add("tower", chunk * 2 * (config.action_width + TIME_FEATURES) * t, 1)
    work.add("tower", chunk * 2 * (config.action_width + t) * t)


def _next_heads(work: Work, config: ModelConfig, layouts: tuple[SampleLayout, ...], samples: Mapping[int, int]) -> None:
    pixels = config.patch * config.patch * 3
    for row, n in samples.items():
        for slot in layouts[row].slots:
            numbers = predicted(slot, pixels)
            work.add("next heads", n * numbers * 2 * config.widths.d_model)


def predicted(slot: Slot, pixels: int) -> int:
    """Numbers that the second loss asks of a slot's tokens."""
    if slot.is_action:
        return 0
    if slot.channel.kind == "image":
        return slot.tokens // slot.channel.history.steps * pixels
    return slot.tokens * slot.out


def _attention(work: Work, forward: float, keys: int, share: Share) -> None:
    plain = share.short_plain and keys <= SHORT
    work.add("short attention" if plain else "attention", forward, 2.0 if plain else 2.5)


def sample_flops(config: ModelConfig, embodiment: str) -> int:
    """Useful operations of one training sample, forward and backward (twice the forward: arXiv 2001.08361)."""
    work = step_work(config, {config.index(embodiment): 1}, Share(packed=False))
    return (1 + BACKWARD) * sum(row[0] for row in work.parts.values())


def data_tokens(layout: SampleLayout) -> int:
    """Tokens of a sample that carry readings and past actions; prompts and instruction are left out."""
    return sum(s.tokens for s in layout.slots)


def shape_of(config: ModelConfig, sample_tokens: float) -> Shape:
    """The shape of one of our models.

    Args:
        config: the model; what is beside its trunk is counted for a sample of each of its machines.
        sample_tokens: tokens of a sample on average: a token looks at its own sample only, whole.
    """
    trunk, layouts = trunk_of(config), sample_layouts(config)
    beside = step_work(config, {layout.row: 1 for layout in layouts}, Share(layers=0, packed=False))
    tokens = sum(layout.length for layout in layouts)
    return replace(
        trunk,
        span=sample_tokens,
        other_params=closed_form(config).total - trunk.total,
        other_flops=sum(row[0] for row in beside.parts.values()) / tokens,
    )
