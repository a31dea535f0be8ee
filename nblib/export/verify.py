"""Compare an export, reloaded in a fresh process by public libraries, with the encoder it came from.

Letters: N documents, Q queries, V vocabulary.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from tokenizers import Tokenizer

from nblib.bags import query_matrix
from nblib.export import reload
from nblib.export.opensearch import token_strings, tokenizer_json
from nblib.export.sentence_transformers import checked_length, query_length
from nblib.export.trace import run_python_module
from nblib.model.encoder import NeuralSparseEncoder

BATCH_SIZES = (1, 8)
TOLERANCE = 1e-4


def verify_sentence_transformers(
    folder: str | Path,
    encoder: NeuralSparseEncoder,
    idf: np.ndarray,
    documents: Sequence[str],
    queries: Sequence[str],
    max_length: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> list[dict]:
    """Load the folder by SparseEncoder and by AutoModelForMaskedLM and compare reps and scores.

    A text longer than max_length, a one-word text and a query that repeats itself are added to the texts.

    Args:
        folder: what export_sentence_transformers wrote.
        encoder: the encoder it came from.
        idf: [V] query weights.
        documents: N texts of unequal length, none empty.
        queries: Q texts.
        max_length: as given to the export.
        batch_sizes: documents and queries per batch in the fresh process.
        tolerance: largest absolute difference that counts as equal.

    Returns:
        Rows {check, side, batch, max_abs_diff, tolerance, n_texts, ok}; a difference is in weight units
        (reps) or score units.

    Raises:
        RuntimeError: the fresh process failed.
    """
    documents, queries = _with_probes(documents, queries)
    max_length = checked_length(encoder, max_length)
    d_reps = _reference_documents(encoder, documents, max_length)  # [N, V]
    specials = encoder.tokenizer.num_special_tokens_to_add()  # this query side adds none
    content = query_length(encoder, max_length) + specials
    q_reps = query_matrix(queries, encoder.tokenizer, idf, content)  # [Q, V]
    job = {"folder": str(folder), "documents": documents, "queries": queries}
    found = _in_fresh_process("sentence_transformers", **job, batch_sizes=list(batch_sizes))
    rows = []
    for size in batch_sizes:
        part = found[str(size)]
        scores = score_diff(np.array(part["scores"]), (q_reps @ d_reps.T).toarray())
        diffs = {
            "document": (row_diff(_by_id(part["documents"]), d_reps), len(documents)),
            "query": (row_diff(_by_id(part["queries"]), q_reps), len(queries)),
            "score": (scores, len(documents) * (len(queries) - 1)),
        }
        rows += [_row("sentence_transformers", s, size, *d, tolerance) for s, d in diffs.items()]
    longest = max(max_length, query_length(encoder, max_length))  # the Router names the larger one
    lengths_differ = float(found["max_seq_length"] != longest)
    rows.append(_row("max_seq_length", "both", 1, lengths_differ, 1, 0.0))
    rows.append(_row("masked_lm", "document", 1, float(not found["masked_lm_equal"]), 1, 0.0))
    return rows


def verify_opensearch(
    paths: dict[str, Path],
    encoder: NeuralSparseEncoder,
    idf: np.ndarray,
    documents: Sequence[str],
    queries: Sequence[str],
    max_length: int | None = None,
    prune_ratio: float = 0.0,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> list[dict]:
    """Load the zips by torch.jit and `tokenizers`, simulate ML Commons' translators, compare.

    The same texts are added as in verify_sentence_transformers. Zips of token_format TOKEN_ID are checked
    on the document side only: they have no query zip.

    Args:
        paths: what export_opensearch returned.
        max_length, prune_ratio: as given to the export.

    The other arguments, the rows and the errors are those of verify_sentence_transformers.
    """
    documents, queries = _with_probes(documents, queries)
    max_length = checked_length(encoder, max_length)
    exact = _reference_documents(encoder, documents, max_length)  # [N, V]
    by_word = "query" in paths
    terms = [str(i) for i in range(encoder.vocab_size)]
    if by_word:
        core = Tokenizer.from_str(tokenizer_json(encoder, max_length))
        terms = token_strings(core, encoder.special_ids, encoder.vocab_size)
    id_of = {term: i for i, term in enumerate(terms)}
    job = {"zip_path": str(paths["doc"]), "documents": documents, "batch_sizes": list(batch_sizes)}
    found = _in_fresh_process("documents", **job, token_format="WORD" if by_word else "TOKEN_ID")
    rows, d_found = [], {}
    for size in batch_sizes:
        d_found = _by_id(found[str(size)], id_of)
        diff = row_diff(d_found, exact, prune_ratio, tolerance)
        rows.append(_row("opensearch", "document", size, diff, len(documents), tolerance))
    if not by_word:
        return rows
    q_reps = query_matrix(queries, encoder.tokenizer, idf, query_length(encoder, max_length))  # [Q, V]
    q_found = _by_id(_in_fresh_process("queries", zip_path=str(paths["query"]), queries=queries), id_of)
    rows.append(_row("opensearch", "query", 1, row_diff(q_found, q_reps), len(queries), tolerance))
    if prune_ratio == 0:
        theirs = _matrix(q_found, exact.shape[1]) @ _matrix(d_found, exact.shape[1]).T
        diff = score_diff(theirs.toarray(), (q_reps @ exact.T).toarray())
        pairs = len(documents) * (len(queries) - 1)
        rows.append(_row("opensearch", "score", batch_sizes[-1], diff, pairs, tolerance))
    return rows


def row_diff(
    found: list[dict[int, float]], exact: sparse.csr_matrix, prune_ratio: float = 0.0, tolerance: float = 0.0
) -> float:
    """Return the largest absolute difference between named weights and exact reps.

    Args:
        found: one {term id: weight} per row; an id that is absent has weight 0.
        exact: [N, V] CSR, unpruned.
        prune_ratio: what the export drops: weights of at most this share of the row's largest.
        tolerance: a weight this near to the pruning threshold may be kept or dropped.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if len(found) != exact.shape[0]:
        raise ValueError(f"{len(found)} rows came back for {exact.shape[0]} texts")
    worst = 0.0
    for theirs, ours in zip(found, exact, strict=True):
        ours = ours.toarray().ravel()  # [V]
        got = np.zeros_like(ours)
        got[list(theirs)] = list(theirs.values())
        threshold = ours.max() * prune_ratio
        diff = np.abs(got - np.where(ours > threshold, ours, 0))
        near = (prune_ratio > 0) & (np.abs(ours - threshold) <= tolerance)
        diff = np.where(near, np.minimum(np.minimum(np.abs(got - ours), got), diff), diff)
        worst = max(worst, float(diff.max()))
    return worst


