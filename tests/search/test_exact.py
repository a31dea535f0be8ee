"""Exact search against hand-worked cases and a plain sort."""

import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix
from scipy.sparse import random as random_sparse

from nblib.search.exact import postings, to_run, top_k, top_k_dense, top_k_postings


def brute_force(scores: np.ndarray, k: int, only_hits: bool) -> list[list[int]]:
    """Sort (score, document) pairs in plain Python."""
    ranked = []
    for row in scores:
        pairs = [(-score, d) for d, score in enumerate(row) if score > 0 or not only_hits]
        ranked.append([d for _, d in sorted(pairs)[:k]])
    return ranked


def whole_weights(n: int, v: int, density: float, seed: int, low: int = 1) -> csr_matrix:
    """Random CSR of small whole weights: sums are exact in float32, and ties are many."""
    rng = np.random.default_rng(seed)
    matrix = random_sparse(n, v, density, format="csr", rng=rng)
    matrix.data = rng.integers(low, 4, size=matrix.nnz).astype(np.float32)
    return csr_matrix(matrix)


def test_two_queries_by_hand():
    d = csr_matrix(np.array([[1, 0, 2], [0, 3, 0], [1, 1, 1]], dtype=np.float32))
    q = csr_matrix(np.array([[1, 0, 1], [0, 2, 0]], dtype=np.float32))
    index, scores = top_k(q, d, k=3)  # scores: q0 3, 0, 2; q1 0, 6, 2
    assert index.tolist() == [[0, 2, -1], [1, 2, -1]]
    assert scores.tolist() == [[3, 2, 0], [6, 2, 0]]
    assert scores.dtype == np.float32 and index.dtype == np.int64


@pytest.mark.parametrize("k", [1, 7, 40, 60])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_equals_a_plain_sort_with_ties(k, batch):
    q, d = whole_weights(9, 25, 0.2, seed=1), whole_weights(40, 25, 0.2, seed=2)
    full = (q @ d.T).toarray()
    index, scores = top_k(q, d, k, batch)
    assert any(len(set(row)) < len(row) for row in full)  # the case holds ties
    for i, want in enumerate(brute_force(full, k, only_hits=True)):
        assert index[i][index[i] >= 0].tolist() == want
        assert scores[i, : len(want)].tolist() == full[i, want].tolist()
        assert (index[i, len(want) :] == -1).all() and (scores[i, len(want) :] == 0).all()


def test_ties_at_the_cut_go_to_the_lowest_document():
    d = csr_matrix(np.ones((50, 1), dtype=np.float32))
    index, _ = top_k(csr_matrix([[2.0]]), d, k=5)
    assert index.tolist() == [[0, 1, 2, 3, 4]]


def test_a_score_of_zero_or_less_is_no_hit():
    d = csr_matrix(np.array([[1, 1], [0, 1], [2, 1]], dtype=np.float32))
    index, _ = top_k(csr_matrix(np.array([[1, -1]], dtype=np.float32)), d, k=3)  # scores 0, -1, 1
    assert index.tolist() == [[2, -1, -1]]


def test_a_query_without_terms_has_no_hits():
    index, scores = top_k(csr_matrix((2, 3), dtype=np.float32), whole_weights(4, 3, 0.9, 3), k=2)
    assert (index == -1).all() and (scores == 0).all()


def test_sparse_arrays_and_prepared_postings_give_the_same():
    q, d = whole_weights(5, 12, 0.4, seed=4), whole_weights(20, 12, 0.4, seed=5)
    want = top_k(q, d, 6)
    for got in (top_k(csr_array(q), csr_array(d), 6), top_k_postings(q, postings(d), 6)):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match="same vocabulary"):
        top_k(whole_weights(1, 3, 1, 6), whole_weights(1, 4, 1, 6), k=1)


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 1, "batch": 0}])
def test_nonsense_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        top_k(whole_weights(1, 3, 1, 6), whole_weights(1, 3, 1, 6), **bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    q = csr_matrix(np.array([[value, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_k(q, csr_matrix(np.ones((2, 2))), k=1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_k_dense(q.toarray(), np.ones((2, 2)), k=1)


@pytest.mark.parametrize("batch", [2, 100])
def test_dense_equals_a_plain_sort_and_keeps_negative_scores(batch):
    rng = np.random.default_rng(7)
    q, d = (rng.integers(-3, 4, size=(n, 4)).astype(np.float32) for n in (6, 30))
    index, scores = top_k_dense(q, d, 30, batch)
    assert index.tolist() == brute_force(q @ d.T, 30, only_hits=False)
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
    top_k(whole_weights(5, 3, 0.5, 8), whole_weights(4, 3, 0.5, 9), 1, 2, lambda *x: seen.append(x))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_run_names_the_rows():
    index = np.array([[1, 0], [-1, -1]])
    run = to_run(["q1", "q2"], ["a", "b"], index, np.array([[2.5, 1.0], [0, 0]], dtype=np.float32))
    assert run == {"q1": {"b": 2.5, "a": 1.0}, "q2": {}}
    assert list(run["q1"]) == ["b", "a"]
    assert type(run["q1"]["b"]) is float
    with pytest.raises(ValueError, match="query ids"):
        to_run(["q1"], ["a", "b"], index, index)
