"""Costs by hand, and counted in blocks."""

import weakref

import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix, vstack

from nblib.cost import count_postings, flops, sparse_cost


def test_flops_by_hand():
    q = csr_matrix(np.array([[1.0, 0.5, 0], [2.0, 0, 0]]))  # P in query: 1, 1/2, 0
    d = csr_matrix(np.array([[1.0, 1, 1], [0, 9, 1], [0, 0, 1], [0, 0, 1]]))  # P in document: 1/4, 1/2, 1
    assert flops(q, d) == pytest.approx(1 * 0.25 + 0.5 * 0.5)
    assert flops(q * 100, d * 0.01) == flops(q, d)  # weights do not matter
    assert flops(csr_array(q), csr_array(d)) == flops(q, d)


def test_flops_is_the_mean_number_of_shared_terms():
    rng = np.random.default_rng(1)
    q, d = (csr_matrix(rng.random((n, 30)) < 0.2, dtype=np.float32) for n in (7, 11))
    assert flops(q, d) == pytest.approx((q @ d.T).toarray().mean(), rel=1e-6)


def test_stored_zeros_cost_nothing():
    d = csr_matrix(np.array([[1.0, 2.0], [3.0, 4.0]]))
    d.data[1] = 0.0
    cost = sparse_cost(csr_matrix(np.array([[1.0, 1.0]])), count_postings([d]))
    assert cost == {"flops": 1.5, "q_nnz": 2.0, "d_nnz": 1.5, "l1": 4.0, "index_bytes": 24}


def test_flops_needs_one_vocabulary():
    with pytest.raises(ValueError, match="Q, N > 0"):
        flops(csr_matrix((1, 2)), csr_matrix((1, 3)))


def test_blocks_count_as_the_whole():
    rng = np.random.default_rng(2)
    q, d = (csr_matrix(rng.random((n, 30)) * (rng.random((n, 30)) < 0.2)) for n in (7, 11))
    parts = [d[:4], d[4:5], d[5:]]
    np.testing.assert_array_equal(count_postings(parts).nnz, np.diff(d.indptr))
    assert sparse_cost(q, count_postings(parts)) == pytest.approx(
        sparse_cost(q, count_postings([vstack(parts)]))
    )


def test_a_block_is_let_go_before_the_next_is_read():
    read = []

    def blocks():
        for size in (3, 2, 4):
            assert all(block() is None for block in read)
            block = csr_matrix(np.eye(size, 5))
            read.append(weakref.ref(block))
            yield block
            del block

    assert count_postings(blocks()).nnz.tolist() == [1] * 9
