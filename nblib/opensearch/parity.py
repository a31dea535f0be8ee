"""Is it the same model? What the cluster encodes and scores, beside what this package does.

N documents, Q queries, V terms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from opensearchpy import OpenSearch
from scipy.sparse import csr_matrix

from nblib.opensearch.client import patient

BATCH = 8
TOLERANCE = 1e-4  # of a document's weight
NDCG, ENOUGH_QUERIES = 2e-3, 100  # of a set's nDCG@10, where one query does not decide it
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
    apart = [np.zeros(0)]
    for number, query_id in enumerate(query_ids):
        if hits := run.get(query_id):
            ours = (d_reps[[place[doc_id] for doc_id in hits]] @ q_reps[number].T).toarray().ravel()
            apart.append(np.abs(np.array(list(hits.values())) - ours) / np.maximum(ours, 1e-9))
    all_apart = np.concatenate(apart)
    worst, mean = (float(f(all_apart)) if len(all_apart) else 0.0 for f in (np.max, np.mean))
    return {"pairs": len(all_apart), "max_rel_diff": worst, "mean_rel_diff": mean}


def table(checks: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Lay comparisons out for reading, a line for each; checks: what is compared -> as 07 collects them."""
    lines = []
    for what, found in checks.items():
        of = next(f"{found[name]:,} {name}" for name in ("texts", "pairs", "queries") if name in found)
        if "same_terms" in found:
            same, most = f"{found['same_terms']:.0%}", f"{found['max_abs_diff']:.0e}"
            said = f"same terms in {same}, weights differ by {most} at most"
        elif "max_rel_diff" in found:
            said = f"differ by {found['max_rel_diff']:.2%} at most, {found['mean_rel_diff']:.2%} in the mean"
        else:
            said = f"{found['here']:.4f} here, {found['there']:.4f} there"
        lines.append({"compared": what, "of": of, "found": said})
    return pd.DataFrame(lines)
