"""Batches: rows become the tensors of one step, out of flat arrays and without touching a text.

Letters: Q queries, D documents and L tokens of one batch, V vocabulary, N rows or texts of the set.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nblib.train.rows import Rows, cells
from nblib.train.tokens import TokenStore

K1, B = 1.5, 0.75  # BM25's saturation and length normalisation


def saturate(counts: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
    """Weigh how often a token stands in a document, as BM25 does but without the IDF.

    tf (k1 + 1) / (tf + k1 (1 - b + b dl / avgdl))

    Source: Robertson and Zaragoza 2009, eq. 3.15.

    Args:
        counts: [n] tf. relative_length: [n] dl / avgdl of the document of each.
    """
    return counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative_length))


class LexicalTargets:
    """Give each document its own tokens with the weight that BM25 gives them, less the IDF.

    The IDF sits on the query side already, so an encoder that returns exactly these weights searches exactly
    as BM25 over the same tokens does.

    Args:
        store: tokens of the N documents, cut as the encoder cuts them.
        vocab_size: V.
        special_ids: tokens that get no weight.
    """

    def __init__(self, store: TokenStore, vocab_size: int, special_ids: Sequence[int]) -> None:
        self.store, self.vocab_size = store, vocab_size
        self.ordinary = _ordinary(vocab_size, special_ids)
        blocks = range(0, len(store.ids), 1 << 22)  # a mapped file is read block by block
        kept = sum(int(self.ordinary[store.ids[at : at + (1 << 22)]].sum()) for at in blocks)
        self.mean_length = max(kept / len(store), 1.0)

    def entries(self, docs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the weights of some documents: ([n] position in docs, [n] token, [n] float32 weight)."""
        cell, counts = np.unique(_cells(self.store, docs, self.ordinary), return_counts=True)
        row, token = np.divmod(cell, self.vocab_size)
        lengths = np.bincount(row, weights=counts, minlength=len(docs))
        return row, token, saturate(counts, lengths[row] / self.mean_length).astype(np.float32)


def lexical_targets(
    ids: Sequence[Sequence[int]], vocab_size: int, special_ids: Sequence[int]
) -> sparse.csr_matrix:
    """Compute the LexicalTargets of a whole set from its token ids: [N, V] float32 CSR."""
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in ids])])
    store = TokenStore(np.concatenate(ids).astype(np.int32), offsets)
    row, token, weights = LexicalTargets(store, vocab_size, special_ids).entries(np.arange(len(ids)))
    return sparse.csr_matrix((weights, (row, token)), shape=(len(ids), vocab_size))


