"""Exact search over posting lists: in memory or on disk, one query or many, by threads.

Q queries, N documents, V terms. A document is named by its row number. Memory of a search is that of the
scores of one shard per thread, whatever the number of documents; a thread keeps its array for the next one.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from nblib.search import kernels, shards
from nblib.search.exact import Progress
from nblib.search.shards import Shard

BATCH = 64  # queries that a thread takes at a time, at most
Hits = tuple[np.ndarray, np.ndarray]
Queries = tuple[np.ndarray, np.ndarray, np.ndarray]  # indptr, terms, weights


@dataclass(frozen=True)
class TwoPhase:
    """Search as OpenSearch's neural_sparse_two_phase_processor does: few tokens for all, all tokens for few.

    The query tokens that weigh at least ratio x the query's largest weight score all documents. The best
    min(k x expansion, max_window) of them, but at least k, are scored again with all tokens, and are the only
    hits: a document that holds none of the heavy tokens is never found. Where k x expansion exceeds
    max_window, OpenSearch refuses the request; here the window is cut. ratio 0 is the plain search.

    Args:
        ratio: prune_ratio, 0 to below 1.
        expansion: expansion_rate, at least 1.
        max_window: max_window_size, at least 50.

    Raises:
        ValueError: a value out of OpenSearch's bounds.

    Source: OpenSearch documentation, "Neural sparse query two-phase processor" (defaults, window); the
    comparison is >= in float32 by neural-search, PruneUtils.pruneByMaxRatio.
    """

    ratio: float = 0.4
    expansion: float = 5.0
    max_window: int = 10_000

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1 or not self.expansion >= 1 or self.max_window < 50:
            raise ValueError(f"{self}: want 0 <= ratio < 1, expansion >= 1, max_window >= 50")

    def window(self, k: int) -> int:
        """Say how many documents are scored again for k hits."""
        return max(k, min(int(k * self.expansion), self.max_window))


class InvertedIndex:
    """Posting lists per term, in shards of consecutive documents.

    Args:
        parts: at least one shard, in the order of their documents; all have the same V.
    """

    def __init__(self, parts: list[Shard]) -> None:
        self.shards, self.n_terms = parts, parts[0].n_terms
        self.n_docs = sum(shard.n_docs for shard in parts)
        self.n_postings = sum(len(shard.documents) for shard in parts)
        self.index_bytes = sum(shard.nbytes for shard in parts)
        first = accumulate((shard.n_docs for shard in parts[:-1]), initial=0)
        self._lists = [  # as the kernels take a shard
            (shard.indptr, shard.documents, shard.weights, number, shard.n_docs)
            for number, shard in zip(first, parts, strict=True)
        ]
        self._largest = max(shard.largest for shard in parts)
        self._scratch = threading.local()  # a score array for each thread, all 0 between searches

    @classmethod
    def from_csr(cls, d_reps: csr_matrix) -> "InvertedIndex":
        """Index documents [N, V] in memory, 8 bytes for each stored weight.

        Raises:
            ValueError: a weight is NaN or infinite in float32.
        """
        return cls([shards.from_rows(d_reps)])

    @classmethod
    def from_postings(cls, lists: csr_matrix) -> "InvertedIndex":
        """Index documents that are given by term, [V, N]; raises as `from_csr`."""
        return cls([shards.from_lists(csr_array(lists))])

    @classmethod
    def write(cls, folder: str | Path, d_reps: Iterable[csr_matrix]) -> "InvertedIndex":
        """Index documents on disk, shard by shard, so that memory follows the largest shard.

        The folder appears when all of it is written; until then an index that was there stays.

        Args:
            folder: for this index alone.
            d_reps: consecutive documents, each block [any number, V] one shard. Few large ones are
                searched faster than many small ones.

        Returns:
            The index, opened from the folder.

        Raises:
            ValueError: no block, blocks of unlike V, or a weight is NaN or infinite.
            FileExistsError: the folder holds something that is not an index.
        """
        shards.write_folder(Path(folder), d_reps)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "InvertedIndex":
        """Map an index on disk into memory; what a search touches is read then.

        Args:
            folder: that `write` made.
            verify: read every file and compare it with its checksum.

        Raises:
            FileNotFoundError: no index there, or a file of it is gone.
            ValueError: a file is damaged, or of another version.
        """
        return cls(shards.open_folder(Path(folder), verify))

    def search(
        self,
        q_reps: csr_matrix,
        k: int,
        threads: int = 1,
        progress: Progress | None = None,
        two_phase: TwoPhase | None = None,
    ) -> Hits:
        """Find the k best documents of each query by inner product.

        Only documents with a score above 0 are hits. Equal scores are ordered by the lowest document number.
        A score is the float32 sum in ascending order of terms, so that the result has the same bits whatever
        the threads and the shards.

        Args:
            q_reps: [Q, V] CSR, weights of the queries; negative ones are allowed.
            k: hits wanted for each query.
            threads: that share the queries.
            progress: called with (queries done, Q) from time to time.
            two_phase: leave light tokens out of the first round; exact if None.

        Returns:
            index: [Q, k] int64, document numbers, best first; -1 where a query has fewer hits.
            scores: [Q, k] float32; 0 where index is -1.

        Raises:
            ValueError: another V, k or threads below 1, a weight that is not finite or could make a score
                overflow, or a negative query weight with two_phase.
        """
        if k < 1 or threads < 1:
            raise ValueError(f"k and threads must be at least 1, got k={k}, threads={threads}")
        queries = self._queries(q_reps, two_phase)
        total, kept = q_reps.shape[0], min(k, max(self.n_docs, 1))
        index, scores = np.empty((total, k), np.int64), np.empty((total, k), np.float32)
        batch = BATCH if threads == 1 else max(1, min(BATCH, -(-total // (2 * threads))))

        def run(start: int) -> int:
            stop = min(start + batch, total)
            keys = self._best(queries, start, stop, kept, two_phase)
            keys.sort(axis=1)
            kernels.decode(keys[:, -kept:], start, index, scores)
            return stop - start

        done = 0
        for count in _in_threads(run, range(0, total, batch), threads):
            done += count
            if progress:
                progress(done, total)
        return index, scores

    def _queries(self, q_reps: csr_matrix, two_phase: TwoPhase | None) -> Queries:
        """Check queries and bring them into the form of the kernels."""
        if q_reps.shape[1] != self.n_terms:
            raise ValueError(
                f"queries have {q_reps.shape[1]} terms and the index {self.n_terms}: "
                "both sides must come from the same vocabulary"
            )
        queries, wrong = self._arrays(q_reps)
        if wrong == kernels.NOT_ASCENDING:
            q_reps = csr_array(q_reps, copy=True)
            q_reps.sum_duplicates()  # sorts the terms too
            queries, wrong = self._arrays(q_reps)
        if wrong == kernels.NOT_FINITE:
            raise ValueError(
                "a score is NaN or infinite, or could be: look for NaN or huge values in the "
                f"query's weights or in the IDF (the largest document weight is {self._largest:g})"
            )
        if wrong == kernels.NO_SUCH_TERM:
            raise ValueError(f"a query names a term outside 0 to {self.n_terms - 1}")
        if two_phase and wrong == kernels.NEGATIVE:
            raise ValueError(f"query weight {queries[2].min()}: two-phase search takes none below 0")
        return queries

    def _arrays(self, q_reps: csr_matrix) -> tuple[Queries, int]:
        """Take the arrays of queries in the types of the kernels, and what is wrong with them."""
        q_reps = q_reps if q_reps.format == "csr" else csr_array(q_reps)
        indptr, terms, weights = q_reps.indptr, q_reps.indices, q_reps.data  # int32, or int64 where too many
        if weights.dtype != np.float32:
            with np.errstate(over="ignore"):  # infinite ones are refused
                weights = weights.astype(np.float32)
        queries = (indptr, terms, weights)
        return queries, kernels.check_queries(*queries, self.n_terms, self._largest)

    def _best(self, queries: Queries, start: int, stop: int, k: int, two: TwoPhase | None) -> np.ndarray:
        """Keys of the best hits [stop - start, at least k], in no order."""
        two = two if two and two.ratio else None
        window = max(k, min(two.window(k), self.n_docs)) if two else k
        best, scores = np.zeros((stop - start, window), np.uint64), self._scores()
        whole, ratio = len(self._lists) == 1, two.ratio if two else 0.0
        for lists in self._lists:
            kernels.search_shard(*lists, *queries, start, best, scores, ratio, whole)
        for lists in self._lists if two and not whole else ():
            kernels.rescore_shard(*lists, *queries, start, best, scores)
        return best

    def _scores(self) -> np.ndarray:
        if not hasattr(self._scratch, "scores"):
            largest = max(shard.n_docs for shard in self.shards)
            self._scratch.scores = np.zeros(largest, np.float32)
        return self._scratch.scores


def top_k(q_reps: csr_matrix, d_reps: csr_matrix, k: int, threads: int = 1) -> Hits:
    """Search documents that are searched only once: `InvertedIndex.from_csr` and its `search`."""
    return InvertedIndex.from_csr(d_reps).search(q_reps, k, threads)


def _in_threads(run: Callable, jobs: range, threads: int) -> Iterator[int]:
    if threads == 1 or len(jobs) < 2:
        return map(run, jobs)
    return _pool(min(threads, len(jobs))).map(run, jobs)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Keep threads between searches: to start some takes as long as dozens of queries on a small index."""
    return ThreadPoolExecutor(threads, "search")
