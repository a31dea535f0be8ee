"""BM25 as a teacher: the sparse one that needs no weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nblib.search.bm25 import ANALYZERS, Bm25

BM25_PREFIX = "bm25:"


class Bm25Teacher:
    """BM25 over the full training documents, scored for any block of pairs by a sparse product.

    Raises:
        ValueError: an analyzer name that is not known.
    """

    def __init__(self, analyzer: str = "english") -> None:
        if analyzer not in ANALYZERS:
            raise ValueError(f"analyzer {analyzer!r} is not known; use one of {', '.join(sorted(ANALYZERS))}")
        self.analyzer = analyzer

    def prepare(self, queries: Sequence[str], documents: Sequence[str]) -> None:
        """Index all documents; seconds for tens of thousands, so nothing is cached or shared out."""
        index = Bm25(documents, self.analyzer)
        self.q_counts = index.query_matrix(list(queries))
        self.d_weights = index.doc_matrix

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score rows of the prepared queries against rows of the prepared documents: [Q, D] float32."""
        product = self.q_counts[q_rows] @ self.d_weights[d_rows].T
        return torch.from_numpy(product.toarray().astype(np.float32))
