"""Batches: rows become the tensors of one step, out of flat arrays and without touching a text.

Letters: Q queries, D documents and L tokens of one batch, V vocabulary, N rows or texts of the set.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nblib.stems import stem_groups
from nblib.train.lexical import LexicalTargets
from nblib.train.rows import Rows, cells
from nblib.train.tokens import TokenStore, ordinary_tokens, token_cells


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
        stemmer: language whose stems the lexical targets count; "" counts tokens.
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
        stemmer: str = "",
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
        self.ordinary = ordinary_tokens(self.vocab_size, special)
        groups = stem_groups(tokenizer, stemmer) if lexical else None
        self.lexical = LexicalTargets(self.d_store, self.vocab_size, special, groups) if lexical else None

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
        cell = np.unique(token_cells(self.q_store, queries, self.ordinary))
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
