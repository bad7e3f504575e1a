"""The training panel and score tables on a terminal and on a pipe."""

from __future__ import annotations

import io
import math
import time

import pytest
from rich.console import Console

from hagane.console import Panel, TrainPanel, card_table
from hagane.console import panel as panel_file
from hagane.console.panel import sparkline
from tests.report_fixture import cards


def line(step: int) -> dict[str, object]:
    return {"step": step, "loss": 2.0 / step, "loss/arm": 1.0 / step, "samples_per_s": 900.0, "experts/arm": [[0.5]]}


def test_plain_lines_on_a_pipe() -> None:
    out = io.StringIO()
    with Panel.for_stream(50, out) as panel:
        assert not panel.live
        for step in range(1, 51):
            panel.update(line(step) | ({"held_out/arm": 0.3} if step == 50 else {}))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("step  1/50  loss 2.0000  arm 1.0000  900 samples/s")
    assert "step 50/50" in lines[-1] and "(held out 0.3000)" in lines[-1] and "left" not in lines[-1]
    assert "\x1b" not in out.getvalue()


def test_a_slow_step_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_file, "SILENT_AT_MOST_S", 0.05)
    out = io.StringIO()
    with Panel.for_stream(50, out) as panel:
        panel.update(line(1))
        end = time.monotonic() + 10
        while "working" not in out.getvalue() and time.monotonic() < end:
            time.sleep(0.02)
    assert "step 1/50  working" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_panel_fits_the_window(width: int) -> None:
    panel = TrainPanel(1200, io.StringIO(), live=True, title="demo")
    for step in range(1, 400):
        panel.update(line(step))
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(panel.render())
    text = console.export_text()
    assert max(len(row) for row in text.splitlines()) <= width
    assert "step  399 of 1200" in text and "arm" in text and "█" in text


def test_a_live_panel_draws_and_ends() -> None:
    out = io.StringIO()
    with TrainPanel(10, out, live=True) as panel:
        panel.update(line(10))
    assert "step 10 of 10" in out.getvalue()


def test_a_reader_that_left_does_not_stop_training() -> None:
    out = io.StringIO()
    with Panel.for_stream(50, out) as panel:
        out.close()
        panel.update(line(1))


def test_sparkline() -> None:
    assert sparkline([], 10) == "" and sparkline([3.0], 10) == "▁"
    assert sparkline([8.0, 4.0, 2.0, 1.0], 4) == "█▆▃▁", "log scale"
    assert len(sparkline([1.0 / k for k in range(1, 1000)], 30)) == 30
    assert sparkline([1.0, math.nan, 0.0], 5) == "█▁"


def test_time_left_after_resume() -> None:
    panel = TrainPanel(1000, io.StringIO(), live=False)
    assert panel.seconds_left() is None
    panel._times.extend([(500, 10.0), (600, 30.0)])
    assert panel.seconds_left() == pytest.approx(80.0)


def test_card_table_has_every_row() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    for card in cards():
        console.print(card_table(card))
    text = console.export_text()
    assert "pick-place-v3" in text and "lane + constant speed" in text and "614 to 790" in text and "−41" in text
