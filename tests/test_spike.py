"""The spike guard: what is seen, what is not, and that a run that goes back is as exact as one that does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.model.weights import MANIFEST
from hagane.terms import ConfigError, TrainingError
from hagane.train.run import MetricsFile, read_lines
from hagane.train.skips import Skip, batch_of, check_skips, in_a_row, returns, skips_digest, skips_of, write_skips
from hagane.train.spike import Watch, judge, limits, seen, watched, way_back
from hagane.train.spike_config import LEAST, SpikeConfig
from hagane.train.spike_guard import SpikeGuard, forget_after, past

CONFIG = SpikeConfig()


def line(step: int, loss: float, norm: float = 0.5) -> dict[str, float]:
    return {"step": step, "loss": loss, "gradient_norm": norm}


def curve(steps: int, noise: float, seed: int, first: int = 1) -> Iterator[dict[str, float]]:
    """A falling loss with noise, and gradient norms with twice as much."""
    rng = np.random.default_rng(seed)
    for k in range(first, first + steps):
        level = 0.2 + 0.8 * math.exp(-k / 200)
        yield line(k, level * math.exp(noise * rng.normal()), 0.4 * math.exp(2 * noise * rng.normal()))


def skip(first: int, last: int, step: int = 0, to: int = 0) -> Skip:
    return Skip(step, to, first, last, "", 1.0, 1.0, "")


def judged(lines: Iterator[dict[str, float]], config: SpikeConfig = CONFIG) -> tuple[Watch, list[str]]:
    """The watch after a run, and what was said when it was not "go on"."""
    watch, said = Watch(), []
    for at in lines:
        taken = limits(watch, config).hold(at["loss"], at["gradient_norm"])
        watch = seen(watch, at, config) if taken else watch
        verdict = judge(watch, at, taken, (), config)
        said += [] if verdict.do == "go on" else [f"{verdict.do} {int(at['step'])}"]
    return watch, said


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.25])
def test_noise_is_no_spike(noise: float) -> None:
    assert judged(curve(4000, noise, 1))[1] == []


def test_noise_of_a_tiny_batch_rarely_is() -> None:
    rng = np.random.default_rng(0)
    heavy = (line(k, 0.3 * math.exp(0.1 * rng.standard_t(4)), 0.5) for k in range(1, 4001))
    assert len(judged(heavy)[1]) <= 8  # two in a thousand, of a noise with tails that training has not


@pytest.mark.parametrize("at", [LEAST + 1, 150, 900])
def test_a_planted_spike_is_seen_and_is_not_learned_from(at: int) -> None:
    for what in (line(at, 1.8 if at < 300 else 0.7), line(at, 0.3, 9.0)):
        planted = (what if each["step"] == at else each for each in curve(1000, 0.08, 2))
        watch, said = judged(planted)
        assert said == [f"skip {at}"], what
        assert watch.taken == 999


@pytest.mark.parametrize("figures", [(math.nan, 1.0), (0.5, math.inf), (math.inf, math.nan)])
def test_what_is_not_finite_is_never_learned_from(figures: tuple[float, float]) -> None:
    for watch in (Watch(), watched(curve(50, 0.1, 0), CONFIG)):
        assert not limits(watch, CONFIG).hold(*figures)
        assert not limits(watch, replace(CONFIG, z=math.inf)).hold(*figures)
    odd = {**line(3, math.nan), "loss/mill": math.nan, "loss/road": 0.5}
    assert judge(Watch(), odd, False, (), CONFIG).why == "a loss of mill is not finite"


def test_a_creeping_rise_is_seen_and_its_start_is_named() -> None:
    flat = list(curve(1200, 0.08, 3))
    slow = ({**each, "loss": each["loss"] * 1.003 ** max(0, each["step"] - 800)} for each in flat)
    watch = Watch()
    for at in slow:
        assert limits(watch, CONFIG).hold(at["loss"], at["gradient_norm"]), "no single step was far above the others"
        watch = seen(watch, at, CONFIG)
        verdict = judge(watch, at, True, (), CONFIG)
        if verdict.do != "go on":
            break
    assert verdict.do == "go back" and "crept up" in verdict.why
    assert 800 < at["step"] <= 1050 and 600 <= verdict.onset <= 860
    assert not judged(iter(flat))[1]


def test_a_change_of_data_may_change_the_loss() -> None:
    lines = [*curve(300, 0.05, 4), *(line(k, 2.0) for k in range(301, 340))]
    assert judged(iter(lines))[1]
    watch = watched(lines, CONFIG, since=300)
    assert watch.taken == 39 and limits(watch, CONFIG).hold(2.1, 0.5)


def test_patience_then_back_then_further_back_then_no_more() -> None:
    checkpoints = {100: "a", 200: "b", 300: "c"}
    bad = line(311, 50.0)
    skips: tuple[Skip, ...] = ()
    watch = watched(curve(310, 0.05, 5), CONFIG)
    gone = []
    for _ in range(20):
        verdict = judge(watch, bad, False, skips, CONFIG)
        if verdict.do == "give up":
            break
        batch = batch_of(skips, 310)
        if verdict.do == "skip":
            skips = (*skips, skip(batch, batch, 310, 310))
            continue
        back = way_back(verdict, bad, False, skips, checkpoints, CONFIG)
        assert back is not None and back.last == batch
        gone.append(back.to)
        assert back.first == max(batch_of(skips, back.to), batch - 2 - (CONFIG.lead << (len(gone) - 1)))
        skips = (*skips, back)
    assert gone == [300, 200, 100] and verdict.do == "give up"
    assert way_back(replace(verdict, do="go back"), bad, False, (), {}, CONFIG) is None
    assert judge(watch, line(900, 50.0), False, skips, CONFIG).do == "skip", "it has come far since"


def test_too_many_bad_batches_are_given_up() -> None:
    skips = tuple(skip(k, k, k, k) for k in range(400, 500, 6))
    assert judge(Watch(), line(500, math.nan), False, skips, CONFIG).do == "give up"


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8)


@given(spans, st.integers(0, 80))
def test_steps_learn_from_what_is_left_in_order(pairs: list[tuple[int, int]], step: int) -> None:
    skips = [skip(a, a + n) for a, n in pairs]
    left = [d for d in range(400) if not any(s.first <= d <= s.last for s in skips)]
    assert batch_of(skips, step) == left[step]


@given(spans, st.integers(0, 80), st.integers(0, 30), st.integers(0, 12))
def test_a_later_skip_changes_no_earlier_step(pairs: list[tuple[int, int]], to: int, after: int, length: int) -> None:
    skips = [skip(a, a + n) for a, n in pairs]
    first = batch_of(skips, to) + after
    more = [*skips, skip(first, first + length)]
    assert [batch_of(skips, k) for k in range(to)] == [batch_of(more, k) for k in range(to)]
    check_skips(Path(), to, {"skips": skips_digest(skips)}, more)
    if batch_of(more, to) != batch_of(skips, to):
        with pytest.raises(TrainingError, match="learned from other batches"):
            check_skips(Path(), to + 1, {"skips": skips_digest(skips)}, more)


def test_an_edited_or_lost_file_is_refused(tmp_path: Path) -> None:
    skips = (skip(3, 3, 3, 3), skip(40, 60, 61, 30))
    write_skips(tmp_path, skips)
    assert skips_of(tmp_path) == skips
    for cursor, known in (({"skips": skips_digest(skips)}, skips[:1]), ({}, (skip(1, 1), *skips))):
        with pytest.raises(TrainingError, match="step 45 learned from other batches"):
            check_skips(tmp_path, 45, cursor, known)
    check_skips(tmp_path, 45, {}, ())
    (tmp_path / "skips.jsonl").write_text('{"step": 3}\n')
    with pytest.raises(TrainingError, match="no record of batches left out"):
        skips_of(tmp_path)


def test_counting_back_through_the_file() -> None:
    there = (skip(5, 5, 5, 5), skip(1, 6, 5, 1), skip(9, 9, 7, 7), skip(10, 10, 7, 7))
    assert in_a_row(there, 7) == 2 and in_a_row(there, 8) == 0 and in_a_row(there[:2], 5) == 0
    assert returns(there, 7, 10) == 1 and returns(there, 16, 10) == 0


@pytest.mark.parametrize("wrong", [{"window": 3}, {"z": 0.0}, {"loss_factor": 1.0}, {"patience": 0}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="spike"):
        SpikeConfig(**wrong)  # type: ignore[arg-type]


def test_newer_checkpoints_are_forgotten_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (20, 40, 60):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / MANIFEST).write_text("{}")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hagane.train.spike_guard.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        forget_after(tmp_path, 20)
    assert [p.parent.name for p in sorted(tmp_path.glob(f"*/{MANIFEST}"))] == ["step-000020", "step-000040"]
    monkeypatch.undo()
    forget_after(tmp_path, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000020"]


class Killed(Exception):
    pass


POISON, ROTTEN = {151, 152}, {70, 205}
"""Batches that damage the weights without a sign, and batches of numbers that are not finite."""
LAST, EVERY = 260, 25


class Toy:
    """A run with the loop's own calls and weights of two numbers, killed after some of its steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.read: list[int] = []

    def whole(self) -> dict[int, str]:
        return {int(p.parent.name[5:]): p.parent.name for p in self.folder.glob(f"checkpoints/*/{MANIFEST}")}

    def load(self) -> None:
        step = max(self.whole(), default=0)
        saved = json.loads((self.folder / f"checkpoints/step-{step:06d}" / MANIFEST).read_text()) if step else {}
        self.step, self.hurt, self.sum = step, saved.get("hurt", 0), saved.get("sum", 0)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", step)
        self.guard = SpikeGuard(self.folder, CONFIG, past(self.folder, step))
        check_skips(self.folder, step, {"skips": saved["skips"]} if saved else {}, self.guard.skips)

    def figures(self, batch: int) -> dict[str, float]:
        noise = np.random.default_rng(batch).normal(size=2)
        loss = (0.3 + math.exp(-self.step / 80)) * math.exp(0.05 * noise[0]) * (8.0 if self.hurt > 6 else 1.0)
        return line(self.step + 1, math.nan if batch in ROTTEN else loss, 0.5 * math.exp(0.1 * noise[1]))

    def run(self, steps: int) -> None:
        self.load()
        while self.step < LAST:
            if not steps:
                raise Killed
            steps -= 1
            batch = self.guard.batch(self.step)
            self.read.append(batch)
            figures = self.figures(batch)
            taken = self.guard.limits().hold(figures["loss"], figures["gradient_norm"])
            if taken:
                self.hurt = self.hurt + 1 if self.hurt or batch in POISON else 0
                self.sum, self.step = (31 * self.sum + batch) % 1_000_003, self.step + 1
                self.metrics.add(figures)
            skip = self.guard.after(figures, taken, self.whole)
            if skip is not None and skip.to < skip.step:
                guard = self.guard
                self.load()
                assert self.step == skip.to
                guard.rewind(past(self.folder, self.step))
                assert guard.watch == self.guard.watch and guard.skips == self.guard.skips
            elif taken and self.step % EVERY == 0:
                self.save()

    def save(self) -> None:
        folder = self.folder / f"checkpoints/step-{self.step:06d}"
        folder.mkdir(exist_ok=True)
        state = {"hurt": self.hurt, "sum": self.sum, "skips": skips_digest(self.guard.skips)}
        (folder / MANIFEST).write_text(json.dumps(state))

    def left(self) -> tuple[object, ...]:
        return self.sum, skips_of(self.folder), list(read_lines(self.folder / "metrics.jsonl"))