def score_diff(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest absolute difference of scores [Q, N], all but the last query's.

    The last one is the longest probe: hundreds of terms, whose sum is known to float32's rounding only.
    """
    return float(np.abs(found[:-1] - exact[:-1]).max())


def _with_probes(documents: Sequence[str], queries: Sequence[str]) -> tuple[list[str], list[str]]:
    """Add a text that is cut, one of a single word, and a query that says everything twice."""
    if not documents or not queries:
        raise ValueError(
            f"{len(documents)} documents and {len(queries)} queries to compare; want one of each"
        )
    every = " ".join([*documents, *documents])
    return [*documents, every, documents[0].split()[0]], [*queries, f"{queries[0]} {queries[0]}", every]


def _reference_documents(encoder: NeuralSparseEncoder, documents: list[str], max_length: int):
    """Encode by our own encoder at max_length, whatever its own length is: [N, V] CSR."""
    own, encoder.max_length = encoder.max_length, max_length
    try:
        return encoder.encode_documents(documents, batch_size=8)
    finally:
        encoder.max_length = own


def _in_fresh_process(kind: str, **job) -> dict | list:
    with tempfile.TemporaryDirectory() as scratch:
        job_path, out = Path(scratch) / "job.json", Path(scratch) / "out.json"
        job_path.write_text(json.dumps({"kind": kind, **job}), encoding="utf-8")
        run_python_module(reload.__name__, str(job_path), str(out))
        return json.loads(out.read_text(encoding="utf-8"))


def _by_id(rows: list[dict[str, float]], id_of: dict[str, int] | None = None) -> list[dict[int, float]]:
    return [{id_of[t] if id_of else int(t): w for t, w in row.items()} for row in rows]


def _matrix(rows: list[dict[int, float]], vocab_size: int) -> sparse.csr_matrix:
    """Turn named weights into CSR, [N, V]."""
    indptr = np.cumsum([0, *map(len, rows)])
    indices, data = [i for row in rows for i in row], [w for row in rows for w in row.values()]
    return sparse.csr_matrix((data, indices, indptr), shape=(len(rows), vocab_size))


def _row(check: str, side: str, batch: int, diff: float, n_texts: int, tolerance: float) -> dict:
    return {
        "check": check,
        "side": side,
        "batch": batch,
        "max_abs_diff": diff,
        "tolerance": tolerance,
        "n_texts": n_texts,
        "ok": bool(diff <= tolerance),
    }
