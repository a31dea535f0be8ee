"""The curve over lambdas and its knee, by numbers worked out by hand."""

import pytest

from nblib.sweep.pareto import curve, curve_table, diverged, knee, lambda_points, reference_means


def row(role, ndcg, flops, dataset="a", system="finetuned"):
    measures = {"ndcg_at_10": ndcg, "flops": flops, "d_nnz": 10 * flops}
    return {"role": role, "dataset": dataset, "system": system} | measures


def result(value, seed, test, dev, flops):
    rows = [row("test", test, flops), row("dev", dev, flops)] if test else []
    return {"point": f"lambda {value:g}", "seed": seed, "rows": rows, "diverged": None if rows else "dense"}


def test_knee_by_hand():
    # The chord from (0.1, .30) to (10, .50) stands at .40 over FLOPS 1, halfway in the logarithm.
    assert knee([0.1, 1, 10], [0.30, 0.45, 0.50]) == 1
    # Over 0.316 and 3.16 it stands at .35 and .45: distances .10, .09 and .04.
    assert knee([0.1, 0.316, 1, 3.16, 10], [0.30, 0.45, 0.49, 0.49, 0.50]) == 1
    assert knee([10, 3.16, 1, 0.316, 0.1], [0.50, 0.49, 0.49, 0.45, 0.30]) == 3, "in any order"


def test_a_curve_without_a_knee():
    assert knee([0.1, 1, 10], [0.3, 0.4, 0.5]) is None, "straight"
    assert knee([0.1, 1, 10], [0.3, 0.35, 0.5]) is None, "bent the other way"
    assert knee([0.1, 10], [0.3, 0.5]) is None
    assert knee([1.0, 1.0, 1.0], [0.3, 0.4, 0.5]) is None
    assert knee([0.0, 0.1, 1, 10], [0.0, 0.30, 0.45, 0.50]) == 2, "a point without terms has no place"


def test_curve_averages_sets_and_seeds_and_chooses_on_dev():
    results = [
        result(0.1, 1, 0.30, 0.30, 0.1),
        result(0.1, 2, 0.32, 0.30, 0.3),
        result(0.01, 1, 0.40, 0.45, 1.0),
        result(0.001, 1, 0.60, 0.50, 10.0),
        result(9.0, 1, None, None, None),  # diverged
        result(0.01, 2, None, None, None),
    ]
    results[2]["rows"].append(row("test", 0.50, 3.0, "b"))  # a second set
    rows = curve([0.1, 0.01, 0.001, 9.0, 5.0], results)
    assert [r["lambda"] for r in rows] == [0.1, 0.01, 0.001]
    first, second, third = rows
    assert (first["seeds"], first["ndcg_at_10"], first["flops"]) == (
        2,
        pytest.approx(0.31),
        pytest.approx(0.2),
    )
    assert (first["ndcg_at_10_low"], first["ndcg_at_10_high"]) == (0.30, 0.32)
    assert (first["flops_low"], first["flops_high"]) == (0.1, 0.3)
    assert (second["ndcg_at_10"], second["flops"]) == (pytest.approx(0.45), 2.0)
    # On the test sets the middle point lies below the chord; on dev it is the knee.
    assert [r["knee"] for r in rows] == [False, True, False]
    (bm25,) = reference_means(
        [row("test", 0.4, 0.7, s, "bm25") for s in "ab"] + [row("dev", 0.3, 0.5, "c", "bm25")]
    )
    assert (bm25["system"], bm25["ndcg_at_10"], bm25["dev_ndcg_at_10"]) == ("bm25", 0.4, 0.3)
    table = curve_table(rows, [bm25], diverged([0.1, 0.01, 0.001, 9.0, 5.0], results))
    assert list(table["lambda"]) == ["0.1", "0.01", "0.001", "9", "bm25"]
    assert list(table[""]) == ["", "knee; diverged: seed 2", "", "diverged: seed 1", ""]
    assert list(table["seeds"]) == ["2", "1", "1", "0", ""]


def test_a_lambda_of_many_digits_may_diverge():
    value = 0.00012345678
    assert diverged([value], [result(value, 3, None, None, None)]) == {value: "diverged: seed 3"}


def test_nothing_done_yet():
    assert curve([0.1], []) == []


def test_one_seed_is_finished_before_the_next():
    points = lambda_points([0.1, 0.01], [3, 4])
    assert [(p.name, p.seed) for p in points] == [
        ("lambda 0.1", 3), ("lambda 0.01", 3), ("lambda 0.1", 4), ("lambda 0.01", 4),
    ]  # fmt: skip
    assert points[1].finetune == {"lambda_flops": 0.01, "seed": 3}
