"""Pruning of encoded documents, worked by hand."""

import numpy as np
import pytest
from scipy import sparse

from nblib.model.prune import prune_reps

REPS = sparse.csr_matrix(
    np.array([[4.0, 1.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.1, 0.0, 0.0]])
)


def test_each_rule_by_hand():
    want = {
        ("max_ratio", 0.25): [[4, 0, 0, 2, 2], [0] * 5, [0.5, 0, 0, 0, 0]],  # above 1.0, and above .125
        ("top_k", 2): [[4, 0, 0, 2, 0], [0] * 5, [0.5, 0, 0.1, 0, 0]],  # of two equal ones the lower id
        ("min_weight", 0.5): [[4, 1, 0, 2, 2], [0] * 5, [0.5, 0, 0, 0, 0]],
    }
    for (rule, value), rows in want.items():
        assert prune_reps(REPS, **{rule: value}).toarray().tolist() == rows, rule
    both = prune_reps(REPS, max_ratio=0.25, top_k=1)
    assert both.nnz == 2 and both[0, 0] == 4.0


def test_nothing_asked_keeps_everything_and_the_input():
    assert (prune_reps(REPS) != REPS).nnz == 0
    prune_reps(REPS, top_k=1)
    assert REPS.nnz == 6


def test_top_k_equals_a_plain_sort():
    rng = np.random.default_rng(0)
    reps = sparse.random(50, 300, 0.2, random_state=1, format="csr", data_rvs=rng.random)
    got = prune_reps(reps, top_k=7).toarray()
    for row, kept in zip(reps.toarray(), got, strict=True):
        best = np.sort(row[row > 0])[::-1][:7]
        assert np.sort(kept[kept > 0])[::-1] == pytest.approx(best)


@pytest.mark.parametrize("bad", [{"max_ratio": 1.0}, {"top_k": -1}, {"min_weight": float("nan")}], ids=str)
def test_wrong_rules_are_refused(bad):
    with pytest.raises(ValueError, match="want 0 to below 1"):
        prune_reps(REPS, **bad)
