"""What the search engines are compared with: all scores by numpy, then a sort in plain Python."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_sparse


def plain_scores(q: csr_matrix, d: csr_matrix) -> np.ndarray:
    """All scores [Q, N] float32, summed in ascending order of terms."""
    q, d = (np.asarray(m.todense(), dtype=np.float32) for m in (q, d))
    scores = np.zeros((len(q), len(d)), np.float32)
    for term in range(q.shape[1]):
        scores += q[:, term, None] * d[None, :, term]
    return scores


def plain_top_k(scores: np.ndarray, k: int, only_hits: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs of (score, document): index [Q, k], scores [Q, k]."""
    index, best = np.full((len(scores), k), -1), np.zeros((len(scores), k), np.float32)
    for row, values in enumerate(scores):
        hits = [(-value, d) for d, value in enumerate(values) if value > 0 or not only_hits]
        for rank, (value, d) in enumerate(sorted(hits)[:k]):
            index[row, rank], best[row, rank] = d, -value
    return index, best


def random_reps(n: int, v: int, density: float, seed: int, whole: bool, low: int = 1) -> csr_matrix:
    """Random CSR, some rows empty. whole: small whole weights, so that ties are many."""
    rng = np.random.default_rng(seed)
    matrix = random_sparse(n, v, density, format="csr", rng=rng)
    drawn = rng.integers(low, 4, size=matrix.nnz) if whole else rng.normal(low, 1, size=matrix.nnz)
    matrix.data = drawn.astype(np.float32)
    matrix.eliminate_zeros()
    return csr_matrix(matrix)
