"""Merged statistics are those of all samples together, where averaging quantiles is far off."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.catalog.sketch import channel_stats, pack_sketches, unpack_sketches
from hagane.intake.lerobot_sketch import empty_sketch, merge, sketch_pixels, sketch_rows


def breaking_averages() -> list[np.ndarray]:
    """Episodes of very different sizes and ranges: one short one holds nearly all of the upper tail."""
    rng = np.random.default_rng(3)
    parts = [rng.normal(0, 1, (int(n), 2)) for n in rng.integers(20, 400, 150)]
    parts += [rng.gamma(4.0, 8.0, (900, 2)) + 5, rng.standard_t(3, (8000, 2)) * 0.2, rng.uniform(-9, -8, (700, 2))]
    return [np.asarray(p, np.float32) for p in parts]


def test_merged_q01_and_q99_within_one_percent() -> None:
    parts = breaking_averages()
    rows = np.concatenate(parts)
    total = empty_sketch(2)
    for part in parts:
        total = merge(total, sketch_rows(part))
    for q in (0.01, 0.1, 0.5, 0.9, 0.99):
        got, exact = total.quantile(q), np.quantile(rows, q, axis=0)
        rank = (rows <= got).mean(0)
        assert (np.abs(rank - q) < 0.01 * min(q, 1 - q) * 2).all()
        if q in (0.01, 0.99):
            np.testing.assert_allclose(got, exact, rtol=0.01)
    averaged = np.mean([np.quantile(p, 0.99, axis=0) for p in parts], axis=0)
    assert (np.abs(averaged / np.quantile(rows, 0.99, axis=0) - 1) > 0.5).all()  # the set does break averaging


def test_moments_and_bounds_are_exact_in_any_grouping() -> None:
    parts = breaking_averages()
    rows = np.concatenate(parts).astype(np.float64)
    forward = backward = empty_sketch(2)
    for part in parts:
        forward = merge(forward, sketch_rows(part))
    for part in reversed(parts):
        backward = merge(sketch_rows(part), backward)
    for s in (forward, backward, sketch_rows(rows)):
        assert s.count.tolist() == [len(rows)] * 2
        np.testing.assert_allclose(s.mean, rows.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(s.std, rows.std(0), rtol=1e-9)
        np.testing.assert_array_equal([s.low, s.high], [rows.min(0), rows.max(0)])


def test_small_spread_on_a_large_offset_is_kept() -> None:
    """A bath at 733 K within a hundredth: relative-error sketches lose this."""
    rows = 733 + 0.01 * np.random.default_rng(0).normal(size=(20000, 1))
    s = sketch_rows(rows)
    np.testing.assert_allclose(s.quantile(0.99) - 733, np.quantile(rows, 0.99) - 733, rtol=0.01)
    np.testing.assert_allclose(s.std, rows.std(), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=40), min_size=1, max_size=8))
def test_any_parts(parts: list[list[float]]) -> None:
    total = empty_sketch(1)
    for part in parts:
        total = merge(total, sketch_rows(np.array(part, np.float64).reshape(-1, 1)))
    rows = np.array([v for part in parts for v in part], np.float64)
    assert total.count[0] == len(rows) and total.weight.sum() == len(rows)
    if len(rows):
        span = max(np.ptp(rows), 1.0)
        np.testing.assert_allclose(total.mean[0], rows.mean(), atol=1e-9 * span + 1e-6)
        quantiles = [total.quantile(q)[0] for q in (0, 0.01, 0.5, 0.99, 1)]
        assert quantiles[0] == rows.min() and quantiles[-1] == rows.max()
        assert all(b - a >= -1e-6 * span for a, b in pairwise(quantiles))


def test_absent_entries_do_not_count() -> None:
    rows = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 7.0]])
    s = sketch_rows(rows)
    assert s.count.tolist() == [3, 1] and s.mean.tolist() == [3.0, 7.0]
    stats = channel_stats(empty_sketch(2))
    assert stats.count == 0 and not np.isnan([stats.q01, stats.high, stats.mean]).any()


def test_pictures_by_level() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 7, 3), np.uint8)
    s, rows = sketch_pixels(images), images.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(s.mean, rows.mean(0))
    np.testing.assert_allclose(s.std, rows.std(0))
    assert (np.abs(s.quantile(0.5) - np.median(rows, 0)) < 3).all()


def test_sketches_on_disk_are_the_same_bytes_and_values() -> None:
    made = {"b": sketch_rows(np.arange(6.0).reshape(3, 2)), "a": empty_sketch(1)}
    data = pack_sketches(made)
    assert data == pack_sketches(dict(reversed(made.items())))
    back = unpack_sketches(data, "here")
    assert set(back) == {"a", "b"}
    np.testing.assert_array_equal(back["b"].centre, made["b"].centre)