def test_a_run_leaves_out_bad_batches_and_goes_back_from_damage(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.run(10_000)
    _, skips, lines = toy.left()
    assert isinstance(skips, tuple) and isinstance(lines, list)
    kept = [batch_of(skips, k) for k in range(LAST)]
    assert not set(kept) & (POISON | ROTTEN) and [at["step"] for at in lines] == list(range(1, LAST + 1))
    assert skips[0].first == skips[0].last == 70 and "not finite" in skips[0].why and skips[0].loss is None
    back = next(s for s in skips if s.to != s.step)
    assert back.to == 150 and back.checkpoint == "step-000150" and back.first == 151 and back.last == 160
    assert toy.hurt == 0 and len(toy.read) == LAST + 2 + 10
    total = 0
    for batch in kept:
        total = (31 * total + batch) % 1_000_003
    assert toy.sum == total, "weights learned from other batches than the file says"


def test_killed_anywhere_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Toy(tmp_path / "whole")
    whole.run(10_000)
    for steps in (1, 71, 72, 155, 158, 159, 160, 161, 164, 170, 215):
        killed = Toy(tmp_path / str(steps))
        with pytest.raises(Killed):
            killed.run(steps)
        again = Toy(tmp_path / str(steps))
        again.run(10_000)
        assert again.left() == whole.left(), steps
    # between forgetting the newer checkpoints and writing down why
    between = Toy(tmp_path / "between")

    def write(folder: Path, skips: tuple[Skip, ...]) -> None:
        if skips[-1].to != skips[-1].step:
            raise Killed
        write_skips(folder, skips)

    monkeypatch.setattr("hagane.train.spike_guard.write_skips", write)
    with pytest.raises(Killed):
        between.run(10_000)
    monkeypatch.undo()
    between.run(10_000)
    assert between.left() == whole.left()


def test_giving_up_is_one_message(tmp_path: Path) -> None:
    guard = SpikeGuard(tmp_path, CONFIG, curve(40, 0.05, 0))
    figures: Mapping[str, float] = {**line(41, math.nan), "next/mill": math.nan}
    for _ in range(CONFIG.patience - 1):
        found = guard.after(figures, False, dict)
        assert found is not None and found.to == found.step == 40
    with pytest.raises(TrainingError, match=r"at step 41: 3 bad batches in a row.*mill.*no checkpoint to go back to"):
        guard.after(figures, False, dict)
    assert [s.first for s in skips_of(tmp_path)] == [40, 41]
