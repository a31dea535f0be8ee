"""Metrics of a run, TREC run files, rows of metrics.json.

Q queries, N documents, V vocabulary. A run is query id -> document id -> score; qrels are query id ->
document id -> grade.
"""

import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytrec_eval

from nblib.cost import COST, count_postings, sparse_cost
from nblib.files import atomic_file
from nblib.search.exact import Run, to_run
from nblib.search.inverted import top_k

Qrels = dict[str, dict[str, int]]
RELEVANCE = ("ndcg_at_10", "mrr_at_10", "map", "recall_at_10", "recall_at_100", "recall_at_1000")
RULES = ("top_k", "ignore_identical_ids")  # what the relevance was measured under
COLUMNS = ("dataset", "split", "system", *RELEVANCE, *COST, *RULES, "n_queries", "n_docs")


def score_run(
    qrels: Qrels, run: Run, k_values: Sequence[int] = (10, 100, 1000), ignore_identical_ids: bool = True
) -> dict[str, dict[str, float]]:
    """Measure every judged query of a run with trec_eval (pytrec_eval).

    trec_eval orders equal scores by the document id, largest first, whatever the order in the run. nDCG uses
    the grade itself as gain, as BEIR does. A judged query without any hit counts 0; a query without judgement
    is left out.

    Args:
        qrels: the judgements.
        run: the results; not changed.
        k_values: cut-offs, each at least 1.
        ignore_identical_ids: drop a document that has the id of its query, as BEIR's EvaluateRetrieval does
            unless told otherwise (in some sets, such as ArguAna, each query is itself a document).

    Returns:
        query id -> ndcg_at_k, mrr_at_k (0 if the first relevant document is below rank k), recall_at_k, and
        map: average precision over all documents of the run, so its cut is the depth of the run. A relevant
        document that the run lacks adds 0.

    Raises:
        ValueError: no judgements, no query in common, or a score that is not finite.
    """
    if not qrels:
        raise ValueError("the qrels are empty: nothing to measure (wrong split?)")
    if run and not run.keys() & qrels.keys():
        raise ValueError(
            f"no query of the run is judged: {next(iter(run))!r} there, {next(iter(qrels))!r} in the qrels"
        )
    cuts = ",".join(str(k) for k in k_values)
    measures = {f"ndcg_cut.{cuts}", f"recall.{cuts}", "recip_rank", "map"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, measures)
    measured = evaluator.evaluate(
        {qid: _checked(qid, run.get(qid, {}), ignore_identical_ids) for qid in qrels}
    )
    return {qid: _at_cuts(measured[qid], k_values) for qid in qrels}


def _checked(qid: str, hits: dict[str, float], ignore_identical_ids: bool) -> dict[str, float]:
    for did, score in hits.items():
        if not math.isfinite(score):
            raise ValueError(f"query {qid!r}, document {did!r}: score {score} is not finite")
    return {d: float(s) for d, s in hits.items() if not (ignore_identical_ids and d == qid)}


def _at_cuts(values: dict[str, float], k_values: Sequence[int]) -> dict[str, float]:
    row = {f"ndcg_at_{k}": values[f"ndcg_cut_{k}"] for k in k_values}
    row |= {f"mrr_at_{k}": values["recip_rank"] * (values["recip_rank"] >= 1 / k) for k in k_values}
    return row | {"map": values["map"]} | {f"recall_at_{k}": values[f"recall_{k}"] for k in k_values}


def mean_scores(per_query: dict[str, dict[str, float]]) -> dict[str, float]:
    """Average each metric over the queries."""
    names = next(iter(per_query.values()))
    return {name: float(np.mean([values[name] for values in per_query.values()])) for name in names}


def metrics_row(
    dataset: str,
    split: str,
    system: str,
    per_query: dict[str, dict[str, float]],
    cost: dict[str, Any],
    n_docs: int,
    *,
    top_k: int,
    ignore_identical_ids: bool,
) -> dict[str, Any]:
    """Build one row of metrics.json; a cost that a system does not have (FLOPS of a dense one) is None.

    Args:
        dataset, split, system: names.
        per_query: of `score_run`.
        cost: some of the columns COST.
        n_docs: N, size of the corpus.
        top_k: documents kept per query, the cut of MAP.
        ignore_identical_ids: as given to `score_run`.

    Raises:
        ValueError: `cost` holds a name that is no column.
    """
    if unknown := set(cost) - set(COST):
        raise ValueError(f"{sorted(unknown)} are no columns of metrics.json: {COST}")
    means = mean_scores(per_query)
    row = {
        "dataset": dataset,
        "split": split,
        "system": system,
        "n_queries": len(per_query),
        "n_docs": n_docs,
        "top_k": top_k,
        "ignore_identical_ids": ignore_identical_ids,
    }
    row |= {name: means[name] for name in RELEVANCE} | {name: cost.get(name) for name in COST}
    return {name: row[name] for name in COLUMNS}


