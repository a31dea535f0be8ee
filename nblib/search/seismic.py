"""Approximate search by Seismic: blocks of each posting list are skipped by their summaries.

Q queries, N documents, V terms. Source: Bruch et al. 2024, arXiv:2404.18812; package pyseismic-lsr.
"""

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from nblib.search.exact import Progress

SMALL_VOCABULARY = 65_536  # terms that SeismicIndex can number; SeismicIndexLV takes more, in larger blocks
LARGEST_WEIGHT = float(np.finfo(np.float16).max)  # the package keeps weights as float16
BATCH = 256


@dataclass(frozen=True)
class SeismicBuild:
    """How the lists are cut and summed up; the defaults are the package's.

    Args:
        n_postings: mean length to which the lists are cut.
        centroid_fraction: clusters of a list, as a share of its documents.
        min_cluster_size: documents below which a cluster is given up.
        summary_energy: share of a cluster's weight that its summary keeps.
        max_fraction: a list may have so many times n_postings.
        doc_cut: heaviest terms of a document that decide its cluster.
    """

    n_postings: int = 3500
    centroid_fraction: float = 0.1
    min_cluster_size: int = 2
    summary_energy: float = 0.4
    max_fraction: float = 1.5
    doc_cut: int = 15


class ApproximateIndex:
    """Seismic over the same reps as InvertedIndex, searched by the same call.

    Its scores are sums of float16 weights, so they differ from the exact ones in the fourth digit.

    Args:
        d_reps: [N, V] CSR, weights of the documents, none below 0. A document without terms is never found.
        build: how to build.
        query_cut: heaviest terms of a query that are searched.
        heap_factor: 1 skips a block only if its summary cannot reach the k best; less skips more.
        threads: that build.

    Raises:
        ImportError: pyseismic-lsr is not installed; it has wheels for few machines.
        ValueError: a weight is below 0, NaN, or above what float16 holds.
    """

    def __init__(
        self,
        d_reps: csr_matrix,
        build: SeismicBuild = SeismicBuild(),  # noqa: B008 (frozen)
        query_cut: int = 10,
        heap_factor: float = 0.8,
        threads: int = 1,
    ) -> None:
        package = _package()
        d_reps = _canonical(d_reps, "document")
        self.n_docs, self.n_terms = d_reps.shape
        self.query_cut, self.heap_factor = query_cut, heap_factor
        self.string = package.get_seismic_string()  # numpy type of the names of terms
        small = self.n_terms <= SMALL_VOCABULARY
        dataset = (package.SeismicDataset if small else package.SeismicDatasetLV)(dim=self.n_terms)
        offsets, terms = (a.astype(np.int64) for a in (d_reps.indptr, d_reps.indices))
        names = [str(number) for number in range(self.n_docs)]
        dataset.add_documents_by_id(names, terms, d_reps.data, offsets)
        kind = package.SeismicIndex if small else package.SeismicIndexLV
        self.package_index = kind.build_from_dataset(dataset, **asdict(build), num_threads=threads)

    def search(
        self, q_reps: csr_matrix, k: int, threads: int = 1, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find most of the k best documents of each query; arguments and results as InvertedIndex.search.

        Of equal scores the lowest document comes first, but which of them are found at the cut is chance.

        Raises:
            ValueError: another V, k or threads below 1, or a weight that is negative or not finite.
        """
        if q_reps.shape[1] != self.n_terms:
            raise ValueError(
                f"queries have {q_reps.shape[1]} terms and the index {self.n_terms}: "
                "both sides must come from the same vocabulary"
            )
        if k < 1 or threads < 1:
            raise ValueError(f"k and threads must be at least 1, got k={k}, threads={threads}")
        q_reps, total = _canonical(q_reps, "query"), q_reps.shape[0]
        index, scores = np.full((total, k), -1, np.int64), np.zeros((total, k), np.float32)
        for start in range(0, total, BATCH):
            stop = min(start + BATCH, total)
            for row, hits in enumerate(self._hits(q_reps[start:stop], k, threads), start):
                for rank, (score, number) in enumerate(sorted(hits)):
                    index[row, rank], scores[row, rank] = number, -score
            if progress:
                progress(stop, total)
        return index, scores

    def _hits(self, q_reps: csr_array, k: int, threads: int) -> list[list[tuple[float, int]]]:
        """(-score, document) of the hits of each query, in no order."""
        cuts = q_reps.indptr[1:-1]
        terms = np.split(q_reps.indices.astype(self.string), cuts)
        names = np.arange(q_reps.shape[0]).astype(self.string)
        settings = {"query_cut": self.query_cut, "heap_factor": self.heap_factor, "num_threads": threads}
        found = self.package_index.batch_search(names, terms, np.split(q_reps.data, cuts), k=k, **settings)
        hits: list[list[tuple[float, int]]] = [[] for _ in names]
        # By the name in each hit: where queries have fewer than k hits, the lists come back out of step.
        for query, score, document in chain.from_iterable(found):
            if score > 0:
                hits[int(query)].append((-score, int(document)))
        return hits


def _package() -> Any:
    try:
        import seismic
    except ImportError as error:
        raise ImportError(
            "approximate search needs pyseismic-lsr, which is not installed here. It has wheels for Linux "
            "x86-64 with Python 3.11 and 3.12 (requirements.txt has them); search exactly elsewhere"
        ) from error
    return seismic


def _canonical(reps: csr_matrix, side: str) -> csr_array:
    """Copy to float32 CSR with terms in order."""
    reps = csr_array(reps, copy=True)
    reps.sum_duplicates()
    if reps.nnz and not (reps.data.min() >= 0 and reps.data.max() <= LARGEST_WEIGHT):
        worst = reps.data.min() if not reps.data.min() >= 0 else reps.data.max()
        raise ValueError(
            f"a {side} weighs {worst:g}: Seismic takes weights from 0 to {LARGEST_WEIGHT:g}; look for NaN in "
            "the model's weights or in the IDF, or search exactly"
        )
    return reps.astype(np.float32)
