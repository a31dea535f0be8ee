"""Postings to search: drawn by a law that real ones follow, or BM25's of a real set.

N documents, Q queries, V terms.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags_array

from nblib.experiment import EvalSet
from nblib.idf import bm25_idf
from nblib.search.bm25 import Bm25

TERMS = 30_522  # of BERT's vocabulary
QUERY_TERMS = 8
MOST = 0.5  # share of the documents that the commonest terms are in


@dataclass(frozen=True)
class Case:
    """Something to search. A query weighs a term by its count x its idf, as an inference-free one does."""

    name: str
    d_reps: csr_matrix  # [N, V] float32
    counts: csr_matrix  # [Q, V] float32, each query with at least one term
    idf: np.ndarray  # [V] float32

    @property
    def q_reps(self) -> csr_matrix:
        """[Q, V] weights of the queries."""
        return weigh(self.counts, self.idf)


def weigh(reps: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """Multiply each term's weights by its idf."""
    product = csr_matrix(reps @ diags_array(idf), dtype=np.float32)
    product.sort_indices()
    return product


def generated(n_docs: int, terms: int, n_queries: int, seed: int) -> Case:
    """Draw documents and queries; see generated_documents and generated_counts."""
    share = shares(terms)
    d_reps = generated_documents(n_docs, share, seed)
    name = f"{n_docs:,} generated documents x {terms} terms"
    return Case(name, d_reps, generated_counts(n_queries, share, seed), generated_idf(n_docs, share))


def shares(terms: int) -> np.ndarray:
    """The share of documents that hold each term, [V] falling, so that a document holds `terms` on average.

    Zipf's law, c / rank, where the commonest terms are held by half of the documents: a model trained with
    the FLOPS penalty gives no term to all of them.
    """
    low, high = 0.0, float(TERMS)
    for _ in range(60):  # the share grows with c: halve the interval
        c = (low + high) / 2
        if np.minimum(c / np.arange(1, TERMS + 1), MOST).sum() < terms:
            low = c
        else:
            high = c
    return np.minimum(high / np.arange(1, TERMS + 1), MOST)


def generated_documents(n_docs: int, share: np.ndarray, seed: int) -> csr_matrix:
    """Draw documents [N, V]: term t in share[t] N of them, at least one; weights log(1 + e), e exponential.

    Terms are independent of each other, which real ones are not: nothing to cluster for Seismic, so it finds
    less here than in a real collection.
    """
    rng = np.random.default_rng(seed)
    df = np.maximum(1, np.round(share * n_docs)).astype(np.int64)
    documents = np.concatenate([rng.choice(n_docs, n, replace=False, shuffle=False) for n in df])
    weights = np.log1p(rng.exponential(size=len(documents))).astype(np.float32)
    lists = csr_matrix((weights, documents, np.concatenate([[0], np.cumsum(df)])), shape=(len(df), n_docs))
    return lists.T.tocsr()


def generated_counts(n_queries: int, share: np.ndarray, seed: int) -> csr_matrix:
    """Draw queries [Q, V] of 8 terms: term t as often as documents hold it, each once in a query.

    With 150 terms a document, a query meets a document in 1.0 terms on average: FLOPS about 1.
    """
    rng = np.random.default_rng([seed, 1])
    chances = share / share.sum()
    drawn = [rng.choice(len(share), QUERY_TERMS, replace=False, p=chances) for _ in range(n_queries)]
    columns = np.sort(drawn, axis=1).ravel()
    indptr = np.arange(0, len(columns) + 1, QUERY_TERMS)
    return csr_matrix((np.ones(len(columns), np.float32), columns, indptr), shape=(n_queries, len(share)))


def generated_idf(n_docs: int, share: np.ndarray) -> np.ndarray:
    """The idf of the terms of a collection of generated documents, [V]."""
    return bm25_idf(np.maximum(1, np.round(share * n_docs)).astype(np.int64), n_docs)


def bm25_case(data: EvalSet, analyzer: str, n_queries: int) -> Case:
    """Take the postings of a real set from BM25, its idf moved to the queries; queries without terms go."""
    index = Bm25(data.texts, analyzer)
    weights = index.doc_matrix
    idf = bm25_idf(weights.getnnz(axis=0), len(data.texts))  # [V]
    counts = index.query_matrix(data.queries)
    counts = counts[counts.getnnz(axis=1) > 0][:n_queries]
    name = f"{data.name}, {len(data.texts):,} documents"
    return Case(name, weigh(weights, 1 / idf), counts, idf)
