"""The report page: one file, whole or not at all, honest about what is missing, safe with untrusted names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.console import make_report
from hagane.console.curves import MAX_POINTS, curves_of
from hagane.console.draw import duration, number
from hagane.console.embed import embed_replays, safe_json
from hagane.console.figures import figures_of, wilson
from hagane.console.folder import Replay, ReplayEpisode, read_run
from hagane.console.page import short
from hagane.console.report import render
from hagane.console.router import router_use
from hagane.terms import ConfigError, Row, Scorecard, StoreError
from tests.report_fixture import cards, make_run, write

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"), steps=300)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return render(run)


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    loaded: dict[str, object] = json.loads(found[1])
    return loaded


def test_one_file_without_a_network(run: Path, page: str) -> None:
    path = make_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 6_000_000
    assert not re.findall(r"https?://|//cdn|@import|\bfetch\(|XMLHttpRequest|<link[^>]+href=\"(?!data:)", page)
    assert not re.findall(r"\b(?:src|href)=\"(?!#|data:)", page)
    assert "url(" not in page
    assert "Copyright (c) 2022 Leon Sorokin" in page, "the licence of the vendored plots travels with them"


def test_every_section_is_there(page: str) -> None:
    for name in ("figures", "replays", "scores", "learning", "router", "rights", "lineage", "drives", "repeat"):
        assert f'id="{name}"' in page
    assert "鋼 hagane" in page
    assert "the contract allows DE only, and this site is in JP" in page
    assert "hagane train --again" in page
    assert page.count('class="missing"') == 1, "only the note for browsers without scripts"


def test_headline_goals() -> None:
    arm, road, mill = figures_of({c.embodiment: c for c in cards()})
    assert arm.ours and arm.ours.score == pytest.approx(0.925) and arm.verdict == "reached"
    assert road.goal == pytest.approx((0.684 + 0.827) / 2 - 0.006), "lane + constant speed, not constant velocity"
    assert mill.goal == -33.0 and mill.verdict == "reached"


def card(ours: float, low: float) -> Scorecard:
    rows = (Row("m", "classical: PI", 10.0, 8.0, 12.0, 9), Row("m", "ours", ours, low, ours + 5, 9))
    return Scorecard("mill", "return, higher is better", rows, (1,), "")


def test_verdicts_are_honest() -> None:
    verdicts = [figures_of({"mill": c})[0].verdict for c in (card(9, 8), card(11, 8), card(20, 15))]
    assert verdicts == ["not reached", "reached, within noise", "reached"]
    unmeasured = Scorecard("road", "score", (Row("r", "ours", 0.9, 0.8, 1.0, 5),), (1,), "")
    assert figures_of({"road": unmeasured})[0].verdict == "not measured", "no goal without its baselines"


def test_missing_parts_are_said_to_be_missing(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.toml").write_text("seed = 1\n")
    page = render(bare)
    for text in (
        "No score cards",
        "metrics.jsonl is missing",
        "no file in replays/",
        "record.json is missing",
        "story.json is missing",
        "No drive is recorded",
        "Whether anything was refused is not recorded",
    ):
        assert text in page, text
    assert "No machine" in page or "no machine has been judged yet" in page


def test_damaged_parts_cost_only_themselves(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=50)
    (run / "scorecards" / "arm.json").write_text('{"embodiment": "arm"')
    (run / "replays" / "mill.json").write_text('{"embodiment": "mill", "kind": 3}')
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 51, "lo')
    story = json.loads((run / "story.json").read_text())
    story["drives"] = [{"embodiment": "arm", "score": "much"}]
    write(run / "story.json", story)
    page = render(run)
    assert "arm.json cannot be read" in page and "mill.json cannot be read" in page
    assert "1 of 51 lines of metrics.jsonl" in page
    assert "part drives of story.json cannot be read" in page
    assert "driving score on the road" in page and "member-steel" in page


def test_untrusted_names_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=20)
    for path in (
        run / "record.json",
        run / "story.json",
        *(run / "scorecards").glob("*"),
        *(run / "replays").glob("*"),
    ):
        text = path.read_text().replace("arm-demo", "\0").replace("reach-v3", "\0").replace("made-up", "\0")
        path.write_text(text.replace("\0", json.dumps(EVIL)[1:-1]))
    story = json.loads((run / "story.json").read_text())
    for part in ("title", "started"):
        story[part] = EVIL
    story["machine"] = {EVIL: EVIL}
    story["refusals"] = [{"what": EVIL, "who": EVIL, "reason": EVIL}]
    write(run / "story.json", story)
    page = render(run)
    assert EVIL in json.dumps(data_of(page), ensure_ascii=False).replace('\\"', '"'), "the name is kept, as data"
    outside = re.sub(r"<script>\n\"use strict|<script type=", "", page)
    assert "<script>alert" not in page and "<img" not in page
    assert len(re.findall(r"<script", page)) == 2, outside[:200]


def test_json_in_the_page_is_finite_and_closes_nothing() -> None:
    text = str(safe_json({"a": float("nan"), "b": "</script><!--\u2028", "c": [float("inf"), 1.0, 1e-9]}))
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": None, "b": "</script><!--\u2028", "c": [None, 1, 1e-9]}


def test_replays_fit_their_budget_and_keep_their_time() -> None:
    frames = tuple({"ego": [1234.567 + k, 1.0]} for k in range(4001))
    replay = Replay("road", "road", 10.0, (ReplayEpisode("c", "ours", 1, 0.5, frames),) * 6)
    small = embed_replays({"road": replay}, budget_bytes=60_000)["road"]
    assert len(json.dumps(small)) < 80_000
    assert small["rate_hz"] == 10.0 / small["thinned"]
    assert small["episodes"][0]["frames"][-1]["ego"][0] == pytest.approx(5234.57), "centimetres are kept, and the end"
    assert small["left_out"] == 6 - len(small["episodes"])


def test_static_parts_are_shared(run: Path) -> None:
    road = embed_replays(read_run(run).replays)["road"]
    assert len(road["statics"]) == 1 and [e["static"] for e in road["episodes"]] == [0, 0, 0]
    assert "static" not in road["episodes"][0]["frames"][0]


def test_curves_are_thinned_and_keep_held_out_points() -> None:
    lines = [
        {"step": k, "loss/a": 1.0 / k, "next/a": 2.0} | ({"held_out/a": 0.5} if k % 100 == 0 else {})
        for k in range(1, 5001)
    ]
    curves = curves_of(lines)
    assert len(curves.steps) <= MAX_POINTS + 60 and curves.steps[-1] == 5000
    assert sum(v is not None for v in curves.held_out["a"]) == 50
    assert curves_of([{"step": 1, "loss/a": float("nan")}]).losses["a"] == (None,)


def test_router_knows_owners_and_gates(run: Path) -> None:
    use = router_use(read_run(run))
    assert use and len(use.layers) == 4 and not use.summed
    assert use.groups == (("consortium", 2), ("member-cars", 2), ("member-robots", 2), ("member-steel", 2))
    assert [c.permitted for c in use.layers[0]["arm"]] == [True, True, False, False, True, True, False, False]
    assert sum(c.share or 0 for c in use.layers[0]["arm"]) == pytest.approx(1)


def test_a_planted_leak_through_a_gate_is_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=20)
    assert ' broken"' not in render(run)
    line = {"step": 21, "experts/arm": [[0.2, 0.1, 0.3, 0, 0.2, 0.2, 0, 0]]}
    with (run / "metrics.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    assert ' broken"' in render(run) or "forbidden broken" in render(run)


def test_wilson_matches_a_known_value() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_texts() -> None:
    assert number(-41200.0) == "−41\N{THIN SPACE}200" and number(0.8264) == "0.826" and number(None) == "–"
    assert number(0.925, percent=True) == "92%" or number(0.925, percent=True) == "93%"
    assert duration(421.3) == "7 min 01 s" and duration(7500) == "2 h 05 min"
    assert short("a" * 64) == "a" * 10 + "…" and short("step-000600") == "step-000600"


def test_nothing_is_left_half_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="next:"):
        make_report(run, tmp_path / "absent" / "report.html")
    with pytest.raises(ConfigError, match="no such run folder"):
        make_report(tmp_path / "absent")
    with pytest.raises(ConfigError, match="nothing in this folder"):
        make_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["console", "report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").exists() and "r.html" in capsys.readouterr().out
    assert main(["console", "report", str(tmp_path / "absent")]) == 1
    assert "no such run folder" in capsys.readouterr().err
    assert main(["console", "raport"]) == 2
