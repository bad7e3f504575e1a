"""Cost: energy and yen of a run, spread over Japanese fiscal years (April to March)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from hagane.plan.rates import Gpu, Prices

HOURS_YEAR = 8766.0


@dataclass(frozen=True)
class Cost:
    """Money and energy of a run, by what it is spent on."""

    gpu_hours: float
    """GPU hours, restarts and all."""
    energy_mwh: float
    """Energy of the whole site, MWh."""
    hardware_yen: float
    """Depreciation of GPUs, servers, network and storage, or rent."""
    site_yen: float
    """Housing."""
    energy_yen: float
    """Energy."""

    @property
    def total_yen(self) -> float:
        """All of it."""
        return self.hardware_yen + self.site_yen + self.energy_yen


def run_cost(gpus: int, days: float, gpu: Gpu, prices: Prices) -> Cost:
    """What so many GPUs cost for so many days."""
    hours = 24 * days
    energy_mwh = gpus * gpu.watts * prices.pue * hours / 1e6
    if prices.rent_yen_per_gpu_hour:
        return Cost(gpus * hours, energy_mwh, gpus * hours * prices.rent_yen_per_gpu_hour, 0.0, 0.0)
    hardware = gpus * hours * gpu.yen / (prices.life_years * HOURS_YEAR * prices.used)
    site = gpus * gpu.watts / 1000 * prices.site_yen_per_kw_month * 12 * hours / HOURS_YEAR
    return Cost(gpus * hours, energy_mwh, hardware, site, 1000 * energy_mwh * prices.yen_per_kwh)


def fiscal_year(day: date) -> int:
    """2027-03-31 is in fiscal 2026."""
    return day.year if day.month >= 4 else day.year - 1


def fiscal_start(year: int) -> date:
    """First day of a fiscal year."""
    return date(year, 4, 1)


def add_days(start: date, days: float) -> datetime:
    """The moment so many days after the start of a day."""
    return datetime.combine(start, datetime.min.time()) + timedelta(days=days)


def by_fiscal_year(start: date, days: float, amount: float) -> Mapping[int, float]:
    """An amount spent evenly over days, by fiscal year; the parts add up to it."""
    begin, end = add_days(start, 0), add_days(start, days)
    if days <= 0:
        return {fiscal_year(start): amount}
    shares: dict[int, float] = {}
    for year in range(fiscal_year(start), fiscal_year(end.date()) + 1):
        first = max(begin, add_days(fiscal_start(year), 0))
        last = min(end, add_days(fiscal_start(year + 1), 0))
        if last > first:
            shares[year] = amount * ((last - first) / (end - begin))
    return shares
