"""Search side by side: ours, in two phases too, against bm25s, sentence-transformers, scipy and Seismic.

All sides search the same postings in this process, one query at a time and each on one thread, in turn.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import bm25s
import numba
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from sentence_transformers import util

from nblib.cost import THREADS
from nblib.run.progress import report
from nblib.search.inverted import InvertedIndex, TwoPhase
from nblib.search.seismic import ApproximateIndex
from nblib.speed.measure import in_fresh_process, interleaved
from nblib.speed.postings import Case
from nblib.speed.rows import row

MS_MARCO = 8_841_823  # passages
CHECKED = 5  # queries whose scores must be the same on all sides
SLOW = 3  # repeats of what takes seconds
SLOW_QUERIES = 20  # of a side that takes a second for each
LARGE = (
    *("build_seconds", "build_peak_gib", "build_peak_gib_tenth", "search_peak_gib", "index_bytes"),
    *("ms", "ms_two_phase", "ms_1000", "ms_marco_ms", "ms_marco_gib", "ms_marco_build_minutes", "failed"),
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """A way to search one case for the k best.

    Args:
        one: searches the query of this number, and returns what it returns to its users.
        scores: best scores of such a result, best first; fewer than k, or 0 at the end, where hits are fewer.
        many: searches all queries by so many threads.
        threads: how many `many` can have here.
    """

    one: Callable[[int], Any]
    scores: Callable[[Any], np.ndarray]
    many: Callable[[int], Any] | None = None
    threads: tuple[int, ...] = THREADS


def search_rows(case: Case) -> Rows:
    """Measure all sides on one case, at k = 10, and against bm25s at k = 1000 as well.

    Raises:
        AssertionError: a side that is exact found other scores.
    """
    index, n = InvertedIndex.from_csr(case.d_reps), case.counts.shape[0]
    rows: Rows = []
    with _one_thread():
        for k in sorted({min(k, index.n_docs) for k in (10, 1000)}):
            regime, exact, peer = f"{case.name}, k={k}", ours(index, case, k), bm25s_side(case, k)
            rows.append(_compare("search_bm25s", regime, exact, peer, "bm25s, numba", n))
            two_phase = ours(index, case, k, TwoPhase())
            facts = {"ours_recall_at_10": _recall(index, case, partial(index.search, two_phase=TwoPhase()))}
            regime += ", two-phase"
            rows.append(_compare("search_bm25s", regime, two_phase, peer, "bm25s, numba", n, **facts))
        k = min(10, index.n_docs)
        regime, exact = f"{case.name}, k={k}", ours(index, case, k)
        peer, name = sentence_transformers_side(case, k), "sentence-transformers semantic_search"
        rows.append(_compare("search_sentence_transformers", regime, exact, peer, name, n, SLOW_QUERIES))
        rows.append(_batch_row(exact, peer, name, regime, n))
        rows.append(_compare("search_scipy", regime, exact, scipy_side(case, k), "scipy's product", n))
        return rows + _seismic_rows(index, case, regime, k)


def _compare(
    name: str, regime: str, mine: Side, peer: Side, peer_name: str, n: int, most: int = 0, **facts: Any
) -> dict[str, Any]:
    """Time two sides in turn: milliseconds of a query, and queries a second by threads.

    most: queries that are timed one at a time, 0 = all n.
    facts: more of the row; one that tells a recall says that the scores need not be equal.
    """
    if not facts:
        _agree(mine, peer, peer_name, min(n, CHECKED))
    seconds = _in_turn({"ours": mine.one, "peer": peer.one}, min(n, most or n))
    for label, side in (("ours", mine), ("peer", peer)):
        facts |= {f"{label}_per_s_{t}": rate for t, rate in _per_second(side, n).items()}
    ms = (1000 * seconds["ours"], 1000 * seconds["peer"])
    report(f"search side by side: {name}, {regime}", 1, 1)
    return row(name, regime, "", *ms, peer_name, "ms a query", less_is_better=True, **facts)


def _batch_row(mine: Side, peer: Side, name: str, regime: str, n: int) -> dict[str, Any]:
    """Time semantic_search with all queries in one call: it transposes the documents in every call."""
    seconds = interleaved({"ours": partial(mine.many, 1), "peer": partial(peer.many, 1)}, SLOW)
    ms = (1000 * seconds["ours"] / n, 1000 * seconds["peer"] / n)
    regime += f", {n} queries in a call"
    report(f"search side by side: {regime}", 1, 1)
    return row("search_sentence_transformers", regime, "", *ms, name, "ms a query", less_is_better=True)


def _in_turn(sides: dict[str, Callable[[int], Any]], n: int) -> dict[str, float]:
    """Median seconds of a query; the sides take turns with each."""

    def stepper(side: Callable[[int], Any]) -> Callable[[], Any]:
        numbers = cycle(range(n))
        return lambda: side(next(numbers))

    return interleaved({name: stepper(side) for name, side in sides.items()}, repeats=n, warmups=3)


def _per_second(side: Side, n: int) -> dict[int, float | None]:
    """Queries a second by so many threads; None where the side cannot have them."""
    if not side.many:
        return {}
    seconds = interleaved({str(t): partial(side.many, t) for t in side.threads}, repeats=3)
    return {t: n / seconds[str(t)] if t in side.threads else None for t in THREADS}


def _agree(mine: Side, peer: Side, peer_name: str, n: int) -> None:
    for number in range(n):
        a, b = mine.scores(mine.one(number)), peer.scores(peer.one(number))
        same = np.allclose(a[: len(b)], b, rtol=1e-4, atol=1e-5) and not a[len(b) :].any()
        assert same, f"{peer_name} found other scores for query {number}: {b[:3]} where ours are {a[:3]}"


def _recall(index: InvertedIndex, case: Case, search: Callable) -> float:
    """Mean share of the 10 best documents (of all hits, if fewer) that a search has among its 10 best."""
    exact, found = index.search(case.q_reps, 10)[0], search(case.q_reps, 10)[0]
    pairs = [(a[a >= 0], b) for a, b in zip(exact, found, strict=True) if (a >= 0).any()]
    return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))


def ours(index: InvertedIndex, case: Case, k: int, two_phase: TwoPhase | None = None) -> Side:
    """The inverted index, exact or in two phases."""
    queries = case.q_reps
    single = [queries[number] for number in range(queries.shape[0])]
    return Side(
        lambda number: index.search(single[number], k, two_phase=two_phase),
        lambda result: result[1][0],
        lambda threads: index.search(queries, k, threads, two_phase=two_phase),
    )


def bm25s_side(case: Case, k: int) -> Side:
    """bm25s over the same postings, multiplied by the idf as it does when it indexes."""
    lists, counts = csr_matrix(case.d_reps.T), case.counts
    index = bm25s.BM25(backend="numba")
    weights = lists.data * np.repeat(case.idf.astype(np.float32), np.diff(lists.indptr))
    index.scores = {"data": weights, "indices": lists.indices, "indptr": lists.indptr.astype(np.int64)}
    index.scores["num_docs"] = lists.shape[1]
    index.nonoccurrence_array, index.unique_token_ids_set = None, set(range(lists.shape[0]))
    index.vocab_dict = {str(term): term for term in range(lists.shape[0])}
    terms = [
        np.repeat(row.indices, row.data.astype(int)).tolist() for row in map(counts.getrow, _rows(counts))
    ]
    return Side(
        lambda number: index.retrieve([terms[number]], k=k, show_progress=False),
        lambda result: result.scores[0],
        lambda threads: index.retrieve(terms, k=k, show_progress=False, n_threads=threads),
        tuple(t for t in THREADS if t <= numba.config.NUMBA_NUM_THREADS),  # numba refuses more
    )


def _rows(matrix: csr_matrix) -> range:
    return range(matrix.shape[0])


def sentence_transformers_side(case: Case, k: int) -> Side:
    """semantic_search by dot product over sparse tensors, as the encoder of its users returns them."""
    documents, queries = _sparse_tensor(case.d_reps), _sparse_tensor(case.q_reps)

    def search(some: torch.Tensor) -> list[list[dict]]:
        return util.semantic_search(some, documents, top_k=k, score_function=util.dot_score)

    return Side(
        lambda number: search(queries.index_select(0, torch.tensor([number])))[0],
        lambda hits: np.array([hit["score"] for hit in hits]),
        lambda threads: search(queries),
        (1,),
    )


def _sparse_tensor(reps: csr_matrix) -> torch.Tensor:
    coo = reps.tocoo()
    where = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    tensor = torch.sparse_coo_tensor(where, torch.from_numpy(coo.data), coo.shape, check_invariants=False)
    return tensor.coalesce()


def scipy_side(case: Case, k: int) -> Side:
    """The product with the documents by term, made beforehand, then a partition and a sort."""
    lists, queries = csr_matrix(case.d_reps.T), case.q_reps
    single = [queries[number] for number in _rows(queries)]

    def one(number: int) -> tuple[np.ndarray, np.ndarray]:
        product = single[number] @ lists  # [1, V] x [V, N] -> [1, N]
        best = np.argpartition(product.data, -k)[-k:] if product.nnz > k else np.arange(product.nnz)
        best = best[np.argsort(-product.data[best])]
        return product.indices[best], product.data[best]

    return Side(one, lambda result: result[1])


def _seismic_rows(index: InvertedIndex, case: Case, regime: str, k: int) -> Rows:
    """Seismic with the package's parameters, called without our wrapper; no row where it has no wheel."""
    if not find_spec("seismic"):
        return []
    start = time.perf_counter()
    engine = ApproximateIndex(case.d_reps, threads=os.cpu_count() or 1)
    facts = {"peer_build_seconds": time.perf_counter() - start}
    facts["peer_recall_at_10"] = _recall(index, case, engine.search)
    queries, package = case.q_reps, engine.package_index
    single = [(row.indices.astype(engine.string), row.data) for row in map(queries.getrow, _rows(queries))]
    cuts = {"k": k, "query_cut": engine.query_cut, "heap_factor": engine.heap_factor}
    names, terms, weights = np.arange(len(single)).astype(engine.string), *zip(*single, strict=True)
    peer = Side(
        lambda number: package.search("", *single[number], **cuts),
        lambda hits: np.array([score for _, score, _ in hits]),
        lambda threads: package.batch_search(names, list(terms), list(weights), num_threads=threads, **cuts),
    )
    mine = ours(index, case, k)
    return [_compare("search_seismic", regime, mine, peer, "Seismic, approximate", len(single), **facts)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread; the other sides have one unless they are told otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def large_row(
    documents: int, shard: int, terms: int, queries: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Index and search a large generated collection on disk, and project it to MS MARCO's passages.

    A tenth of it runs too: the peak of a build follows the shard, not the collection.

    Args:
        documents, shard: how many in all, and in a shard.
        terms, queries, seed: as nblib.speed.large.measure has them.
        folder: where the index lies while it is measured.

    Returns:
        One row without a peer. build_peak_gib and build_peak_gib_tenth are of whole processes. ms_marco_ms,
        ms_marco_gib and ms_marco_build_minutes grow with the number of documents. failed: why there are none.
    """
    job = {"shard": min(shard, max(1, documents // 10)), "terms": terms, "queries": queries}
    job |= {"seed": seed, "folder": str(folder)}
    tenth, found = (
        in_fresh_process("nblib.speed.large", documents=n, **job)
        for n in (max(1, documents // 10), documents)
    )
    facts = found | {"build_peak_gib_tenth": tenth.get("build_peak_gib")}
    if "failed" not in found:
        more = MS_MARCO / documents
        facts |= {"ms_marco_ms": found["ms"] * more, "ms_marco_gib": found["index_bytes"] * more / 2**30}
        facts["ms_marco_build_minutes"] = found["build_seconds"] * more / 60
    regime = f"{documents:,} generated documents x {terms} terms on disk, shards of {job['shard']:,}, k=10"
    return row(
        "search_large", regime, "", found.get("ms"), None, "", "ms a query", less_is_better=True, **facts
    )


def table(rows: Rows) -> pd.DataFrame:
    """Lay the rows of all sides out: latency of one query, queries a second by threads, what is found."""
    lines = []
    for line in rows:
        if line["row"].startswith("search_") and line["peer"]:
            cells = {"setting": line["regime"], "against": line["peer_name"]}
            for side in ("ours", "peer"):
                rates = [line.get(f"{side}_per_s_{t}") for t in THREADS]
                cells[f"{side}, ms"] = f"{line[side]:.3g}"
                cells[f"{side}, queries/s at 1, 2, 4 threads"] = " / ".join(
                    f"{rate:,.0f}" for rate in rates if rate
                )
            cells["ratio"] = f"{line['ratio']:.2f}"
            for side in ("ours", "peer"):
                recall = line.get(f"{side}_recall_at_10")
                cells[f"{side}, recall@10"] = "" if recall is None else f"{recall:.3f}"
            lines.append(cells)
    return pd.DataFrame(lines)


def large_table(rows: Rows) -> pd.DataFrame:
    """Lay the figures of the large index out, one a line."""
    facts = [line for line in rows if line["row"] == "search_large"]
    columns = {line["regime"]: {n: v for n, v in line.items() if n in LARGE} for line in facts}
    table = pd.DataFrame(columns, index=LARGE).dropna(how="all").round(2)
    return table.rename_axis("measure").reset_index()
