"""Relevance on dev data while a model trains: what early stopping and the curves over time go by."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse

from nblib.evaluate import mean_scores, score_run, sparse_cost
from nblib.experiment import EvalSet
from nblib.idf import token_matrix
from nblib.losses import SparseLoss
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.retriever import SparseRetriever
from nblib.precision import quick_fp32
from nblib.search.exact import to_run, top_k

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
        """Measure a retriever: {"ndcg_at_10", "mrr_at_10", "flops", "d_nnz"}."""
        encoder = retriever.encoder
        if retriever.query_side == "siamese":
            q_reps = encoder.encode_documents(self.data.queries, self.batch_size)
        else:
            q_reps = token_matrix(self.data.queries, encoder.tokenizer).multiply(_row(retriever.idf)).tocsr()
        return self.measure(encoder, q_reps)

    def measure(self, encoder: NeuralSparseEncoder, q_reps: sparse.csr_matrix) -> dict[str, float]:
        """Encode the documents, search with given query reps [Q, V], and measure."""
        with quick_fp32():
            d_reps = encoder.encode_documents(self.data.texts, self.batch_size)
        index, scores = top_k(q_reps, d_reps, DEV_K)
        run = to_run(self.data.query_ids, self.data.doc_ids, index, scores)
        found = mean_scores(score_run(self.data.qrels, run, k_values=(10,)))
        cost = sparse_cost(q_reps, d_reps)
        names = ("ndcg_at_10", "mrr_at_10")
        return {n: found[n] for n in names} | {"flops": cost["flops"], "d_nnz": cost["d_nnz"]}


def _row(idf: torch.Tensor) -> np.ndarray:
    return idf.detach().cpu().numpy()[None]


class DevLoss:
    """The training loss on rows held out from training, at full strength of the penalties.

    Args:
        collate: collator of the held-out rows' set.
        rows: held-out rows.
        loss_fn: as in training.
        batch_rows: rows per batch.
    """

    def __init__(self, collate: Callable, rows: list, loss_fn: SparseLoss, batch_rows: int = 16) -> None:
        self.collate, self.rows, self.loss_fn, self.batch_rows = collate, rows, loss_fn, batch_rows

    @torch.inference_mode()
    def __call__(self, retriever: SparseRetriever) -> dict[str, float]:
        """Measure a retriever: {"loss"}."""
        losses = []
        for start in range(0, len(self.rows), self.batch_rows):
            batch = self.collate(self.rows[start : start + self.batch_rows])
            batch = {name: tensor.to(retriever.encoder.device) for name, tensor in batch.items()}
            q_reps, d_reps = retriever(batch)
            given = batch.get("teacher"), batch.get("lexical")
            losses.append(float(self.loss_fn(q_reps, d_reps, batch["positives"], *given)["loss"]))
        return {"loss": float(np.mean(losses))}
