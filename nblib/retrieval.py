"""One corpus, every system: search it, search it again by the variants, fuse the hybrids, measure the cost.

N documents, Q queries, k hits of each.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nblib.bags import query_matrix
from nblib.cost import THREADS, Postings, count_postings, sparse_cost
from nblib.encoded import Blocks, Reps
from nblib.idf import adapt_idf, count_df
from nblib.model.prune import prune_reps
from nblib.run.progress import report
from nblib.search.exact import top_k_dense
from nblib.search.fusion import reciprocal_rank_fusion
from nblib.search.inverted import InvertedIndex, TwoPhase
from nblib.search.seismic import ApproximateIndex
from nblib.stems import stem_groups
from nblib.systems import Documents, EncodeQueries, System

CountDf = Callable[[str], tuple[np.ndarray, int]]  # stemmer -> what count_df gives for the searched corpus
TIMED_QUERIES = 200
PASSES = 3  # over the timed queries; the best counts: a busy moment is not a slow engine


@dataclass(frozen=True)
class Result:
    """What a system found, and at what cost (columns `nblib.cost.COST`)."""

    name: str
    index: np.ndarray  # [Q, k] document numbers, -1 = no hit
    scores: np.ndarray  # [Q, k]
    q_reps: Reps | None  # None for a hybrid, which has no reps of its own
    d_reps: Documents | None
    d_nnz: np.ndarray | None  # [N] non-zero terms of each document; None for a system without terms
    cost: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An encoded corpus with an engine over it, ready for queries."""

    name: str
    d_reps: Documents
    postings: Postings | None  # of d_reps; None for a dense system
    encode_queries: EncodeQueries
    engine: Any  # InvertedIndex, ApproximateIndex or DenseProduct
    cost: dict[str, Any]  # of encoding and building
    two_phase: TwoPhase | None = None

    def search(self, q_reps: Reps, k: int, threads: int = 1, progress: Any = None) -> Any:
        """Search encoded queries: index [Q, k], scores [Q, k]."""
        options = {"two_phase": self.two_phase} if self.two_phase else {}
        return self.engine.search(q_reps, k, threads=threads, progress=progress, **options)


@dataclass(frozen=True)
class DenseProduct:
    """The engine of dense vectors: every document is scored, by the threads of the linear algebra library."""

    d_reps: np.ndarray  # [N, H]

    def search(self, q_reps: np.ndarray, k: int, threads: int = 1, progress: Any = None) -> Any:
        """As InvertedIndex.search."""
        return top_k_dense(q_reps, self.d_reps, k, progress=progress)


def search_all(
    systems: list[System],
    texts: Sequence[str],
    queries: list[str],
    k: int,
    variants: Mapping[str, Any] | None = None,
    hybrids: Mapping[str, list[str]] | None = None,
    timed_queries: int = TIMED_QUERIES,
    scratch: Path | None = None,
) -> Iterator[Result]:
    """Search a corpus with every system, each followed by its variants; then fuse the hybrids.

    A variant takes the encoded documents of its system, so it costs a search and at most an index.

    Args:
        systems: what to search with.
        texts: N documents. queries: Q texts.
        k: hits of each query.
        variants: name -> options, see `nblib.run.params.Variant`.
        hybrids: name -> names of systems and variants, fused by their ranks.
        timed_queries: see `measure`.
        scratch: see `build`.

    Raises:
        ValueError: no documents or no queries.
    """
    found: dict[str, np.ndarray] = {}
    for system in systems:
        own = {name: options for name, options in (variants or {}).items() if options.of == system.name}
        for entry in _entries(system, texts, own, scratch):
            result = measure(entry, queries, k, timed_queries)
            found[result.name] = result.index
            yield result
            del entry, result  # the next one is encoded and indexed without them in memory
    for name, parts in (hybrids or {}).items():
        index, scores = reciprocal_rank_fusion([found[part] for part in parts], k)
        yield Result(name, index, scores, None, None, None, {})


def _entries(
    system: System, texts: Sequence[str], variants: Mapping[str, Any], scratch: Path | None
) -> Iterator[Entry]:
    entry = enter(system, texts, scratch)
    yield entry

    @cache  # once for all variants, and only if one asks
    def count(stemmer: str) -> tuple[np.ndarray, int]:
        return count_df(texts, system.tokenizer, groups=stem_groups(system.tokenizer, stemmer))

    for name, options in variants.items():
        yield vary(entry, name, options, system, count, scratch)


def enter(system: System, texts: Sequence[str], scratch: Path | None = None) -> Entry:
    """Encode a corpus and build the system's exact engine over it; scratch: see `build`.

    Raises:
        ValueError: no documents.
    """
    if not texts:
        raise ValueError(f"{system.name}: 0 documents; at least one is needed")
    d_reps, encode_queries, seconds = system.index(texts)
    engine, cost = build(d_reps, "exact", scratch)
    cost["encode_docs_per_s"] = len(texts) / max(seconds, 1e-9)
    return Entry(system.name, d_reps, _postings(d_reps), encode_queries, engine, cost)


def _postings(d_reps: Documents) -> Postings | None:
    return count_postings(d_reps) if isinstance(d_reps, Blocks) else None


