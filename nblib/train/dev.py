"""Relevance on dev data while a model trains: what early stopping and the curves over time go by."""

import numpy as np
from scipy import sparse

from nblib.cost import count_postings, sparse_cost
from nblib.evaluate import mean_scores, score_run
from nblib.experiment import EvalSet
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.retriever import SparseRetriever
from nblib.precision import choose_kernels, quick_fp32
from nblib.search.exact import to_run
from nblib.search.inverted import top_k

DEV_K = 100  # documents per query; the metrics watched look at 10


class DevSearch:
    """Search one split of a set with the model as it stands.

    Args:
        data: queries, documents and judgements.
        batch_size: documents per batch.
    """

    def __init__(self, data: EvalSet, batch_size: int = 32) -> None:
        self.data, self.batch_size = data, batch_size

    def __call__(self, retriever: SparseRetriever) -> dict[str, float]:
        """Measure a retriever: {"ndcg_at_10", "mrr_at_10", "loss", "flops", "d_nnz"}."""
        idf = retriever.search_idf.detach().cpu().numpy()
        q_reps = retriever.encoder.encode_queries(self.data.queries, idf, self.batch_size)
        return self.measure(retriever.encoder, q_reps)

    def measure(self, encoder: NeuralSparseEncoder, q_reps: sparse.csr_matrix) -> dict[str, float]:
        """Encode the documents, search with given query reps [Q, V], and measure."""
        choose_kernels(encoder, "fp32")  # takes nothing from a training in bf16
        with quick_fp32():
            d_reps = encoder.encode_documents(self.data.texts, self.batch_size)
        index, scores = top_k(q_reps, d_reps, DEV_K)
        run = to_run(self.data.query_ids, self.data.doc_ids, index, scores)
        found = mean_scores(score_run(self.data.qrels, run, k_values=(10,)))
        cost = sparse_cost(q_reps, count_postings([d_reps]))
        loss = contrastive_loss(scores, index, self._positive_scores(q_reps, d_reps))
        measured = {name: found[name] for name in ("ndcg_at_10", "mrr_at_10")} | {"loss": loss}
        return measured | {name: cost[name] for name in ("flops", "d_nnz")}

    def _positive_scores(
        self, q_reps: sparse.csr_matrix, d_reps: sparse.csr_matrix
    ) -> list[dict[int, float]]:
        """Score each query's relevant documents: document number -> score."""
        place = {doc_id: i for i, doc_id in enumerate(self.data.doc_ids)}
        judged = [self.data.qrels[query_id] for query_id in self.data.query_ids]
        relevant = [[place[d] for d, grade in one.items() if grade > 0 and d in place] for one in judged]
        rows = np.repeat(np.arange(len(relevant)), [len(one) for one in relevant])
        columns = np.array([d for one in relevant for d in one], dtype=np.int64)
        scores = iter(np.asarray(q_reps[rows].multiply(d_reps[columns]).sum(axis=1)).ravel().tolist())
        return [{d: next(scores) for d in one} for one in relevant]


def contrastive_loss(scores: np.ndarray, index: np.ndarray, positive: list[dict[int, float]]) -> float:
    """Mean of -log(e^s / sum of e^s over the best documents) over each query's relevant documents.

    Args:
        scores: [Q, k] of the best documents, -inf or anything where index is -1.
        index: [Q, k] document numbers, -1 = no hit.
        positive: per query, relevant document -> its score.
    """
    losses = []
    for row, numbers, relevant in zip(scores, index, positive, strict=True):
        others = row[(numbers >= 0) & ~np.isin(numbers, list(relevant))]
        losses += [np.logaddexp.reduce([score, *others]) - score for score in relevant.values()]
    return float(np.mean(losses))
