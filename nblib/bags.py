"""Bags of tokens: how a text is encoded without a model, which is all that an inference-free query needs.

N texts, Q queries, V vocabulary.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy import sparse

from nblib.idf import PIECE


def token_matrix(
    texts: Sequence[str],
    tokenizer,
    max_length: int | None = None,
    vocab_size: int | None = None,
    counted: bool = False,
) -> sparse.csr_matrix:
    """Mark which token ids each text holds: 1.0 once per distinct id, special tokens left out.

    Args:
        texts: queries or documents.
        tokenizer: fast tokenizer.
        max_length: tokens kept per text, counting the special ones as the model does; None keeps all.
        vocab_size: V of the result; default len(tokenizer).
        counted: give how often the text holds the id, in place of 1.0.

    Returns:
        [N, V] float32 CSR.
    """
    vocab_size = vocab_size or len(tokenizer)
    pieces = [texts[start : start + PIECE] for start in range(0, len(texts), PIECE)]
    found = [_count(piece, tokenizer, max_length, vocab_size) for piece in pieces]
    counts = sparse.vstack([sparse.csr_matrix((0, vocab_size), dtype=np.float32), *found], format="csr")
    if not counted:
        counts.data[:] = 1.0
    return counts


def _count(texts: Sequence[str], tokenizer, max_length: int | None, vocab_size: int) -> sparse.csr_matrix:
    encoded = tokenizer(
        list(texts),
        truncation=max_length is not None,
        max_length=max_length,
        add_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    ids = np.fromiter(chain.from_iterable(encoded), np.int32)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in encoded])])
    counts = sparse.csr_matrix((np.ones(len(ids), np.float32), ids, starts), shape=(len(texts), vocab_size))
    counts.data[np.isin(counts.indices, tokenizer.all_special_ids)] = 0.0
    counts.sum_duplicates()  # sorts the ids too
    counts.eliminate_zeros()
    return counts


def query_matrix(
    texts: Sequence[str],
    tokenizer,
    idf: np.ndarray,
    max_length: int | None = None,
    counted: bool = False,
) -> sparse.csr_matrix:
    """Encode queries without a model: q_t = idf(t) for each distinct token t of the query.

    Source: arXiv 2411.04403, equation 5; OpenSearch's SPARSE_TOKENIZE does the same at search time. Counted,
    q_t = n_t idf(t) for a token that the query holds n_t times, as in BM25: what a long question repeats is
    what it is about (not in the paper; OpenSearch takes such weights as `query_tokens`).

    Args:
        texts: queries.
        tokenizer: the document encoder's tokenizer.
        idf: [V] float, special tokens 0.
        max_length: tokens kept per query; None keeps all.
        counted: weigh a token by how often the query holds it, too.

    Returns:
        [Q, V] float32 CSR without explicit zeros.
    """
    q_reps = token_matrix(texts, tokenizer, max_length, len(idf), counted)
    q_reps.data *= idf[q_reps.indices].astype(np.float32)
    q_reps.eliminate_zeros()
    return q_reps
