"""Draw docs/layout.svg: sixteen ranks of one layout, seen by the samples, the dense weights and the experts.

Every number in the picture is asked of the engine's own mesh, so the picture cannot differ from the code:

    python scripts/draw_layout.py > docs/layout.svg
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hagane.engine import Layout, Mesh

LAYOUT = Layout(pp=2, dp_shard=4, tp=2, ep=4)
FILLS = ("#dbe9f6", "#fde3c8", "#d9efd6", "#ecdcf1")
"""One a group; light, so that black figures are readable on each."""
BOX, GAP, TOP, LEFT = 66, 8, 92, 22
PANEL = 4 * (BOX + GAP) + 30


def mesh_of(rank: int) -> Mesh:
    """A rank's place; no processes are needed to know it."""
    return Mesh(LAYOUT, rank, None, None, None, None, None)


def part(mesh: Mesh, axis: str) -> str:
    """Which part of the weights a rank keeps between steps: FSDP cuts them along this axis."""
    return f"{mesh.at(axis) + 1}/{LAYOUT.dp_shard if axis == 'dp_shard' else LAYOUT.efsdp}"


def panel(at: int, title: str, below: str, axis: str, text: Callable[[Mesh], str]) -> Iterator[str]:
    """Sixteen boxes, eight a stage of the pipeline, filled by the rank's place along an axis."""
    x0 = LEFT + at * (PANEL + 16)
    yield f'<text x="{x0}" y="52" class="title">{title}</text>'
    yield f'<text x="{x0}" y="72" class="note">{below}</text>'
    for rank in range(LAYOUT.ranks):
        mesh = mesh_of(rank)
        within = rank % LAYOUT.fsdp
        x = x0 + within // 2 * (BOX + GAP)
        y = TOP + 24 + mesh.at("pp") * (2 * (BOX + GAP) + 48) + within % 2 * (BOX + GAP)
        fill = FILLS[mesh.at(axis)]
        yield f'<rect x="{x}" y="{y}" width="{BOX}" height="{BOX}" rx="6" fill="{fill}"/>'
        yield f'<text x="{x + BOX / 2:g}" y="{y + 27}" class="rank">{rank}</text>'
        yield f'<text x="{x + BOX / 2:g}" y="{y + 48}" class="what">{text(mesh)}</text>'
    for stage in range(LAYOUT.pp):
        y = TOP + 15 + stage * (2 * (BOX + GAP) + 48)
        yield f'<text x="{x0}" y="{y}" class="note">pp {stage}: {("first", "last")[stage]} layers</text>'


def svg() -> str:
    """The whole picture."""
    width, height = LEFT + 3 * (PANEL + 16), TOP + 2 * (2 * (BOX + GAP) + 48) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>Layout {LAYOUT}: samples, attention and experts of {LAYOUT.ranks} ranks</title>",
        "<style>text{font-family:system-ui,sans-serif;fill:#1b1b1b}.head{font-size:19px;font-weight:600}"
        ".title{font-size:17px;font-weight:600}.note{font-size:14px;fill:#444}.rank{font-size:22px;text-anchor:middle}"
        ".what{font-size:16px;text-anchor:middle}rect{stroke:#8a8a8a}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff" style="stroke:none"/>',
        f'<text x="{LEFT}" y="24" class="head">Layout {LAYOUT}: {LAYOUT.ranks} ranks, seen three ways</text>',
        *panel(0, "samples", "one colour: the same samples", "dp_shard", lambda m: f"data {m.at('dp_shard')}"),
        *panel(1, "attention", "one colour: the same heads", "tp", lambda m: f"h{m.at('tp')}, {part(m, 'dp_shard')}"),
        *panel(2, "experts", "one colour: the same experts", "ep", lambda m: f"e{m.at('ep')}, {part(m, 'efsdp')}"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(svg(), end="")
