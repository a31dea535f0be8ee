"""Scores of single pairs: read from kd rows, or computed by a cross-encoder; all other pairs are unscored.

A teacher looks them up by (query row, document row), the positions of the texts in the training set.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def training_pairs(rows: Iterable[tuple[int, int, Sequence[int]]]) -> np.ndarray:
    """List the pairs that training rows name, each once.

    Args:
        rows: (query, positive, negatives) positions, as TrainingSet.rows holds them.

    Returns:
        [P, 2] int64 (query row, document row), in order.
    """
    named = ((q << 32) | d for q, positive, negatives in rows for d in (positive, *negatives))
    return unpack(np.unique(np.fromiter(named, dtype=np.int64)))


def pack(pairs: np.ndarray) -> np.ndarray:
    """Turn [P, 2] rows into [P] int64 keys that sort by query, then by document."""
    return (pairs[:, 0] << 32) | pairs[:, 1]


def unpack(keys: np.ndarray) -> np.ndarray:
    """Turn keys of `pack` back into [P, 2] rows."""
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)


def checked_pairs(pairs: ArrayLike | None, n_queries: int, n_documents: int) -> np.ndarray:
    """Give the distinct pairs in order.

    Args:
        pairs: (query row, document row), with or without repeats.
        n_queries, n_documents: how many rows there are.

    Returns:
        [P, 2] int64.

    Raises:
        ValueError: no pair, a shape other than [P, 2], or a row that does not exist.
    """
    pairs = np.asarray([] if pairs is None else pairs)
    if not pairs.size:
        raise ValueError(
            "a cross-encoder scores only the pairs it is told: pass pairs=training_pairs(data.rows)"
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"want pairs [P, 2] of whole numbers (query row, document row), got {pairs.shape} {pairs.dtype}"
        )
    check_rows(pairs, n_queries, n_documents)
    return unpack(np.unique(pack(pairs.astype(np.int64))))


def check_rows(pairs: np.ndarray, n_queries: int, n_documents: int) -> None:
    """Refuse pairs of rows that do not exist. Raises ValueError."""
    bad = (pairs < 0) | (pairs >= np.array([n_queries, n_documents]))
    if bad.any():
        q, d = pairs[np.flatnonzero(bad.any(axis=1))[0]]
        raise ValueError(
            f"pair ({q}, {d}): rows run to {n_queries - 1} for queries and {n_documents - 1} for documents; "
            "number them as positions in the prepared texts"
        )


class GivenScores:
    """Scores of named pairs, such as kd rows hold; every other pair is NaN.

    Args:
        pairs: [P, 2] (query row, document row).
        scores: [P] float, on any scale; the larger the better.

    Raises:
        ValueError: shapes that do not fit, a score that is not finite, or two scores for one pair.
    """

    def __init__(self, pairs: ArrayLike, scores: ArrayLike) -> None:
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        values = np.asarray(scores, dtype=np.float32)
        if values.shape != (len(pairs),):
            raise ValueError(f"{len(pairs)} pairs but scores of shape {values.shape}; give one per pair")
        if not np.isfinite(values).all():
            i = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"score of pair {tuple(pairs[i].tolist())} is {values[i]}; want a finite number")
        order = np.argsort(pack(pairs), kind="stable")
        keys, values = pack(pairs)[order], values[order]
        again = keys[1:] == keys[:-1]
        if (clash := np.flatnonzero(again & (values[1:] != values[:-1]))).size:
            i = int(clash[0])
            pair = tuple(unpack(keys[i : i + 1])[0].tolist())
            raise ValueError(f"pair {pair} has scores {values[i]} and {values[i + 1]}; keep one of them")
        first = np.concatenate([[True], ~again]) if len(keys) else again
        self.keys, self.values = keys[first], values[first]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def pairs(self) -> np.ndarray:
        """[P, 2] (query row, document row), in order."""
        return unpack(self.keys)

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Look up all pairs of the given rows: [Q, D] float32, NaN where a pair was not scored."""
        q_rows, d_rows = np.asarray(q_rows, np.int64), np.asarray(d_rows, np.int64)
        wanted = (q_rows[:, None] << 32) | d_rows[None, :]  # [Q, D]
        if not len(self.keys):
            return torch.full(wanted.shape, float("nan"))
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        found = np.where(self.keys[at] == wanted, self.values[at], np.float32("nan"))
        return torch.from_numpy(found.astype(np.float32))
