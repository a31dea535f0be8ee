"""A large generated collection, indexed on disk shard by shard and searched, in a process of its own.

`python -m nblib.speed.large` reads a job from standard input. No torch here: the memory is to be the index's.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from nblib.search.inverted import InvertedIndex, TwoPhase
from nblib.speed import postings
from nblib.speed.memory import peak_gib


def measure(documents: int, shard: int, terms: int, queries: int, seed: int, folder: str) -> dict[str, Any]:
    """Write an index of generated documents, open it, search with one query at a time.

    Args:
        documents, shard: how many in all, and in one shard.
        terms: of a document.
        queries: that are timed, after three that are not.
        seed: of all that is drawn.
        folder: where the index lies for as long as it is measured.

    Returns:
        build_seconds and build_peak_gib, the drawing included; search_peak_gib, which counts what was mapped;
        index_bytes; ms, ms_1000, ms_two_phase: of the median query at k = 10, k = 1000, k = 10 in two phases.
    """
    share = postings.shares(terms)
    counts = postings.generated_counts(queries + 3, share, seed)
    q_reps = postings.weigh(counts, postings.generated_idf(documents, share))
    with tempfile.TemporaryDirectory(dir=folder) as tmp:
        start = time.perf_counter()
        index = InvertedIndex.write(f"{tmp}/index", _shards(documents, shard, share, seed))
        facts = {"build_seconds": time.perf_counter() - start, "build_peak_gib": peak_gib()}
        settings = {"ms": (10, None), "ms_1000": (1000, None), "ms_two_phase": (10, TwoPhase())}
        for name, (k, two_phase) in settings.items():
            times = [_ms(index, q_reps[row], k, two_phase) for row in range(queries + 3)]
            facts[name] = median(times[3:])
        return facts | {"search_peak_gib": peak_gib(), "index_bytes": index.index_bytes}


def _shards(documents: int, shard: int, share: np.ndarray, seed: int) -> Iterator[csr_matrix]:
    for first in range(0, documents, shard):
        yield postings.generated_documents(min(shard, documents - first), share, seed + first)


def _ms(index: InvertedIndex, query: csr_matrix, k: int, two_phase: TwoPhase | None) -> float:
    start = time.perf_counter()
    index.search(query, k, two_phase=two_phase)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
