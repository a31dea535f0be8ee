"""Drop small weights of encoded documents: a smaller index for a little relevance."""

import numpy as np
from scipy import sparse


def prune_reps(
    reps: sparse.csr_matrix, max_ratio: float = 0.0, top_k: int = 0, min_weight: float = 0.0
) -> sparse.csr_matrix:
    """Keep the weights that pass every rule given; the order of the terms stays.

    OpenSearch's ingest pipeline has the same three rules (prune_type max_ratio, top_k, abs_value).

    Args:
        reps: [N, V] weights >= 0.
        max_ratio: keep what is above this share of the row's largest weight; 0 keeps all.
        top_k: keep so many of the row's largest weights, of equal ones the lower term id; 0 keeps all.
        min_weight: keep what is at least this; 0 keeps all.

    Returns:
        [N, V] CSR; `reps` is not changed.

    Raises:
        ValueError: max_ratio outside 0 to below 1, or a negative top_k or min_weight.
    """
    if not 0 <= max_ratio < 1 or top_k < 0 or not min_weight >= 0:
        raise ValueError(
            f"max_ratio {max_ratio}, top_k {top_k}, min_weight {min_weight}: "
            "want 0 to below 1 (1 would drop every term), and 0 or more for the others"
        )
    reps = sparse.csr_matrix(reps, copy=True)
    reps.sort_indices()
    rows = np.repeat(np.arange(reps.shape[0]), np.diff(reps.indptr))
    keep = (reps.data >= min_weight) & (reps.data > 0)
    if max_ratio:
        largest = np.zeros(reps.shape[0], reps.dtype)
        np.maximum.at(largest, rows, reps.data)
        keep &= reps.data > max_ratio * largest[rows]
    if top_k:
        order = np.lexsort((reps.indices, -reps.data, rows))  # by row, largest first, lower id first
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - reps.indptr[rows[order]]
        keep &= rank < top_k
    reps.data[~keep] = 0.0
    reps.eliminate_zeros()
    return reps
