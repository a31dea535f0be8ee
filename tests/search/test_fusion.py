"""Reciprocal rank fusion by hand and against a plain dictionary."""

import numpy as np
import pytest

from nblib.search.fusion import reciprocal_rank_fusion


def test_by_hand():
    first, second = np.array([[7, 3, 5]]), np.array([[3, 9, -1]])
    index, scores = reciprocal_rank_fusion([first, second], k=5)
    # 3: 1/62 + 1/61; 7: 1/61; 9: 1/62; 5: 1/63
    assert index.tolist() == [[3, 7, 9, 5, -1]]
    assert scores[0] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63, 0], rel=1e-6)
    assert index.dtype == np.int64 and scores.dtype == np.float32
    assert reciprocal_rank_fusion([first, second], k=2)[0].tolist() == [[3, 7]]


def test_equal_scores_go_by_document_number_whatever_the_order_of_the_systems():
    # Documents 8, 4 and 2 hold ranks 1, 2 and 7, each in another order; 1/61 + 1/62 + 1/67 has two sums in
    # float64, by the order of its terms.
    rankings = [np.full((1, 7), -1) for _ in range(3)]
    for i, document in enumerate((8, 4, 2)):
        for ranking, rank in zip(rankings, np.roll([1, 2, 7], i), strict=True):
            ranking[0, rank - 1] = document
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        index, scores = reciprocal_rank_fusion([rankings[i] for i in order], k=3)
        assert index.tolist() == [[2, 4, 8]] and len(set(scores[0].tolist())) == 1


def test_equals_a_dictionary_on_random_rankings():
    rng = np.random.default_rng(0)
    rankings = [np.stack([rng.permutation(40)[:width] for _ in range(6)]) for width in (5, 12, 30)]
    rankings[0][:, 3:] = -1
    index, scores = reciprocal_rank_fusion(rankings, k=50)
    for row in range(6):
        want: dict[int, float] = {}
        for ranking in rankings:
            for rank, document in enumerate(ranking[row].tolist(), 1):
                if document >= 0:
                    want[document] = want.get(document, 0.0) + 1 / (60 + rank)
        held = index[row] >= 0
        assert dict(zip(index[row][held].tolist(), scores[row][held].tolist(), strict=True)) == pytest.approx(
            want, rel=1e-6
        )
        assert (np.diff(scores[row]) <= 0).all() and not scores[row][~held].any()


def test_one_ranking_stays_as_it_is():
    ranking = np.array([[5, 1, 0], [2, -1, -1]])
    assert (reciprocal_rank_fusion([ranking], k=3)[0] == ranking).all()


def test_queries_without_any_hit_stay_empty():
    index, scores = reciprocal_rank_fusion([np.full((1, 3), -1), np.full((1, 2), -1)], k=2)
    assert index.tolist() == [[-1, -1]] and not scores.any()


@pytest.mark.parametrize("bad", [[], [np.zeros((2, 3), int), np.zeros((3, 3), int)]])
def test_rankings_of_other_queries_are_refused(bad):
    with pytest.raises(ValueError, match="same queries"):
        reciprocal_rank_fusion(bad, k=3)
