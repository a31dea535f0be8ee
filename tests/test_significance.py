"""Paired tests: cases that can be counted by hand, and sanity of p and interval."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from nblib.significance import compare_with, holm, paired_difference


def values(numbers) -> dict[str, float]:
    return {f"q{i}": float(v) for i, v in enumerate(numbers)}


def test_identical_systems_do_not_differ():
    same = values(np.random.default_rng(0).random(50))
    result = paired_difference(same, dict(same))
    assert result["p"] == 1.0 and result["diff"] == 0.0
    assert result["ci_low"] == result["ci_high"] == 0.0
    assert (result["wins"], result["ties"], result["losses"]) == (0, 50, 0)


def test_exact_p_by_hand():
    # Five wins of .1: of the 32 sign patterns only +++++ and ----- are as far from 0, so p = 2 / 32.
    result = paired_difference(values([0.6] * 5), values([0.5] * 5))
    assert result["p"] == pytest.approx(2 / 32)
    assert result["diff"] == pytest.approx(0.1)


def test_ties_do_not_change_p():
    with_ties = paired_difference(values([0.6] * 5 + [0.3] * 20), values([0.5] * 5 + [0.3] * 20))
    assert with_ties["p"] == pytest.approx(2 / 32)
    assert with_ties["ties"] == 20


def test_unequal_differences_by_hand():
    # Differences 3, 2, -1 (sum 4). Sums of all 8 patterns: 6 4 2 0 0 -2 -4 -6; at least 4 from 0: 4 of 8.
    assert paired_difference(values([3, 2, 0]), values([0, 0, 1]))["p"] == pytest.approx(4 / 8)


def test_large_sample_agrees_with_the_t_test():
    rng = np.random.default_rng(1)
    base = rng.random(300)
    ours = base + rng.normal(0.02, 0.15, 300)
    result = paired_difference(values(ours), values(base))
    assert result["p"] == pytest.approx(ttest_rel(ours, base).pvalue, abs=0.01)
    half = 1.96 * np.std(ours - base, ddof=1) / np.sqrt(300)
    assert result["ci_low"] == pytest.approx(result["diff"] - half, abs=0.003)
    assert result["ci_high"] == pytest.approx(result["diff"] + half, abs=0.003)
    assert result["wins"] == (ours > base).sum() and result["losses"] == (ours < base).sum()


def test_a_clear_gain_is_seen_and_the_sign_follows_the_order():
    rng = np.random.default_rng(2)
    base = rng.random(200)
    ours = base + rng.normal(0.1, 0.1, 200)
    gain, loss = paired_difference(values(ours), values(base)), paired_difference(values(base), values(ours))
    assert gain["p"] < 0.001 and gain["ci_low"] > 0
    assert loss["diff"] == -gain["diff"] and loss["ci_high"] < 0
    assert loss["p"] == pytest.approx(gain["p"], abs=1e-3)


def test_the_order_of_the_queries_does_not_matter():
    rng = np.random.default_rng(3)
    ours, base = values(rng.random(40)), values(rng.random(40))
    turned = dict(reversed(ours.items()))
    assert paired_difference(ours, base) == paired_difference(turned, base)


def test_one_query_says_nothing():
    result = paired_difference({"q": 0.9}, {"q": 0.1})
    assert result["p"] == 1.0 and result["ci_low"] is None


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="same queries.*'b'"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="at least one"):
        paired_difference({}, {})


def test_holm_by_hand():
    # Sorted .01 .02 .04 -> .03, .04, .04; given in another order.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_rows_get_the_comparison_with_the_baseline_of_their_data_set():
    rows = [{"dataset": d, "system": s} for d, s in [("x", "bm25"), ("x", "a"), ("x", "b"), ("y", "a")]]
    tens = {"bm25": 0.5, "a": 0.6, "b": 0.5}
    per_query = {
        (r["dataset"], r["system"]): {f"q{i}": {"ndcg_at_10": tens[r["system"]]} for i in range(8)}
        for r in rows
    }
    bm25, a, b, other = compare_with(rows, per_query, "bm25")
    assert bm25["p_vs_bm25"] is None and other["diff_vs_bm25"] is None
    assert a["p_vs_bm25"] == pytest.approx(2 / 256) and a["p_holm_vs_bm25"] == pytest.approx(4 / 256)
    assert (a["wins_vs_bm25"], a["ties_vs_bm25"], a["losses_vs_bm25"]) == (8, 0, 0)
    assert b["p_vs_bm25"] == 1.0 and b["ci_low_vs_bm25"] <= 0 <= b["ci_high_vs_bm25"]
    assert rows[1] == {"dataset": "x", "system": "a"}  # the input is left alone
