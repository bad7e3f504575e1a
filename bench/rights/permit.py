"""What one decision costs: microseconds of `permit`, granted and refused, for a contract that asks for a jail."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import date
from pathlib import Path

from bench.rights.measured import Figure, middle_half

from hagane.seal import TrustStore, generate_key, load_contract, permit, public_of, sign_contract
from hagane.terms import Contract, HaganeError, Request, dump_toml

TODAY = date(2026, 11, 24)


def measure(folder: Path, rounds: int = 15, decisions: int = 500) -> list[Figure]:
    """Rows of the table.

    Raises:
        HaganeError: a decision was not the one that it must be.
    """
    folder.mkdir()
    key, trust = generate_key(folder / "owner.pem"), TrustStore(folder / "trust")
    trust.add("member-steel", public_of(key))
    terms = ("member-steel", ("mill-demo",), ("JP",), ("plant-7",), ("anchor",))
    path = folder / "steel.toml"
    path.write_text(dump_toml(Contract(*terms, date(2099, 12, 31), date(2026, 1, 1), 1)), "utf-8")
    sign_contract(path, key)
    signed = load_contract(path, trust)
    granted = Request(
        "mill-demo", "c0" * 32, "member-steel", "anchor", "JP", "plant-7", "consortium",
        site_signed=True, jailed=True, today=TODAY, last_day=TODAY, last_serial=0, last_contract="",
    )  # fmt: skip
    figures = []
    for request, allowed in ((granted, True), (replace(granted, jailed=False), False)):
        if permit(signed, request).allowed != allowed:
            raise HaganeError(f"a request was judged wrongly: {permit(signed, request).reason}")
        took_us = []
        for _ in range(rounds):
            begin = time.process_time_ns()
            for _ in range(decisions):
                permit(signed, request)
            took_us.append((time.process_time_ns() - begin) / decisions / 1e3)
        middle, low, high = middle_half(took_us)
        how = f"CPU, median of {rounds} rounds of {decisions}, its middle half; the terms are read again each time"
        figures.append(Figure(f"permit, {'granted' if allowed else 'refused'}", "us", middle, how, None, low, high))
    return figures
