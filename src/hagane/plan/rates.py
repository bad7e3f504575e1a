"""Rates: what an estimate assumes of GPUs, kernels, links, faults and prices. All of it can be changed in one TOML."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from hagane.terms import ConfigError, load_toml, parse_toml

Precision = Literal["bf16", "fp8"]
T = TypeVar("T")


def stated(value: T, unit: str, why: str) -> T:
    """A default that travels with its unit and with the reason for it; both are printed."""
    made: T = field(default=value, metadata={"unit": unit, "why": why})
    return made


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator; see gpus.toml for what each number is."""

    name: str
    """Name for `--gpu`."""
    memory_gib: float
    """Memory that a process can use, GiB."""
    bf16_peak: float
    """Dense bf16 TFLOP/s of the data sheet: what MFU is a share of."""
    fp8_peak: float
    """Dense fp8 TFLOP/s of the data sheet."""
    bf16_matmul: float
    """Best bf16 matrix product measured, TFLOP/s."""
    fp8_matmul: float
    """Best fp8 matrix product measured, TFLOP/s."""
    hbm_tbs: float
    """Memory bandwidth, TB/s."""
    nvlink_gbs: float
    """Bandwidth of one GPU within the NVLink domain, one direction, GB/s."""
    domain: int
    """GPUs of one NVLink domain that a layout uses."""
    network_gbs: float
    """Bandwidth of one GPU beyond the domain, one direction, GB/s."""
    watts: float
    """One GPU's share of its server at full load, W."""
    yen: float
    """One GPU's share of servers, network and storage, bought, yen."""
    source: str = ""
    """Where the numbers are from."""

    def peak(self, precision: Precision) -> float:
        """FLOP/s of the data sheet."""
        return 1e12 * (self.fp8_peak if precision == "fp8" else self.bf16_peak)

    def matmul(self, precision: Precision) -> float:
        """FLOP/s of the best matrix product."""
        return 1e12 * (self.fp8_matmul if precision == "fp8" else self.bf16_matmul)


@dataclass(frozen=True)
class Kernels:
    """How well kernels use a GPU. `matmul` is the one constant that is fitted; see docs/plan.md."""

    matmul: float = stated(0.709, "of measured matmul", "fitted on one published run: DeepSeek-V3 on 256 GB200, bf16")
    """Share of the best measured matrix product that a training step's products reach."""
    attention: float = stated(0.6, "of measured bf16 matmul", "FlashAttention-3 reaches 0.5 to 0.75 (arXiv 2407.08608)")
    """Share that attention cores reach, forward and backward."""
    memory: float = stated(0.75, "of memory bandwidth", "fused element-wise kernels; copies reach 0.9")
    """Share of the memory bandwidth that element-wise kernels reach."""


@dataclass(frozen=True)
class Links:
    """How well collectives use links, and how much of them hides behind computation."""

    nvlink: float = stated(0.78, "of nominal", "DeepEP: 153-158 of H800's 200 GB/s")
    """Share of NVLink's bandwidth."""
    network: float = stated(0.92, "of nominal", "DeepEP: 43-47 of 50 GB/s at EP 16 to 64")
    """Share of the network's bandwidth."""
    hop_us: float = stated(5.0, "us", "one hop of a ring between nodes, in NCCL; many ranks make many hops")
    """Latency of one hop of a collective between nodes."""
    hide_experts: float = stated(0.0, "hidden", "our dispatch is not overlapped; DualPipe hides all, HybridEP none")
    """Share of the experts' all-to-all that runs behind computation."""
    hide_tensor: float = stated(0.8, "hidden", "collectives split into chunks beside their products, as Megatron does")
    """Share of tensor- and sequence-parallel collectives that runs behind computation."""
    hide_shards: float = stated(0.9, "hidden", "FSDP fetches the next layer's weights while it computes this one's")
    """Share of weight gathers and gradient reductions that runs behind computation."""
    imbalance: float = stated(1.2, "x mean", "tokens of the busiest rank; balanced benchmarks force 1.0")
    """Tokens that the busiest rank's experts receive, against the mean."""


@dataclass(frozen=True)
class Training:
    """The step."""

    batch_tokens: int = stated(62_914_560, "tokens", "DeepSeek-V3: 15,360 rows of 4,096")
    """Tokens of one optimiser step, all ranks."""
    microbatch_tokens: int = stated(4096, "tokens", "one packed row")
    """Tokens of one microbatch on one data-parallel rank."""
    optimiser_bytes: float = stated(8.0, "bytes a parameter", "AdamW: two fp32 moments; Muon has one")
    """Optimiser state."""
    ema_bytes: float = stated(4.0, "bytes a parameter", "moving average of the weights in fp32; 0 without")
    """Moving average of the weights."""
    reserve: float = stated(0.1, "of memory", "allocator fragmentation, NCCL, CUDA context")
    """Share of a GPU's memory that a plan leaves free."""


