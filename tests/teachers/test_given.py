import numpy as np
import pytest
import torch

from nblib.teachers import GivenScores, training_pairs
from nblib.teachers.given import check_rows, checked_pairs

NAN = float("nan")


def same(got: torch.Tensor, want: list[list[float]]) -> None:
    assert got.dtype == torch.float32
    assert torch.equal(got.nan_to_num(-99.0), torch.tensor(want).nan_to_num(-99.0))


def test_a_block_by_hand():
    given = GivenScores([(2, 0), (0, 1), (0, 3), (2, 2)], [4.0, 0.0, -1.5, 7.0])
    assert len(given) == 4 and given.pairs.tolist() == [[0, 1], [0, 3], [2, 0], [2, 2]]
    same(
        given.scores(np.array([0, 1, 2]), np.arange(4)),
        [[NAN, 0.0, NAN, -1.5], [NAN] * 4, [4.0, NAN, 7.0, NAN]],
    )
    same(given.scores([2, 2], [2, 2, 3]), [[7.0, 7.0, NAN]] * 2)


def test_rows_beyond_those_named_are_not_mistaken_for_others():
    given = GivenScores([(1, 0)], [5.0])  # (0, 1) or (0, 2) must not land on it
    same(given.scores([0, 1], [0, 1, 2, 100_000]), [[NAN] * 4, [5.0, NAN, NAN, NAN]])


def test_no_pair_is_all_unscored():
    same(GivenScores([], []).scores([0], [0, 1]), [[NAN, NAN]])


def test_repeats():
    same(GivenScores([(0, 1), (0, 1)], [2.0, 2.0]).scores([0], [1]), [[2.0]])
    with pytest.raises(ValueError, match=r"pair \(0, 1\) has scores 2.0 and 3.0"):
        GivenScores([(0, 1), (1, 1), (0, 1)], [2.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("pairs", "scores", "reason"),
    [
        ([(0, 1)], [1.0, 2.0], "1 pairs but scores of shape"),
        ([(0, 1), (3, 1)], [1.0, NAN], r"pair \(3, 1\) is nan"),
    ],
)
def test_bad_scores_are_refused(pairs, scores, reason):
    with pytest.raises(ValueError, match=reason):
        GivenScores(pairs, scores)


def test_rows_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"pair \(0, 2\): rows run to 0 .* and 1"):
        check_rows(GivenScores([(0, 0), (0, 2)], [1.0, 1.0]).pairs, 1, 2)


def test_training_pairs_are_positives_and_negatives_once():
    rows = [(1, 4, [2, 0]), (0, 3, []), (1, 2, [4])]
    assert training_pairs(rows).tolist() == [[0, 3], [1, 0], [1, 2], [1, 4]]
    assert training_pairs([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (None, "pass pairs=training_pairs"),
        ([], "pass pairs=training_pairs"),
        ([0, 1], r"want pairs \[P, 2\]"),
        ([(0.0, 1.0)], "whole numbers"),
        ([(0, 1), (5, 1)], r"pair \(5, 1\)"),
        ([(0, -1)], r"pair \(0, -1\)"),
    ],
)
def test_bad_pairs_are_refused(pairs, reason):
    with pytest.raises(ValueError, match=reason):
        checked_pairs(pairs, 3, 3)
