"""Exact search of dense representations, and runs; sparse ones are searched by nblib.search.inverted.

Q queries, N documents, H dimensions of a dense vector. A document is named by its row number.
"""

from collections.abc import Callable, Sequence

import numpy as np

Run = dict[str, dict[str, float]]
Progress = Callable[[int, int], None]


def top_k_dense(
    q_reps: np.ndarray, d_reps: np.ndarray, k: int, batch: int = 64, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k best documents of each query by dense inner product, in blocks of queries.

    Every document is a hit, with a negative score too: a dense score has no zero that means "nothing shared".

    Args:
        q_reps: [Q, H] float.
        d_reps: [N, H] float.
        k: documents wanted for each query.
        batch: queries in one product; at most batch x N scores are in memory.
        progress: called with (queries done, Q) after each batch.

    Returns:
        index: [Q, k] int64, document numbers, best first, equal scores by the lowest; -1 where k > N.
        scores: [Q, k] float32; 0 where index is -1.

    Raises:
        ValueError: H differs, k or batch is below 1, or a score is not finite.
    """
    if q_reps.ndim != 2 or d_reps.ndim != 2 or q_reps.shape[1] != d_reps.shape[1]:
        raise ValueError(f"want [Q, H] and [N, H], got {q_reps.shape} and {d_reps.shape}")
    best, scores = _empty(len(q_reps), k, batch)
    documents = np.arange(len(d_reps))
    for start in range(0, len(q_reps), batch):
        block = q_reps[start : start + batch] @ d_reps.T  # [batch, N]
        _refuse_nan(block)
        for row, values in enumerate(block, start):
            _fill(best[row], scores[row], documents, values)
        if progress:
            progress(min(start + batch, len(q_reps)), len(q_reps))
    return best, scores


def to_run(query_ids: Sequence[str], doc_ids: Sequence[str], index: np.ndarray, scores: np.ndarray) -> Run:
    """Name the rows of a search result: query id -> document id -> score, best first.

    Args:
        query_ids: Q ids, in the order of the rows of `index`.
        doc_ids: N ids, in the order of the rows of the documents.
        index: [Q, k] int; -1 is no hit and is left out.
        scores: [Q, k] float.

    Returns:
        A run that holds every query, with an empty dict for a query without hits.

    Raises:
        ValueError: the number of query ids is not Q.
    """
    if len(query_ids) != len(index):
        raise ValueError(f"{len(query_ids)} query ids for {len(index)} rows of results")
    return {
        qid: {doc_ids[d]: float(s) for d, s in zip(row, values, strict=True) if d >= 0}
        for qid, row, values in zip(query_ids, index, scores, strict=True)
    }


def _empty(n_queries: int, k: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    if k < 1 or batch < 1:
        raise ValueError(f"k and batch must be at least 1, got k={k}, batch={batch}")
    return np.full((n_queries, k), -1, dtype=np.int64), np.zeros((n_queries, k), dtype=np.float32)


def _fill(best: np.ndarray, scores: np.ndarray, documents: np.ndarray, values: np.ndarray) -> None:
    """Write the best documents into one row [k]; equal values by the lowest document."""
    k = len(best)
    if len(values) > k:
        # The k-th value is a threshold; all documents equal to it stay in, so that the sort below decides.
        threshold = np.partition(values, len(values) - k)[len(values) - k]
        keep = values >= threshold
        documents, values = documents[keep], values[keep]
    order = np.lexsort((documents, -values))[:k]
    best[: len(order)] = documents[order]
    scores[: len(order)] = values[order]


def _refuse_nan(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite: look for NaN in the model's weights or in the IDF")
