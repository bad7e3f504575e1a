"""Tables of plans on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from hagane.plan.run import RunPlan
    from hagane.plan.tokens import Account


def print_run(plan: RunPlan) -> None:
    """A run's plan: the answer, its layouts, the step, the sources, and all assumptions."""
    from hagane.plan.rates import lines_of

    console = console_of()
    for line in headline(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table(console, "layouts that fit, fastest first", LAYOUT_HEAD, layout_rows(plan))
    table(console, "one step of the first", ("part", "seconds", "share"), step_rows(plan))
    table(console, "memory of its fullest GPU", ("kind", "GiB"), memory_rows(plan))
    table(console, "where the tokens come from", SOURCE_HEAD, source_rows(plan.account))
    table(console, "yen", ("fiscal year", "yen"), money_rows(plan))
    gpu = plan.request.gpu
    table(console, f"assumed of {gpu.name}", ("value", ""), gpu_rows(plan))
    table(
        console,
        "assumed (each can be set in the file for --assume)",
        ("key", "value", "unit", "why"),
        lines_of(plan.assumed),
    )


def console_of() -> Console:
    """The terminal, or 140 columns where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def table(console: Console, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print one table; numbers stand at the right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    body = [tuple(r) for r in rows]
    for place, name in enumerate(head):
        right = bool(body) and place > 0 and all(r[place][:1].isdigit() or not r[place] for r in body)
        made.add_column(name, justify="right" if right else "left")
    for row in body:
        made.add_row(*row)
    console.print(made)


def headline(plan: RunPlan) -> list[str]:
    """The answer in a few lines."""
    from hagane.plan.run import yen
    from hagane.plan.tokens import words

    q, best = plan.request, plan.best
    step, cost = best.step, plan.cost
    mfu = step.mfu(q.gpu, q.precision)
    held, pledged = plan.account.share("held"), plan.account.share("pledged")
    return [
        f"size {q.size} ({plan.shape.total / 1e9:,.1f} B parameters) on {words(q.tokens)} tokens, "
        f"{q.gpus:,} x {q.gpu.name}, {q.precision}",
        f"layout ({best.setup.layout}): {step.seconds:.2f} s a step of {step.tokens / 1e6:.1f} M tokens, "
        f"{step.tokens_s_gpu:,.0f} tokens/s and {step.tokens_s_gpu * step.model_flops / 1e12:,.0f} TFLOP/s a GPU, "
        f"MFU {mfu:.1%}",
        f"{plan.days:,.1f} days, {q.start} to {plan.end}: {plan.steps:,} steps, "
        f"{plan.goodput.interruptions(plan.days):,.0f} interruptions, a checkpoint every "
        f"{plan.goodput.every_s / 60:.0f} min, goodput {plan.goodput.share:.1%}",
        f"{cost.gpu_hours / 1e6:,.2f} M GPU hours, {cost.energy_mwh:,.0f} MWh, {yen(cost.total_yen)} "
        f"(hardware {yen(cost.hardware_yen)}, housing {yen(cost.site_yen)}, energy {yen(cost.energy_yen)})",
        f"tokens named: {words(plan.account.tokens)}; held {held:.0%}, pledged {pledged:.0%}, assumed "
        f"{plan.account.share('assumed'):.0%}",
        "an estimate: rates of published stacks and data sheets; no GPU figure of our own engine is behind it yet\n",
    ]


LAYOUT_HEAD = ("layout", "stages a rank", "again", "weights", "GiB a GPU", "s a step", "tokens/s GPU", "MFU", "days")


def layout_rows(plan: RunPlan) -> list[tuple[str, ...]]:
    """The best layouts."""
    q = plan.request
    rows: list[tuple[str, ...]] = []
    for c in plan.choices:
        days = plan.days * plan.best.step.tokens_s_gpu / c.step.tokens_s_gpu
        rows.append(
            (
                str(c.setup.layout),
                str(c.setup.virtual),
                c.setup.recompute,
                "gathered a layer" if c.setup.reshard else "gathered a step",
                f"{c.memory.total / 2**30:.0f}",
                f"{c.step.seconds:.2f}",
                f"{c.step.tokens_s_gpu:,.0f}",
                f"{c.step.mfu(q.gpu, q.precision):.1%}",
                f"{days:,.1f}",
            )
        )
    return rows


def step_rows(plan: RunPlan) -> list[tuple[str, str, str]]:
    """Where a step's time goes."""
    step = plan.best.step
    parts = {**STEP_WORDS}
    values = {**vars(step.work), "waiting": step.waiting, "once": step.once}
    return [(parts[k], f"{v:.3f}", f"{v / step.seconds:.1%}") for k, v in values.items() if v > 0] + [
        ("in all", f"{step.seconds:.3f}", "100.0%")
    ]


STEP_WORDS = {
    "products": "matrix products",
    "attention": "attention cores",
    "elements": "element-wise kernels, weights read",
    "again": "computed again",
    "experts": "tokens to experts and back, not hidden",
    "tensor": "tensor parallel, not hidden",
    "shards": "weights and gradients, not hidden",
    "waiting": "pipeline bubble and uneven stages",
    "once": "optimiser, and reductions once a step",
}


def memory_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Memory by kind, and what is left."""
    memory, gpu = plan.best.memory, plan.request.gpu
    rows = [(kind, f"{size / 2**30:.1f}") for kind, size in vars(memory).items() if size]
    free = gpu.memory_gib - memory.total / 2**30
    return [*rows, ("in all", f"{memory.total / 2**30:.1f}"), (f"free of {gpu.memory_gib:g}", f"{free:.1f}")]


SOURCE_HEAD = (
    "owner / data set",
    "machine",
    "status",
    "purpose",
    "hours",
    "tokens a sample",
    "tokens",
    "contract or basis",
)


def source_rows(account: Account) -> list[tuple[str, ...]]:
    """The sources in tokens."""
    from hagane.plan.tokens import words

    rows = []
    for c in account.counted:
        s = c.source
        proof = (
            f"{s.contract[:16]}{' (checked)' if c.checked else ' (not checked: no --home)'}" if s.contract else s.basis
        )
        rows.append(
            (
                f"{s.owner} / {s.dataset}",
                s.embodiment,
                s.status,
                s.purpose,
                f"{c.hours:,.0f}",
                f"{c.sample_tokens:,}",
                words(c.tokens),
                proof,
            )
        )
    return [*rows, ("in all", "", "", "", "", "", words(account.tokens), "")]


def money_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Yen by fiscal year."""
    rows = [(f"fiscal {year}", f"{amount:,.0f}") for year, amount in plan.by_year.items()]
    return [*rows, ("in all", f"{plan.cost.total_yen:,.0f}")]


def gpu_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """What is assumed of the accelerator."""
    return [(k, f"{v:,}" if isinstance(v, int | float) else str(v)) for k, v in vars(plan.request.gpu).items()]
