"""Intervals and sentences of the ablation, by numbers worked out by hand."""

from typing import get_args

import pytest

from nblib.files import ROOT
from nblib.run.keys import cell_defaults
from nblib.run.params import Ablation, AblationParams, FinetuneParams, OwnVariant, PretrainParams
from nblib.sweep.ablation import (
    PAPER_FULL,
    VARIANTS,
    ablation_points,
    ablation_table,
    chosen_variants,
    finding,
    interval,
    summarise,
)


def result(name, seed, ndcg, flops=1.0):
    rows = [{"role": "test", "dataset": "a", "ndcg_at_10": ndcg, "flops": flops, "d_nnz": 50}] if ndcg else []
    return {"point": name, "seed": seed, "rows": rows, "diverged": None if ndcg else "zero", "wall_s": 120.0}


def test_interval_by_hand():
    # s = 1, so half the interval is 4.3027 / sqrt(3) = 2.4841
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
    # 1 degree of freedom: 12.7062 x 0.7071 / sqrt(2) = 6.3531
    assert interval([1.0, 2.0]) == pytest.approx((1.5, -4.8531, 7.8531), abs=1e-4)
    assert interval([0.5]) == (0.5, None, None)


def row(diff, low, high, paper, flops=1.0, diverged=0):
    ends = {"diff": diff, "diff_low": low, "diff_high": high}
    return ends | {"paper_diff": paper, "flops": flops, "diverged": diverged}


NONE = "the interval holds 0: no finding"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((-0.02, -0.03, -0.01, -0.017), "lower by .020: agrees in sign with the paper's -.017"),
        ((0.02, 0.01, 0.03, -0.017), "higher by .020: disagrees in sign with the paper's -.017"),
        ((0.02, -0.01, 0.05, -0.017), f"higher by .020, {NONE}; the paper has -.017"),
        ((-0.02, -0.03, 0.0, -0.017), f"lower by .020, {NONE}; the paper has -.017"),
        ((0.0, 0.0, 0.0, None), f"equal to three digits, {NONE}; the paper has no such row"),
        ((-0.02, -0.03, -0.01, None), "lower by .020; the paper has no such row"),
        (
            (0.02, None, None, 0.01),
            "higher by .020, one seed without an interval: no finding; the paper has +.010",
        ),
    ],
)
def test_sentences(numbers, said):
    assert finding(row(*numbers), 1.0) == said


def test_unlike_cost_is_said():
    assert "FLOPS" not in finding(row(0.02, 0.01, 0.03, 0.01, flops=1.09), 1.0)
    assert finding(row(0.02, 0.01, 0.03, 0.01, flops=0.8), 1.0).endswith(
        "not at like cost: FLOPS 0.80 against 1.00"
    )
    assert finding(row(0.02, 0.01, 0.03, 0.01, diverged=1), 1.0).startswith("1 of its runs diverged; higher")
    assert finding(row(None, None, None, None), 1.0) == "", "full is compared with nothing"


def test_runs_are_paired_by_seed():
    full = [result("full", seed, value) for seed, value in ((1, 0.50), (2, 0.60), (3, 0.70))]
    # 0.02 below full with every seed: the seeds differ far more than that, the pairs not at all.
    other = [result("no pretraining", seed, value, 1.5) for seed, value in ((1, 0.48), (2, 0.58), (3, 0.68))]
    lost = [result("without IDF", 1, 0.40), result("without IDF", 2, None)]
    names = ["full", "no pretraining", "without IDF", "one dense teacher"]
    rows = summarise(chosen_variants(names, {}), full + other + lost)
    first, second, third = rows
    assert first["ndcg_at_10"] == pytest.approx(0.6) and first["ci_low"] == pytest.approx(
        0.6 - 0.24841, abs=1e-4
    )
    assert first["diff"] is None and first["finding"] == ""
    assert (second["diff"], second["diff_low"], second["diff_high"]) == pytest.approx((-0.02, -0.02, -0.02))
    assert second["paper_diff"] == pytest.approx(-0.0174)
    assert second["finding"] == (
        "lower by .020: agrees in sign with the paper's -.017; not at like cost: FLOPS 1.50 against 1.00"
    )
    assert (third["seeds"], third["diverged"], third["diff_low"]) == (1, 1, None)
    assert third["diff"] == pytest.approx(-0.1)
    table = ablation_table(rows)
    assert table["nDCG@10 [95 %]"][0] == ".600 [.352, .848]" and table["paper nDCG@10"][1] == ".4861"
    assert table["against full [95 %]"][1] == "-.020 [-.020, -.020]" and table["minutes a run"][1] == "2.0"


def test_every_variant_is_known_and_valid():
    assert tuple(VARIANTS) == get_args(Ablation)
    assert VARIANTS["full"].paper == PAPER_FULL
    points = ablation_points(VARIANTS, [13, 14], 0.02)
    assert [p.seed for p in points] == [13] * 9 + [14] * 9
    cells = {n: cell_defaults(ROOT / "notebooks" / f"{n}.ipynb") for n in ("03_pretrain", "04_finetune")}
    for point in points:
        assert PretrainParams(**cells["03_pretrain"] | point.pretrain).seed == point.seed
        assert FinetuneParams(**cells["04_finetune"] | point.finetune).seed == point.seed + 100
    penalty = points[3].finetune
    assert (penalty["lambda_idf"], penalty["lambda_flops"]) == (0.02, 0.0)


def test_variants_of_ones_own_stand_beside_the_papers():
    own = {"shorter": OwnVariant(pretrain={"max_length": 32}, finetune={"max_length": 32}, given_idf=True)}
    variants = chosen_variants(["full"], own)
    full, shorter = ablation_points(variants, [13], 0.02)
    assert (shorter.name, shorter.pretrain["max_length"], shorter.finetune["max_length"]) == (
        "shorter",
        32,
        32,
    )
    assert shorter.given_idf and not full.given_idf
    assert "max_length" not in full.finetune and shorter.finetune["seed"] == full.finetune["seed"]
    rows = summarise(variants, [result("full", 13, 0.5), result("shorter", 13, 0.4)])
    assert rows[1]["diff"] == pytest.approx(-0.1) and rows[1]["paper"] is None
    assert rows[1]["finding"].endswith("no finding; the paper has no such row")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"full": {"finetune": {"seed": 1}}}, "full: variants of the paper"),
        ({"x": {"finetune": {"lambda_flop": 1.0}}}, "lambda_flop: no parameter of FinetuneParams"),
        ({"x": {"pretrain": {"margin": 1.0}}}, "margin: no parameter of PretrainParams"),
        ({"x": {}}, "it changes nothing"),
    ],
)
def test_wrong_variants_are_refused(own, said):
    good = cell_defaults(ROOT / "notebooks" / "13_ablation.ipynb")
    AblationParams(**good)
    with pytest.raises(ValueError, match=said):
        AblationParams(**good | {"more_variants": own})