@dataclass(frozen=True)
class Faults:
    """Failures and checkpoints."""

    mtbf_gpu_hours: float = stated(45_600.0, "h of one GPU", "Llama 3: 466 interruptions, 16,384 GPUs, 54 days")
    """Mean time between interruptions of one GPU's share of the machine."""
    checkpoint_stall_s: float = stated(10.0, "s", "asynchronous: the copy to host memory; not measured on a GPU")
    """Time that one checkpoint stops training."""
    restart_s: float = stated(480.0, "s", "find the fault, swap the node, start, load; MegaScale: within 15 min")
    """Time from an interruption to the first new step, lost steps not counted."""
    other_loss: float = stated(0.03, "of time", "evaluation, maintenance, slow nodes")
    """Share of the calendar beside interruptions in which the machine does not train."""


@dataclass(frozen=True)
class Prices:
    """Energy and money. Assumptions of a plan, to be replaced by quotations."""

    pue: float = stated(1.25, "", "power usage effectiveness of a new, partly liquid-cooled site")
    """Energy of the whole site per energy of its servers."""
    yen_per_kwh: float = stated(20.0, "yen", "extra-high-voltage power in Japan, 2025-26, all surcharges")
    """Price of energy."""
    site_yen_per_kw_month: float = stated(25_000.0, "yen", "housing, by power")
    """Price of floor, cooling and operation."""
    life_years: float = stated(5.0, "years", "straight-line depreciation")
    """Years that hardware is written off over."""
    used: float = stated(0.85, "of hours", "hours of a year that some run pays for")
    """Share of a machine's hours that runs use."""
    rent_yen_per_gpu_hour: float = stated(
        0.0, "yen", "0: bought; else everything is rented at this price, power included"
    )
    """Rent of one GPU."""


@dataclass(frozen=True)
class Assumptions:
    """Everything an estimate assumes; a file given with `--assume` may hold any part of it."""

    kernels: Kernels = field(default_factory=Kernels)
    """Kernels."""
    links: Links = field(default_factory=Links)
    """Links."""
    training: Training = field(default_factory=Training)
    """The step."""
    faults: Faults = field(default_factory=Faults)
    """Failures."""
    prices: Prices = field(default_factory=Prices)
    """Money."""
    gpu: tuple[Gpu, ...] = ()
    """Accelerators that replace or add to those of gpus.toml."""

    def __post_init__(self) -> None:
        links = {k: v for k, v in vars(self.links).items() if k not in ("imbalance", "hop_us")}
        shares = {**vars(self.kernels), **links, "reserve": self.training.reserve, "used": self.prices.used}
        for name, value in shares.items():
            if not 0 <= value <= 1 or (name in NEVER_ZERO and value == 0):
                raise ConfigError(f"`{name}` is a share between 0 and 1, not {value}")
        counts = {**vars(self.training), **vars(self.faults), **vars(self.prices)}
        for name, value in counts.items():
            if value < 0 or (name in NEVER_ZERO and value == 0):
                raise ConfigError(f"`{name}` must be positive, not {value}")
        if self.links.imbalance < 1 or self.links.hop_us < 0 or self.prices.pue < 1 or not self.faults.other_loss < 1:
            raise ConfigError("imbalance and pue are at least 1, hop_us is not negative, other_loss is below 1")


NEVER_ZERO = frozenset(
    [
        "matmul",
        "attention",
        "memory",
        "nvlink",
        "network",
        "used",
        "batch_tokens",
        "microbatch_tokens",
        "mtbf_gpu_hours",
        "checkpoint_stall_s",
        "life_years",
    ]
)


@dataclass(frozen=True)
class _Shelf:
    gpu: tuple[Gpu, ...]


def load_assumptions(path: Path | None) -> Assumptions:
    """Our defaults, with what a file replaces.

    Raises:
        ConfigError: the file is not of this form, or a value is out of its range.
    """
    return load_toml(path, Assumptions) if path is not None else Assumptions()


def gpus(assumed: Assumptions) -> dict[str, Gpu]:
    """All accelerators by name; those of the assumptions replace those of gpus.toml."""
    text = (files("hagane.plan") / "gpus.toml").read_text("utf-8")
    shelf = parse_toml(text, _Shelf, where="gpus.toml").gpu
    return {g.name: g for g in (*shelf, *assumed.gpu)}


def gpu_named(name: str, assumed: Assumptions) -> Gpu:
    """The accelerator of that name.

    Raises:
        ConfigError: there is none.
    """
    known = gpus(assumed)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        step = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown gpu {name!r}",
            next_step=f"{step}known: {', '.join(known)}; another is a [[gpu]] in the file for --assume",
        )
    return known[name]


def lines_of(assumed: Assumptions) -> Iterator[tuple[str, str, str, str]]:
    """Every assumption as (key, value, unit, reason); a changed value gives its default as the reason."""
    for part in dataclasses.fields(assumed):
        group: Any = getattr(assumed, part.name)
        if part.name == "gpu":
            continue
        for f in dataclasses.fields(group):
            value = getattr(group, f.name)
            why = f.metadata["why"] if value == f.default else f"yours; the default is {f.default:g}"
            yield (
                f"{part.name}.{f.name}",
                f"{value:,}" if isinstance(value, int) else f"{value:g}",
                f.metadata["unit"],
                why,
            )