class Collator:
    """Turn rows into one batch in which every query is scored against every document.

    The documents are the distinct positives and negatives of the rows. A query costs no encoder pass, so
    each document also brings the other training queries that it answers: more scores for the same work.

    It holds token ids and no tokenizer, so it can be sent to the workers of a DataLoader.

    Args:
        data: the training set, see nblib.train.data.TrainingSet.
        tokenizer: of the encoder; a fast one.
        max_length: tokens per document.
        teacher: prepared on data.queries and data.documents, or None. Its scores may hold NaN = not scored.
        lexical: also give the lexical targets of the documents.
        query_max_length: tokens per query, special ones included; 0 keeps all.
        pad_to_multiple_of: L is rounded up to it; 0 pads to the longest. Mind the positions of the encoder.
        siamese: also give the queries as encoder input. A query then costs a pass, so no others come along.
        sparse: give q_bags and lexical as sparse COO tensors, which .to_dense() turns into what they are
            without: a hundredth of the bytes to carry from a worker process or to a GPU.
        cache: folder that keeps the token ids as files, for sets larger than memory; None holds them.
    """

    def __init__(
        self,
        data,
        tokenizer,
        max_length: int,
        teacher=None,
        lexical: bool = False,
        *,
        query_max_length: int = 0,
        pad_to_multiple_of: int = 0,
        siamese: bool = False,
        sparse: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.positives_of, self.queries_of = data.positives_of, data.queries_of
        self.teacher, self.multiple = teacher, pad_to_multiple_of
        self.siamese, self.sparse = siamese, sparse
        if sparse:  # torch warns of what is off by default until it is turned off in so many words
            torch.sparse.check_sparse_tensor_invariants.disable()
        self.pad_id, self.vocab_size = tokenizer.pad_token_id, len(tokenizer)
        self.d_store = TokenStore.build(data.documents, tokenizer, max_length, cache)
        self.q_store = TokenStore.build(data.queries, tokenizer, query_max_length, cache)
        special = tokenizer.all_special_ids
        self.ordinary = _ordinary(self.vocab_size, special)
        self.lexical = LexicalTargets(self.d_store, self.vocab_size, special) if lexical else None

    def __call__(self, rows: Sequence[tuple[int, int, list[int]]]) -> dict[str, Tensor]:
        """Build a batch.

        Returns:
            input_ids, attention_mask: [D, L] int64. q_bags: [Q, V] float 0/1. positives: [Q, D] bool.
            teacher: [Q, D] float, only with a teacher. lexical: [D, V] float, 0 = no target, if asked for.
            q_input_ids, q_attention_mask: [Q, L] int64, only if siamese.
        """
        docs = np.array(
            list(dict.fromkeys([p for _, p, _ in rows] + [n for _, _, negs in rows for n in negs]))
        )
        queries = np.array(list(dict.fromkeys([q for q, _, _ in rows] + self.companions(docs))))
        input_ids, mask = self.d_store.pad(docs, self.pad_id, self.multiple)
        batch = {"input_ids": input_ids, "attention_mask": mask}
        batch["q_bags"] = self.bags(queries)
        batch["positives"] = self.positives(queries, docs)
        if self.teacher is not None:
            batch["teacher"] = self.teacher.scores(queries, docs)
        if self.lexical is not None:
            batch["lexical"] = self.matrix(*self.lexical.entries(docs), len(docs))
        if self.siamese:
            q_ids, q_mask = self.q_store.pad(queries, self.pad_id, self.multiple)
            batch |= {"q_input_ids": q_ids, "q_attention_mask": q_mask}
        return batch

    def companions(self, docs: np.ndarray) -> list[int]:
        """List the training queries that the documents answer; none where each would cost a pass."""
        return [] if self.siamese else self.queries_of.flat[self.queries_of.places(docs)[1]].tolist()

    def bags(self, queries: np.ndarray) -> Tensor:
        """Mark the tokens of each query, special ones left out: [Q, V] float32 0/1."""
        cell = np.unique(_cells(self.q_store, queries, self.ordinary))
        return self.matrix(*np.divmod(cell, self.vocab_size), np.ones(len(cell), np.float32), len(queries))

    def matrix(self, row: np.ndarray, token: np.ndarray, values: np.ndarray, n: int) -> Tensor:
        """Make [n, V] float32 out of its entries that are not 0."""
        if self.sparse:
            places, values = torch.from_numpy(np.stack([row, token])), torch.from_numpy(values)
            return torch.sparse_coo_tensor(
                places, values, (n, self.vocab_size), is_coalesced=True, check_invariants=False
            )
        out = np.zeros((n, self.vocab_size), dtype=np.float32)
        out[row, token] = values
        return torch.from_numpy(out)

    def positives(self, queries: np.ndarray, docs: np.ndarray) -> Tensor:
        """Mark the documents of the batch that are relevant to each query: [Q, D] bool."""
        lengths, places = self.positives_of.places(queries)
        row, column = cells(lengths, self.positives_of.flat[places], docs)
        out = torch.zeros((len(queries), len(docs)), dtype=torch.bool)
        out[row, column] = True
        return out

    def row_lengths(self, rows: Rows) -> np.ndarray:
        """Count the tokens of each row's longest document: [N] int64, what BatchPlan sorts by."""
        return rows.longest(self.d_store.lengths)


def _ordinary(vocab_size: int, special_ids: Sequence[int]) -> np.ndarray:
    """Mark the tokens that mean something: [V] bool."""
    ordinary = np.ones(vocab_size, dtype=bool)
    ordinary[list(special_ids)] = False
    return ordinary


def _cells(store: TokenStore, rows: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    """List the ordinary tokens of some texts, with repeats, as position in rows * V + token: [n] int64."""
    lengths, ids = store.take(rows)
    keep = ordinary[ids]
    return np.repeat(np.arange(len(rows)), lengths)[keep] * len(ordinary) + ids[keep]
