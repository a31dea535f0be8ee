"""What a sparse representation costs: FLOPS, terms, bytes; counted block by block.

Q queries, N documents, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

BYTES_PER_POSTING = 8  # a 4 byte document number and a 4 byte float weight, not compressed
THREADS = (1, 2, 4)  # at which the rate of search is measured
COST = (
    "flops", "q_nnz", "d_nnz", "l1", "index_bytes", "build_s", "encode_docs_per_s", "query_ms_p50",
    "query_ms_p99", *(f"queries_per_s_{n}" for n in THREADS),
)  # fmt: skip


@dataclass(frozen=True)
class Postings:
    """How many weights texts have: all that a search costs follows from it."""

    df: np.ndarray  # [V] texts that hold each term
    nnz: np.ndarray  # [N] terms of each text
    l1: float  # sum of all absolute weights

    @property
    def n(self) -> int:
        """N."""
        return len(self.nnz)


def count_postings(blocks: Iterable[csr_matrix]) -> Postings:
    """Count the non-zero weights of documents or queries.

    Args:
        blocks: at least one, [any number, V] CSR each; only one is held at a time.
    """
    df, nnz, l1 = 0, [], 0.0
    for reps in blocks:
        held = reps != 0
        df = df + np.asarray(held.sum(axis=0)).ravel()
        nnz.append(np.asarray(held.sum(axis=1)).ravel())
        l1 += float(abs(reps).sum())
        del reps, held  # before the next one is read
    return Postings(df, np.concatenate(nnz), l1)


def flops(q_reps: csr_matrix, d_reps: csr_matrix) -> float:
    """Expected multiplications to score one query against one document with posting lists.

    sum over t of P(t is in a query) * P(t is in a document), both counted, weights do not matter

    Source: the metric of the SPLADE papers (arXiv:2107.05720); not the training loss of that name.

    Args:
        q_reps: [Q, V] CSR. d_reps: [N, V] CSR.

    Raises:
        ValueError: V differs, or a side is empty.
    """
    return _flops(count_postings([q_reps]), count_postings([d_reps]))


def _flops(queries: Postings, documents: Postings) -> float:
    held = [(part.n, len(part.df)) for part in (queries, documents)]
    if held[0][1] != held[1][1] or not held[0][0] or not held[1][0]:
        raise ValueError(f"want [Q, V] and [N, V] with Q, N > 0, got {held[0]} and {held[1]}")
    return float((queries.df / queries.n) @ (documents.df / documents.n))


def sparse_cost(q_reps: csr_matrix, documents: Postings) -> dict[str, float]:
    """What an index of these documents costs, and a search of it with these queries.

    Args:
        q_reps: [Q, V] CSR.
        documents: of `count_postings`.

    Returns:
        flops: see `flops`. q_nnz, d_nnz: mean non-zero terms of a query and of a document.
        l1: mean sum of the absolute weights of a document.
        index_bytes: 8 bytes for each non-zero weight of the documents (document number 4, float 4).
    """
    queries, total = count_postings([q_reps]), int(documents.nnz.sum())
    return {
        "flops": _flops(queries, documents),
        "q_nnz": float(queries.nnz.mean()),
        "d_nnz": total / documents.n,
        "l1": documents.l1 / documents.n,
        "index_bytes": BYTES_PER_POSTING * total,
    }
