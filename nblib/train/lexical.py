"""Lexical targets: the weights that BM25 would give a document's words, as tokens of the encoder.

Letters: N documents of the set, V vocabulary, G groups of tokens.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from nblib.train.rows import Lists
from nblib.train.tokens import TokenStore, ordinary_tokens, token_cells

K1, B = 1.5, 0.75  # BM25's saturation and length normalisation
BLOCK = 1 << 22  # token ids of a mapped file in memory at once


def saturate(counts: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
    """Weigh how often a term stands in a document, as BM25 does but without the IDF.

    tf (k1 + 1) / (tf + k1 (1 - b + b dl / avgdl))

    Source: Robertson and Zaragoza 2009, eq. 3.15.

    Args:
        counts: [n] tf. relative_length: [n] dl / avgdl of the document of each.
    """
    return counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative_length))


class LexicalTargets:
    """Give each document its own tokens with the weight that BM25 gives them, less the IDF.

    The IDF sits on the query side already, so an encoder that returns exactly these weights searches exactly
    as BM25 over the same tokens does. With groups it is BM25 over groups: a word counts for every token of
    its group, so that a query for "computer" finds a document that says "computing".

    Args:
        store: tokens of the N documents, cut as the encoder cuts them.
        vocab_size: V.
        special_ids: tokens that get no weight.
        groups: [V] what `nblib.stems.stem_groups` gives; None leaves every token alone.
    """

    def __init__(
        self,
        store: TokenStore,
        vocab_size: int,
        special_ids: Sequence[int],
        groups: np.ndarray | None = None,
    ) -> None:
        self.store, self.vocab_size = store, vocab_size
        self.ordinary = ordinary_tokens(vocab_size, special_ids)
        tokens = np.arange(vocab_size)
        self.group = tokens if groups is None else groups
        self.members = Lists.from_pairs(self.group, tokens, vocab_size)
        blocks = range(0, len(store.ids), BLOCK)
        kept = sum(int(self.ordinary[store.ids[at : at + BLOCK]].sum()) for at in blocks)
        self.mean_length = max(kept / len(store), 1.0)

    def entries(self, docs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the weights of some documents.

        Returns:
            [n] position in docs, [n] token, both ascending, [n] float32 weight.
        """
        row, token = np.divmod(token_cells(self.store, docs, self.ordinary), self.vocab_size)
        length = np.bincount(row, minlength=len(docs))
        cell, counts = np.unique(row * self.vocab_size + self.group[token], return_counts=True)
        row, group = np.divmod(cell, self.vocab_size)
        weight = saturate(counts, length[row] / self.mean_length).astype(np.float32)
        size, places = self.members.places(group)
        row, token, weight = np.repeat(row, size), self.members.flat[places], np.repeat(weight, size)
        order = np.argsort(row * self.vocab_size + token)
        return row[order], token[order], weight[order]


def lexical_targets(
    ids: Sequence[Sequence[int]],
    vocab_size: int,
    special_ids: Sequence[int],
    groups: np.ndarray | None = None,
) -> sparse.csr_matrix:
    """Compute the LexicalTargets of a whole set from its token ids: [N, V] float32 CSR."""
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in ids])])
    store = TokenStore(np.concatenate(ids).astype(np.int32), offsets)
    row, token, weights = LexicalTargets(store, vocab_size, special_ids, groups).entries(np.arange(len(ids)))
    return sparse.csr_matrix((weights, (row, token)), shape=(len(ids), vocab_size))
