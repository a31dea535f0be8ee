"""Is it the same model? What the cluster encodes and scores, beside what this package does.

N documents, Q queries, V terms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from opensearchpy import OpenSearch
from scipy.sparse import csr_matrix

from nblib.opensearch.client import patient

BATCH = 8
TOLERANCE = 1e-4  # of a document's weight
QUANTISED = 5e-3  # of a score, as a share: rank_features keeps 9 bits of a weight


def predict(client: OpenSearch, model_id: str, texts: Sequence[str]) -> list[dict[str, float]]:
    """Let a model of the cluster encode texts: N x {term: weight}.

    A SPARSE_ENCODING model gives documents' vectors, a SPARSE_TOKENIZE model weighted queries.
    """
    path, found = f"/_plugins/_ml/_predict/sparse_encoding/{model_id}", []
    for at in range(0, len(texts), BATCH):
        body = {"text_docs": list(texts[at : at + BATCH])}
        answer = patient(lambda body=body: client.transport.perform_request("POST", path, body=body))
        for result in answer["inference_results"]:
            found += [row for output in result["output"] for row in output["dataAsMap"]["response"]]
    return found


def compare_vectors(
    theirs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Compare vectors text by text.

    Returns:
        texts: N. same_terms: share of the texts that have the very same terms on both sides. max_abs_diff:
        the largest difference of a weight, a missing term counting as 0.
    """
    worst, same = 0.0, 0
    for their, our in zip(theirs, ours, strict=True):
        same += their.keys() == our.keys()
        differences = [abs(their.get(term, 0.0) - our.get(term, 0.0)) for term in their.keys() | our.keys()]
        worst = max(worst, *differences, 0.0)
    return {"texts": len(ours), "same_terms": same / max(len(ours), 1), "max_abs_diff": worst}


def compare_scores(
    run: Mapping[str, Mapping[str, float]],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    q_reps: csr_matrix,
    d_reps: csr_matrix,
) -> dict[str, float]:
    """Compare the scores of a run with the exact products of the same query and document.

    Args:
        run: query id -> document id -> the cluster's score.
        query_ids, doc_ids: Q and N ids, in the order of the reps.
        q_reps: [Q, V]. d_reps: [N, V].

    Returns:
        pairs: scores compared. max_rel_diff, mean_rel_diff: |theirs - ours| / ours.
    """
    place = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    theirs, rows, columns = [], [], []
    for number, query_id in enumerate(query_ids):
        hits = run.get(query_id, {})
        theirs += hits.values()
        rows += [number] * len(hits)
        columns += [place[doc_id] for doc_id in hits]
    if not theirs:
        return {"pairs": 0, "max_rel_diff": 0.0, "mean_rel_diff": 0.0}
    ours = np.asarray(q_reps[rows].multiply(d_reps[columns]).sum(axis=1)).ravel()
    apart = np.abs(np.array(theirs) - ours) / np.maximum(ours, 1e-9)
    return {"pairs": len(ours), "max_rel_diff": float(apart.max()), "mean_rel_diff": float(apart.mean())}


def mean_ndcg(per_query: Mapping[str, Mapping[str, float]]) -> float:
    """Average nDCG@10 over the queries of nblib.evaluate.score_run."""
    return float(np.mean([found["ndcg_at_10"] for found in per_query.values()]))