def build(
    d_reps: Documents, engine: str = "exact", scratch: Path | None = None
) -> tuple[Any, dict[str, float]]:
    """Build a search engine over encoded documents.

    Args:
        d_reps: documents in one block are indexed in memory, those in several on disk, a shard for each.
        engine: "exact", or "seismic", which is always in memory; dense vectors have one engine only.
        scratch: folder for an index on disk. It is removed at once: the engine has its files mapped, and
            when the engine goes, or is killed, so do they.

    Returns:
        The engine, and {"build_s": seconds in one thread, those for reading several blocks included}; a dense
        product is not built and has none.

    Raises:
        ImportError: the package of Seismic is not there.
        ValueError: several blocks, the exact engine and no scratch.
    """
    if not isinstance(d_reps, Blocks):
        return DenseProduct(d_reps), {}
    start = time.perf_counter()
    if engine == "seismic":
        index = ApproximateIndex(d_reps.to_csr())
    elif len(d_reps.sizes) == 1:
        index = InvertedIndex.from_csr(d_reps.to_csr())
    elif scratch:
        index = InvertedIndex.write(scratch, d_reps)
        shutil.rmtree(scratch)
    else:
        raise ValueError(f"{sum(d_reps.sizes):,} documents are indexed on disk: give a scratch folder")
    return index, {"build_s": time.perf_counter() - start}


def vary(
    entry: Entry, name: str, options: Any, system: System, count: CountDf, scratch: Path | None = None
) -> Entry:
    """Change how an entry is searched: prune queries or documents, two phases, other weights, another engine.

    Args:
        entry: of a sparse system, with the exact engine.
        name: of the variant.
        options: `nblib.run.params.Variant`.
        system: of the entry.
        count: counts the entry's corpus by the system's tokenizer and a stemmer, for corpus_idf.
        scratch: see `build`.

    Raises:
        ValueError: corpus_idf or query_counts of a system whose queries pass through its encoder.
    """
    d_reps, postings, engine, cost = entry.d_reps, entry.postings, entry.engine, entry.cost
    if options.doc_max_ratio or options.doc_top_k:
        d_reps = d_reps.map(lambda block: prune_reps(block, options.doc_max_ratio, options.doc_top_k))
        postings = _postings(d_reps)
    if d_reps is not entry.d_reps or options.engine != "exact":
        engine, built = build(d_reps, options.engine, scratch)
        cost = cost | built
    two_phase = None
    if options.two_phase:
        numbers = (options.two_phase_ratio, options.two_phase_expansion, options.two_phase_window)
        two_phase = TwoPhase(*numbers)

    encode_queries = entry.encode_queries
    if options.corpus_idf or options.query_counts:
        encode_queries = _other_bags(system, count, options)
    if options.query_max_ratio or options.query_top_k:
        keep, whole = (options.query_max_ratio, options.query_top_k), encode_queries
        encode_queries = lambda queries: prune_reps(whole(queries), *keep)  # noqa: E731
    return Entry(name, d_reps, postings, encode_queries, engine, cost, two_phase)


def _other_bags(system: System, count: CountDf, options: Any) -> EncodeQueries:
    if system.idf is None:
        raise ValueError(
            f"corpus_idf or query_counts of {system.name!r}: its queries are no bags of tokens; leave it out"
        )
    idf = system.idf
    if options.corpus_idf:
        idf = adapt_idf(idf, *count(options.idf_stemmer), options.corpus_idf)
    return lambda queries: query_matrix(
        queries, system.tokenizer, idf, system.query_length, options.query_counts
    )


def measure(entry: Entry, queries: list[str], k: int, timed_queries: int = TIMED_QUERIES) -> Result:
    """Search all queries, and time some.

    - query_ms_p50, query_ms_p99: milliseconds from one query text to its k best documents, one query at a
      time, over the first `timed_queries` queries (after three that are not counted).
    - queries_per_s_1, _2, _4: the same queries, encoded before, searched together by so many threads; of a
      system with an index only.

    Raises:
        ValueError: no queries.
    """
    if not queries:
        raise ValueError(f"{entry.name}: 0 queries; at least one is needed")
    q_reps = entry.encode_queries(queries)
    tick = lambda done, total: report(f"{entry.name}: search", done, total)  # noqa: E731
    index, scores = entry.search(q_reps, k, os.cpu_count() or 1, tick)
    cost, d_nnz = entry.cost | _latency(entry, queries[:timed_queries], k), None
    if entry.postings:
        cost |= sparse_cost(q_reps, entry.postings) | _rates(entry, q_reps[:timed_queries], k)
        d_nnz = entry.postings.nnz
    return Result(entry.name, index, scores, q_reps, entry.d_reps, d_nnz, cost)


def _latency(entry: Entry, queries: list[str], k: int) -> dict[str, float]:
    def answer(text: str) -> None:
        entry.search(entry.encode_queries([text]), k)

    for text in queries[:3]:
        answer(text)
    times = [1000 * _seconds(lambda t=text: answer(t)) for text in queries]
    middle, slow = np.percentile(times, [50, 99])
    return {"query_ms_p50": float(middle), "query_ms_p99": float(slow)}


def _rates(entry: Entry, q_reps: Reps, k: int) -> dict[str, float]:
    best = {n: min(_seconds(lambda n=n: entry.search(q_reps, k, n)) for _ in range(PASSES)) for n in THREADS}
    return {f"queries_per_s_{n}": q_reps.shape[0] / seconds for n, seconds in best.items()}


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
