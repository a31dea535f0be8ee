"""Hybrid search: several rankings of the same documents made into one.

Q queries, k hits of each. A document is named by its row number.
"""

from collections.abc import Sequence

import numpy as np

RANK_CONSTANT = 60


def reciprocal_rank_fusion(
    rankings: Sequence[np.ndarray], k: int, constant: int = RANK_CONSTANT
) -> tuple[np.ndarray, np.ndarray]:
    """Fuse rankings by the ranks alone, so that scores of unlike systems need no common scale.

    score(d) = sum over rankings that hold d of 1 / (constant + rank of d), ranks from 1

    Equal scores are ordered by the lowest document number. Scores are rounded to float32 first: the last bit
    of a sum depends on the order of the rankings, and a tie must not be broken by that.

    Source: Cormack, Clarke, Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods", which sets the constant to 60.

    Args:
        rankings: at least one [Q, any] int array of document numbers, best first; -1 = no hit.
        k: hits wanted for each query.
        constant: how little the first ranks stand out; 0 makes rank 1 worth twice rank 2.

    Returns:
        index [Q, k] int64 and scores [Q, k] float32; -1 and 0 where a query has fewer hits.

    Raises:
        ValueError: no ranking, the rankings differ in Q, or k is below 1.
    """
    if not rankings or len({len(ranking) for ranking in rankings}) != 1 or k < 1:
        lengths = [len(ranking) for ranking in rankings]
        raise ValueError(f"want rankings of the same queries and k of at least 1, got {lengths} rows, k={k}")
    n_queries = len(rankings[0])
    index, scores = np.full((n_queries, k), -1, np.int64), np.zeros((n_queries, k), np.float32)
    worth = [1.0 / (constant + 1 + np.arange(ranking.shape[1])) for ranking in rankings]
    for row in range(n_queries):
        hits = [ranking[row] >= 0 for ranking in rankings]
        documents = np.concatenate([ranking[row][hit] for ranking, hit in zip(rankings, hits, strict=True)])
        shares = np.concatenate([w[hit] for w, hit in zip(worth, hits, strict=True)])
        found, place = np.unique(documents, return_inverse=True)  # by document number
        total = np.bincount(place, shares, len(found)).astype(np.float32)
        best = np.argsort(-total, kind="stable")[:k]
        index[row, : len(best)], scores[row, : len(best)] = found[best], total[best]
    return index, scores
