"""The inverted index against hand-worked cases and a plain sort of all scores, to the last bit."""

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_array, csr_matrix, vstack

from nblib.search import kernels
from nblib.search.inverted import InvertedIndex, TwoPhase, top_k
from tests.search.plain import plain_scores, plain_top_k, random_reps


def assert_same(got, want) -> None:
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_two_queries_by_hand():
    d = csr_matrix(np.array([[1, 0, 2], [0, 3, 0], [1, 1, 1]], dtype=np.float32))
    q = csr_matrix(np.array([[1, 0, 1], [0, 2, 0]], dtype=np.float32))
    index, scores = top_k(q, d, k=3)  # scores: q0 3, 0, 2; q1 0, 6, 2
    assert index.tolist() == [[0, 2, -1], [1, 2, -1]]
    assert scores.tolist() == [[3, 2, 0], [6, 2, 0]]
    assert scores.dtype == np.float32 and index.dtype == np.int64


@pytest.mark.parametrize("k", [1, 7, 40, 300, 1000])
@pytest.mark.parametrize(("density", "seed"), [(0.002, 1), (0.05, 2), (0.4, 3)])  # few hits; some; nearly all
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("low", [1, -2])  # -2: weights below 0 on both sides
def test_equals_a_plain_sort(k, density, seed, whole, low):
    q, d = (
        random_reps(9, 50, density, seed, whole, low),
        random_reps(600, 50, density, -seed % 97, whole, low),
    )
    full = plain_scores(q, d)
    assert_same(top_k(q, d, k), plain_top_k(full, k))
    if whole and density > 0.01:
        assert all(len(set(row)) < len(row) / 2 for row in full)  # the case holds ties


