"""A programme: sums that add up, dates that follow from plans, refusals, the verb and its page."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.console.plan_rows import spend_rows
from hagane.plan.cost import add_days, fiscal_year
from hagane.plan.programme import Programme, plan_programme
from hagane.plan.run import plan_run
from hagane.plan.scenario import Scenario, default_scenario, read_scenario
from hagane.terms import ConfigError

FOLDER = default_scenario().parent


@pytest.fixture(scope="module")
def public() -> Programme:
    return plan_programme(read_scenario(default_scenario()), FOLDER)


def small() -> Scenario:
    """The default with its smallest milestone alone."""
    scenario = read_scenario(default_scenario())
    return replace(scenario, milestone=scenario.milestone[:1])


def test_the_default_is_the_public_programme(public: Programme) -> None:
    assert public.scenario.years == (2026, 2027, 2028, 2029, 2030)
    assert public.budget == pytest.approx(1e12)
    assert public.scenario.year[0].budget_yen == pytest.approx(387.3e9)
    assert public.milestones[0].reached <= date(2027, 3, 31)
    assert any(m.plan.request.size == "1t" for m in public.milestones)


def test_sums_add_up(public: Programme) -> None:
    years = public.scenario.years
    for row in public.spend:
        assert row.total == pytest.approx(sum(row.yen[y] for y in years))
    assert sum(public.spent(y) for y in years) == pytest.approx(public.total)
    assert public.left(years[-1]) == pytest.approx(public.budget - public.total)
    assert min(public.left(y) for y in years) >= 0
    # the printed table too, to its last digit
    table = {name: [float(v.replace(",", "") or 0) for v in values] for name, *values in spend_rows(public)}
    kinds = [
        values for name, values in table.items() if name not in ("in all", "new money", "left at the end of the year")
    ]
    for column, total in enumerate(table["in all"]):
        assert sum(k[column] for k in kinds) == pytest.approx(total, abs=0.05 * len(kinds) + 0.05)


def test_dates_follow_from_each_plan(public: Programme) -> None:
    free = {m.name: m.delivered for m in public.scenario.machine}
    for m in public.milestones:
        asked = m.milestone
        assert m.start == max(asked.earliest, free[asked.machine])
        assert m.plan.request.start == m.main_start
        assert m.trained == add_days(m.main_start, m.plan.days).date()
        assert (m.main_start - m.start).days == pytest.approx(asked.trials * m.plan.days, abs=1)
        assert m.reached == m.trained + timedelta(days=30)
        assert m.reached <= asked.due
        # data that is not collected yet is not trained on
        assert m.plan.account.tokens >= m.plan.request.tokens
        assert m.plan.account.tokens <= public.hours[fiscal_year(m.start)].tokens * 1.001
        free[asked.machine] = m.trained + timedelta(days=1)
    one = public.milestones[1].plan
    again = plan_run(one.request, one.account, one.assumed)
    assert (again.days, again.end, again.best) == (one.days, one.end, one.best)


def test_machines_are_paid_when_delivered_and_used_less_than_they_are_there(public: Programme) -> None:
    hardware = public.spend[0]
    assert hardware.yen[2026] == pytest.approx(4096 * 11e6)
    assert hardware.yen[2028] == 0
    for machine in public.scenario.machine:
        assert 0 < public.occupied(machine) < 1


def test_a_milestone_waits_for_its_machine() -> None:
    scenario = small()
    late = replace(scenario.machine[0], delivered=date(2027, 2, 1))
    assert plan_programme(replace(scenario, machine=(late, *scenario.machine[1:])), FOLDER).milestones[0].start == date(
        2027, 2, 1
    )


def refused(scenario: Scenario, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_programme(scenario, FOLDER)


def test_what_does_not_add_up_is_refused() -> None:
    scenario = small()
    (first,) = scenario.milestone
    refused(replace(scenario, milestone=(replace(first, due=date(2027, 2, 1)),)), "reached on .* after 2027-02-01")
    refused(replace(scenario, milestone=(replace(first, tokens="200t"),)), "lacks")
    tiny = replace(scenario.machine[0], gpus=8, gpu="h100")
    big = replace(first, size="1t")
    refused(replace(scenario, machine=(tiny, *scenario.machine[1:]), milestone=(big,)), "does not fit")
    lost = replace(scenario, carry_over=False)
    refused(lost, "fiscal 2027 spends .* lacks")
    early = replace(scenario.machine[2], delivered=date(2031, 5, 1))
    refused(replace(scenario, machine=(*scenario.machine[:2], early)), "outside of the programme's years")
    before = replace(first, earliest=date(2026, 4, 1))
    at_once = replace(scenario.machine[0], delivered=date(2026, 4, 1))
    refused(
        replace(scenario, machine=(at_once, *scenario.machine[1:]), milestone=(before,)), "no data is collected before"
    )
    beyond = replace(first, earliest=date(2031, 3, 20), due=date(2032, 1, 1))
    refused(replace(scenario, milestone=(beyond,)), "after the programme's last fiscal year")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fiscal = 2028", "fiscal = 2029", "follow one another"),
        ('machine = "first hall"', 'machine = "fourth hall"', "no machine 'fourth hall'"),
        ("hours = [60_000, ", "hours = [", "needs 5 amounts"),
        ('gpu = "b200"', 'gpu = "b20"', "did you mean 'b200'"),
        ('embodiment = "car"', 'embodiment = "cart"', "did you mean 'car'"),
        ('status = "assumed"', 'status = "sure"', "cannot be 'sure'"),
        ("trials = 40.0", "trails = 40.0", "did you mean `trials`"),
        ("due = 2027-03-31", "due = 2026-03-31", "due before earliest"),
        ("carry_over = true", "carry_over = true\n[assumed.prices]\npue = 0.5\n[[machine]]\n", "at least 1"),
    ],
)
def test_bad_scenarios_are_one_message(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = default_scenario().read_text("utf-8")
    assert old in text
    file, page = tmp_path / "mine.toml", tmp_path / "page.html"
    file.write_text(text.replace(old, new, 1), "utf-8")
    assert main(["plan", "programme", "--scenario", str(file), "--html", str(page)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not page.exists()


def test_the_verb_writes_a_copy_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, page = tmp_path / "mine.toml", tmp_path / "page.html"
    assert main(["plan", "programme", "--write", str(mine)]) == 0
    assert main(["plan", "programme", "--write", str(mine)]) == 1
    assert "already there" in capsys.readouterr().err
    text = mine.read_text("utf-8")
    cut = text.index("[[milestone]]", text.index("[[milestone]]") + 1)
    mine.write_text(text[:cut] + "", "utf-8")
    assert main(["plan", "programme", "--scenario", str(mine), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    for part in ("FY2030", "new money", "1兆パラメーター", "reported for the first year", "first hall"):
        assert part in out
    html = page.read_text("utf-8")
    assert "計算機(購入)" in html
    assert "初号モデル" in html
    assert not re.search(r"https?://|<script|@import|url\(", html)