def evaluate_model(
    model: Any,
    corpus: dict[str, dict[str, str]],
    queries: dict[str, str],
    qrels: Qrels,
    idf: np.ndarray | None = None,
    batch_size: int = 32,
    k: int = 1000,
) -> dict[str, float]:
    """Encode a corpus with a sparse model, search it exactly, and measure.

    Args:
        model: a NeuralSparseEncoder.
        corpus: document id -> {"title", "text"}. queries: query id -> text. Both as a BEIR loader gives them.
        qrels: only these queries count; every one must be in `queries`.
        idf: [V] query weights of the model's vocabulary (`nblib.idf.load_idf`). None counts them on `corpus`,
            which is right for a first look; a trained model should be given the weights it was trained with.
        batch_size: documents in one forward pass.
        k: documents kept for each query; with less than 1000, recall_at_1000 is cut there too.

    Returns:
        The means of ndcg_at_10, mrr_at_10, recall_at_10, recall_at_100, recall_at_1000, and `sparse_cost`.

    Raises:
        TypeError: the model is not a NeuralSparseEncoder.
        ValueError: a judged query has no text.
    """
    from nblib.data.formats import document_text
    from nblib.idf import compute_idf_weights

    check_sparse(model)
    if missing := [qid for qid in qrels if qid not in queries]:
        raise ValueError(f"{len(missing)} judged queries have no text, the first is {missing[0]!r}")
    texts = [document_text(document) for document in corpus.values()]
    if idf is None:
        idf = np.array(list(compute_idf_weights(texts, model.tokenizer).values()), dtype=np.float32)  # [V]
    q_reps = model.encode_queries([queries[qid] for qid in qrels], idf, batch_size)  # [Q, V]
    d_reps = model.encode_documents(texts, batch_size=batch_size)  # [N, V]
    run = to_run(list(qrels), list(corpus), *top_k(q_reps, d_reps, k))
    means = mean_scores(score_run(qrels, run))
    return {name: means[name] for name in RELEVANCE} | sparse_cost(q_reps, count_postings([d_reps]))


def check_sparse(model: Any) -> None:
    """Refuse a model that is not a sparse one: scored by the wrong code, it gets a low number and no error.

    Raises:
        TypeError: with the type that was given and the way out.
    """
    from nblib.model.encoder import NeuralSparseEncoder

    if not isinstance(model, NeuralSparseEncoder):
        raise TypeError(
            f"want a NeuralSparseEncoder, got {type(model).__module__}.{type(model).__name__}. "
            "A folder of 03 or 04 is loaded with NeuralSparseEncoder(folder); a dense model goes into "
            "notebook 05_beir_eval as dense_teacher."
        )


def write_trec(path: str | Path, run: Run, tag: str) -> None:
    """Write a run as a TREC file, `qid Q0 docid rank score tag`, best first; whole or not at all.

    A path that ends in .gz is compressed (ten times smaller; trec_eval wants it unpacked). Scores keep nine
    digits, all that a float32 has. Equal scores stand in the order of the run. A query without hits has no
    line.

    Raises:
        ValueError: an id or the tag is empty or holds white space, which would shift the columns.
    """
    _refuse_space("tag", tag)
    with atomic_file(path) as tmp, open(tmp, "wb") as raw, _text(raw, str(path).endswith(".gz")) as handle:
        for qid, hits in run.items():
            _refuse_space("query id", qid)
            for did in hits:
                _refuse_space("document id", did)
            ranked = enumerate(sorted(hits.items(), key=lambda hit: -hit[1]), 1)
            handle.write("".join(f"{qid} Q0 {did} {rank} {s:.9g} {tag}\n" for rank, (did, s) in ranked))


def _text(raw: BinaryIO, compress: bool) -> io.TextIOWrapper:
    # No name and no time in the gzip header: the same run gives the same bytes.
    binary = gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) if compress else raw
    return io.TextIOWrapper(binary, encoding="utf-8", newline="\n")


def _refuse_space(what: str, name: str) -> None:
    if name.split() != [name]:
        raise ValueError(
            f"{what} {name!r} is empty or holds white space, which a TREC run cannot carry: rename it"
        )


def read_trec(path: str | Path) -> Run:
    """Read a TREC run file, plain or .gz. Raises ValueError naming a line that does not have six columns."""
    run: Run = {}
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            try:
                qid, _, did, _, score, _ = line.split()
                run.setdefault(qid, {})[did] = float(score)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: want 'qid Q0 docid rank score tag', got {line.strip()!r}"
                ) from error
    return run