@pytest.mark.parametrize("rather_scan", [0, 10**9])
def test_both_ways_to_select_give_the_same(rather_scan, monkeypatch):
    """In plain Python: a compiled kernel keeps the constant it was compiled with."""
    for name in ("search_shard", "_count", "_take", "_score", "_select_all", "_select_touched", "_keep_best"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    monkeypatch.setattr(kernels, "RATHER_SCAN", rather_scan)
    q, d = random_reps(5, 20, 0.3, 4, True, -1), random_reps(200, 20, 0.3, 5, True, -1)
    assert_same(top_k(q, d, 3), plain_top_k(plain_scores(q, d), 3))


def test_growing_scores_and_ties_beyond_the_room():
    """Every document is better than those before it, then all are equal: the kept keys are cut many times."""
    n = 5000
    grows, same = csr_matrix(np.arange(1, n + 1, dtype=np.float32)[:, None]), csr_matrix(np.ones((n, 1)))
    q = csr_matrix([[2.0]])
    assert top_k(q, grows, 100)[0].tolist() == [list(range(n - 1, n - 101, -1))]
    assert top_k(q, same, 100)[0].tolist() == [list(range(100))]
    assert top_k(q, vstack([same, grows[:2]]).tocsr(), 2)[0].tolist() == [[n + 1, 0]]


def test_a_score_of_zero_or_less_is_no_hit():
    d = csr_matrix(np.array([[1, 1], [0, 1], [2, 1]], dtype=np.float32))
    index, _ = top_k(csr_matrix(np.array([[1, -1]], dtype=np.float32)), d, k=3)  # scores 0, -1, 1
    assert index.tolist() == [[2, -1, -1]]


def test_empty_sides_have_no_hits():
    d = random_reps(4, 3, 0.9, 3, True)
    for q, docs in [((2, 3), d), ((0, 3), d), ((2, 3), csr_matrix((0, 3)))]:
        for two_phase in (None, TwoPhase()):
            found = InvertedIndex.from_csr(docs).search(csr_matrix(q), 2, two_phase=two_phase)
            assert found[0].shape == (q[0], 2) and (found[0] == -1).all() and (found[1] == 0).all()


def test_any_form_of_sparse_matrix_gives_the_same():
    q, d = random_reps(5, 12, 0.4, 4, False), random_reps(20, 12, 0.4, 5, False)
    want = top_k(q, d, 6)
    unsorted = q.copy()
    for row in range(5):  # terms in falling order
        span = slice(q.indptr[row], q.indptr[row + 1])
        unsorted.indices[span], unsorted.data[span] = q.indices[span][::-1], q.data[span][::-1]
    unsorted.has_sorted_indices = unsorted.has_canonical_format = False
    before = unsorted.indices.copy()
    for got in (
        top_k(csr_array(q), csr_array(d), 6),
        top_k(csc_matrix(q), csc_matrix(d), 6),
        top_k(unsorted, d, 6),
        InvertedIndex.from_postings(d.T.tocsr()).search(q.astype(np.float64), 6),
    ):
        assert_same(got, want)
    assert (unsorted.indices == before).all()  # the caller's matrix is left as it was


def test_repeated_entries_add_up():
    twice = csr_matrix((np.array([1.0, 2.0]), np.array([0, 0]), np.array([0, 2])), shape=(1, 1))
    assert top_k(twice, twice, 1)[1].tolist() == [[9]]
    assert InvertedIndex.from_csr(twice).search(twice, 1, two_phase=TwoPhase())[1].tolist() == [[9]]


@pytest.mark.parametrize("two_phase", [None, TwoPhase()])
def test_threads_and_shards_change_no_bit(two_phase, tmp_path):
    q, d = random_reps(300, 60, 0.1, 6, False, 2), random_reps(500, 60, 0.2, 7, False, 2)
    q.data, d.data = abs(q.data), abs(d.data)
    whole = InvertedIndex.from_csr(d)
    want = whole.search(q, 20, two_phase=two_phase)
    assert_same(whole.search(q, 20, threads=4, two_phase=two_phase), want)
    cuts = [0, 1, 1, 130, 499, 500]  # of unlike size, one empty
    blocks = (d[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True))
    disk = InvertedIndex.write(tmp_path / "index", blocks)
    assert (disk.n_docs, disk.n_terms, disk.n_postings) == (500, 60, whole.n_postings)
    for threads in (1, 4):
        assert_same(disk.search(q, 20, threads, two_phase=two_phase), want)


def test_queries_one_by_one_leave_no_scores_behind():
    q, d = random_reps(20, 30, 0.2, 8, False, -1), random_reps(300, 30, 0.1, 9, False, -1)
    index, want = InvertedIndex.from_csr(d), plain_top_k(plain_scores(q, d), 5)
    for row in range(20):
        got = index.search(q[row], 5)
        assert_same(got, (want[0][row : row + 1], want[1][row : row + 1]))


def two_phase_in_python(q: csr_matrix, d: csr_matrix, k: int, rule: TwoPhase):
    """The rule with dense arrays: heavy terms choose a window, all terms order it."""
    dense = np.asarray(q.todense(), np.float32)
    largest = dense.max(axis=1, initial=0, keepdims=True)
    heavy = csr_matrix(np.where(dense >= np.float32(rule.ratio) * largest, dense, 0))
    window = max(k, min(int(k * rule.expansion), rule.max_window))
    chosen, _ = plain_top_k(plain_scores(heavy, d), window)
    full = plain_scores(q, d)
    for row, documents in enumerate(chosen):
        outside = np.setdiff1d(np.arange(d.shape[0]), documents)
        full[row, outside] = 0
    return plain_top_k(full, k)


@pytest.mark.parametrize("rule", [TwoPhase(), TwoPhase(0.9, 1.0), TwoPhase(0.6, 2.5, 50), TwoPhase(0.4, 80)])
@pytest.mark.parametrize("k", [1, 10, 70, 500])
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_two_phase_equals_the_rule_in_python(rule, k, density):
    q, d = random_reps(12, 40, 0.3, 10, True), random_reps(400, 40, density, 11, False, 3)
    d.data = abs(d.data)
    got = InvertedIndex.from_csr(d).search(q, k, two_phase=rule)
    assert_same(got, two_phase_in_python(q, d, k, rule))


def test_two_phase_by_hand():
    """Term 0 weighs 1, term 1 .4, term 2 .3: the last is light, and document 2 holds nothing else."""
    q = csr_matrix(np.array([[1, 0.4, 0.3]], dtype=np.float32))
    d = csr_matrix(np.array([[1, 0, 0], [0, 1, 4], [0, 0, 9]], dtype=np.float32))
    index, scores = InvertedIndex.from_csr(d).search(q, 3, two_phase=TwoPhase())
    assert index.tolist() == [[1, 0, -1]] and scores[0] == pytest.approx([1.6, 1, 0])
    assert top_k(q, d, 3)[0].tolist() == [[2, 1, 0]]


def test_two_phase_with_ratio_0_is_the_plain_search():
    q, d = random_reps(20, 40, 0.2, 12, False, 2), random_reps(300, 40, 0.2, 13, False, 2)
    q.data = abs(q.data)
    index = InvertedIndex.from_csr(d)
    assert_same(index.search(q, 9, two_phase=TwoPhase(ratio=0)), index.search(q, 9))


def test_window_of_two_phase():
    """k x expansion up to the largest window, and never below k."""
    windows = [TwoPhase().window(10), TwoPhase().window(5000), TwoPhase(max_window=50).window(100)]
    assert windows == [50, 10_000, 100]


@pytest.mark.parametrize("bad", [{"ratio": 1}, {"ratio": -0.1}, {"expansion": 0.9}, {"max_window": 49}])
def test_two_phase_out_of_opensearchs_bounds_is_refused(bad):
    with pytest.raises(ValueError, match="want 0 <= ratio < 1"):
        TwoPhase(**bad)


def test_nonsense_is_refused():
    index = InvertedIndex.from_csr(random_reps(3, 3, 1, 14, True))
    q = csr_matrix(np.array([[1, -1, 0]], dtype=np.float32))
    with pytest.raises(ValueError, match="queries have 4 terms and the index 3.*same vocabulary"):
        index.search(csr_matrix((1, 4)), 1)
    for bad in ({"k": 0}, {"k": 1, "threads": 0}):
        with pytest.raises(ValueError, match="k and threads must be at least 1"):
            index.search(q, **bad)
    with pytest.raises(ValueError, match="query weight -1.0: two-phase"):
        index.search(q, 1, two_phase=TwoPhase())
    broken = csr_matrix((np.ones(1), np.array([0]), np.array([0, 1])), shape=(1, 3))
    broken.indices[0] = 7
    for two_phase in (None, TwoPhase()):
        with pytest.raises(ValueError, match="term outside 0 to 2"):
            index.search(broken, 1, two_phase=two_phase)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value):
    one, bad = csr_matrix(np.ones((1, 2))), csr_matrix(np.array([[value, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_k(bad, one, k=1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        InvertedIndex.from_csr(one).search(bad, 1, two_phase=TwoPhase())
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_k(one, bad, k=1)


def test_a_sum_that_could_overflow_is_refused():
    """inf - inf would be a NaN that no comparison finds."""
    q, d = csr_matrix(np.array([[1e20, -1e20]])), csr_matrix(np.array([[1e20, 1e20]]))
    with pytest.raises(ValueError, match="NaN or infinite.*1e"):
        top_k(q, d, k=1)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_queries(threads):
    seen = []
    index = InvertedIndex.from_csr(random_reps(4, 3, 0.5, 9, True))
    index.search(random_reps(150, 3, 0.5, 8, True), 1, threads, lambda *x: seen.append(x))
    assert seen[-1] == (150, 150) and seen == sorted(seen) and len(seen) > 2
