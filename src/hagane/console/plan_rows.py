"""Plans in words: the rows that the terminal and the page both show."""

from __future__ import annotations

from collections.abc import Iterator

from hagane.plan.programme import Programme
from hagane.plan.rates import gpu_named
from hagane.plan.run import RunPlan, Sweep, yen
from hagane.plan.tokens import Account
from hagane.terms.amount import floor_count


def headline(plan: RunPlan) -> list[str]:
    """The answer in a few lines."""
    q, best = plan.request, plan.best
    step, cost = best.step, plan.cost
    mfu = step.mfu(q.gpu, q.precision)
    held, pledged = plan.account.share("held"), plan.account.share("pledged")
    return [
        f"size {q.size} ({plan.shape.total / 1e9:,.1f} B parameters) on {floor_count(q.tokens)} tokens, "
        f"{q.gpus:,} x {q.gpu.name}, {q.precision}",
        f"layout ({best.setup.layout}): {step.seconds:.2f} s a step of {step.tokens / 1e6:.1f} M tokens, "
        f"{step.tokens_s_gpu:,.0f} tokens/s and {step.tokens_s_gpu * step.model_flops / 1e12:,.0f} TFLOP/s a GPU, "
        f"MFU {mfu:.1%}",
        f"{plan.days:,.1f} days, {q.start} to {plan.end}: {plan.steps:,} steps, "
        f"{plan.goodput.interruptions(plan.days):,.0f} interruptions, a checkpoint every "
        f"{plan.goodput.every_s / 60:.0f} min, goodput {plan.goodput.share:.1%}",
        f"{cost.gpu_hours / 1e6:,.2f} M GPU hours, {cost.energy_mwh:,.0f} MWh, {yen(cost.total_yen)} "
        f"(hardware {yen(cost.hardware_yen)}, housing {yen(cost.site_yen)}, energy {yen(cost.energy_yen)})",
        f"tokens named: {floor_count(plan.account.tokens)}; held {held:.0%}, pledged {pledged:.0%}, assumed "
        f"{plan.account.share('assumed'):.0%}",
        "an estimate: rates of published stacks and data sheets; no GPU figure of our own engine is behind it yet\n",
    ]


LAYOUT_HEAD = (
    "layout",
    "stages a rank",
    "again",
    "weights gathered",
    "GiB a GPU",
    "s a step",
    "tokens/s GPU",
    "MFU",
    "days",
)


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
                f"once a {c.setup.gather}",
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
                floor_count(c.tokens),
                proof,
            )
        )
    return [*rows, ("in all", "", "", "", "", "", floor_count(account.tokens), "")]


def money_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Yen by fiscal year."""
    rows = [(f"fiscal {year}", f"{amount:,.0f}") for year, amount in plan.by_year.items()]
    return [*rows, ("in all", f"{plan.cost.total_yen:,.0f}")]


def gpu_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """What is assumed of the accelerator."""
    return [(k, f"{v:,}" if isinstance(v, int | float) else str(v)) for k, v in vars(plan.request.gpu).items()]


SWEEP_HEAD = ("GPUs", "days", "MFU", "goodput", "yen", "layout")


def sweep_rows(sweep: tuple[Sweep, ...]) -> list[tuple[str, ...]]:
    """Larger and smaller machines."""
    return [
        (
            f"{s.gpus:,}",
            f"{s.days:,.1f}",
            f"{s.mfu:.1%}",
            f"{s.goodput:.1%}",
            f"{s.yen / 1e6:,.0f} M",
            str(s.layout),
        )
        for s in sweep
    ]


MACHINE_HEAD = ("machine", "GPUs", "delivered", "yen", "MW", "days of milestones and trials")


def machine_rows(programme: Programme) -> Iterator[tuple[str, ...]]:
    """Machines, and how much of their time the milestones take; the rest is for members' fine-tuning and evaluation."""
    for m in programme.scenario.machine:
        gpu = gpu_named(m.gpu, programme.scenario.assumed)
        power = m.gpus * gpu.watts * programme.scenario.assumed.prices.pue / 1e6
        yield (
            m.name,
            f"{m.gpus:,} x {m.gpu}",
            f"{m.delivered}",
            yen(m.gpus * (m.yen_per_gpu or gpu.yen)),
            f"{power:.1f}",
            f"{programme.occupied(m):.0%}",
        )


MILESTONE_HEAD = (
    "milestone",
    "model",
    "tokens",
    "on",
    "trials from",
    "main run",
    "trained",
    "reached",
    "due",
    "yen of it",
)


def milestone_rows(programme: Programme) -> Iterator[tuple[str, ...]]:
    """Milestones with their computed dates."""
    for m in programme.milestones:
        q = m.plan.request
        yield (
            m.milestone.name,
            q.size,
            floor_count(q.tokens),
            f"{q.gpus:,} x {q.gpu.name}",
            f"{m.start}",
            f"{m.main_start}, {m.plan.days:,.1f} days",
            f"{m.trained}",
            f"{m.reached}",
            f"{m.milestone.due}",
            yen(m.plan.cost.total_yen),
        )


def spend_rows(programme: Programme) -> list[tuple[str, ...]]:
    """Billions of yen by kind and fiscal year; the last rows are sums, new money, and what is left."""
    years = programme.scenario.years

    def row(name: str, values: list[float], total: str) -> tuple[str, ...]:
        return (name, *(billions(v) for v in values), total)

    rows = [row(r.name, [r.yen[y] for y in years], billions(r.total)) for r in programme.spend]
    budget = [y.budget_yen for y in programme.scenario.year]
    return [
        *rows,
        row("in all", [programme.spent(y) for y in years], billions(programme.total)),
        row("new money", budget, billions(programme.budget)),
        row("left at the end of the year", [programme.left(y) for y in years], ""),
    ]


def token_rows(programme: Programme) -> list[tuple[str, ...]]:
    """Tokens of all data collected by the end of each fiscal year, by data set."""
    years = programme.scenario.years
    names = [d.dataset for d in programme.scenario.data]
    held = {y: {c.source.dataset: c.tokens for c in programme.hours[y].counted} for y in years}
    rows = [(n, *(floor_count(held[y].get(n, 0.0)) for y in years)) for n in names]
    return [*rows, ("in all", *(floor_count(programme.hours[y].tokens) for y in years))]


def billions(amount: float) -> str:
    """Yen as billions with one decimal."""
    return f"{amount / 1e9:,.1f}"
