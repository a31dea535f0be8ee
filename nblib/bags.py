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
    found = [_distinct(texts[at : at + PIECE], tokenizer, max_length) for at in range(0, len(texts), PIECE)]
    rows = list(chain.from_iterable(found))
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids, counts = map(np.concatenate, zip((np.zeros(0, np.int32),) * 2, *rows, strict=True))
    ordinary = np.ones(vocab_size, bool)
    ordinary[tokenizer.all_special_ids] = False
    kept = ordinary[ids]
    before = np.concatenate([[0], np.cumsum(kept)])  # how many are kept before each
    data = counts[kept].astype(np.float32) if counted else np.ones(before[-1], np.float32)
    return sparse.csr_matrix((data, ids[kept], before[starts]), shape=(len(texts), vocab_size))


def _distinct(texts: Sequence[str], tokenizer, max_length: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give the distinct ids of each text, ascending, and how often it holds them."""
    encoded = tokenizer(
        list(texts),
        truncation=max_length is not None,
        max_length=max_length,
        add_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return [np.unique(np.asarray(ids, np.int32), return_counts=True) for ids in encoded]


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
