"""Exact dense search against hand-worked cases and a plain sort; runs."""

import numpy as np
import pytest

from nblib.search.exact import to_run, top_k_dense
from tests.search.plain import plain_top_k


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_k_dense(np.array([[value, 1.0]]), np.ones((2, 2)), k=1)


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 1, "batch": 0}])
def test_nonsense_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        top_k_dense(np.ones((1, 2)), np.ones((1, 2)), **bad)


@pytest.mark.parametrize("batch", [2, 100])
def test_dense_equals_a_plain_sort_and_keeps_negative_scores(batch):
    rng = np.random.default_rng(7)
    q, d = (rng.integers(-3, 4, size=(n, 4)).astype(np.float32) for n in (6, 30))
    index, scores = top_k_dense(q, d, 30, batch)
    want = plain_top_k(q @ d.T, 30, only_hits=False)
    assert index.tolist() == want[0].tolist() and scores.tolist() == want[1].tolist()
    assert (scores < 0).any()
    assert top_k_dense(q, d, 4, batch)[0].tolist() == [row[:4] for row in index.tolist()]


def test_dense_with_fewer_documents_than_k():
    index, _ = top_k_dense(np.ones((1, 2)), np.array([[1.0, 0.0], [1.0, 1.0]]), k=3)
    assert index.tolist() == [[1, 0, -1]]


def test_dense_shapes_are_checked():
    with pytest.raises(ValueError, match="Q, H"):
        top_k_dense(np.ones((1, 2)), np.ones((1, 3)), k=1)


def test_progress_counts_queries():
    seen = []
    top_k_dense(np.ones((5, 3)), np.ones((4, 3)), 1, 2, lambda *x: seen.append(x))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_run_names_the_rows():
    index = np.array([[1, 0], [-1, -1]])
    run = to_run(["q1", "q2"], ["a", "b"], index, np.array([[2.5, 1.0], [0, 0]], dtype=np.float32))
    assert run == {"q1": {"b": 2.5, "a": 1.0}, "q2": {}}
    assert list(run["q1"]) == ["b", "a"]
    assert type(run["q1"]["b"]) is float
    with pytest.raises(ValueError, match="query ids"):
        to_run(["q1"], ["a", "b"], index, index)
