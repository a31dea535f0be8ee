"""Texts as bags of tokens."""

import numpy as np
import pytest

from nblib import bags
from nblib.backbones import EMBEDDED, load_tokenizer


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer(EMBEDDED)


def test_query_matrix(tok):
    weights = np.arange(len(tok), dtype=np.float32)
    weights[tok.all_special_ids] = 0.0
    q_reps = bags.query_matrix(["dog cat dog", "the"], tok, weights)
    dog, cat = tok.convert_tokens_to_ids(["dog", "cat"])
    assert q_reps.shape == (2, len(tok)) and q_reps[0].nnz == 2  # each token once, no [CLS]
    assert q_reps[0, dog] == dog and q_reps[0, cat] == cat


def test_counted_queries(tok):
    weights = np.full(len(tok), 2.0, np.float32)
    weights[tok.convert_tokens_to_ids("the")] = 0.0
    q_reps = bags.query_matrix(["dog the dog the cat dog", "cat"], tok, weights, counted=True).toarray()
    dog, cat = tok.convert_tokens_to_ids(["dog", "cat"])
    assert q_reps[0, dog] == pytest.approx(2 * 3) and q_reps[:, cat].tolist() == [2, 2]
    assert np.count_nonzero(q_reps) == 3


def test_tokens_marked_and_counted(tok):
    texts = ["dog cat dog", "", "cat " * 9]
    dog, cat = tok.convert_tokens_to_ids(["dog", "cat"])
    counts = bags.token_matrix(texts, tok, counted=True)
    assert counts[:, [dog, cat]].toarray().tolist() == [[2, 1], [0, 0], [0, 9]]
    assert (bags.token_matrix(texts, tok) != (counts > 0)).nnz == 0
    assert bags.token_matrix([], tok).shape == (0, len(tok))
    cut = bags.token_matrix(texts, tok, max_length=5, counted=True)
    assert cut[2, cat] == 3, "of five tokens two are special"


def test_pieces_change_nothing(tok, monkeypatch):
    texts = ["dog cat dog", "", "cat", "a dog and a cat", "cat cat"]
    whole = bags.token_matrix(texts, tok, 6, counted=True)
    monkeypatch.setattr(bags, "PIECE", 2)
    assert (bags.token_matrix(texts, tok, 6, counted=True) != whole).nnz == 0 and whole.has_sorted_indices
