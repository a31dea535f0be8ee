"""The paper's ablations in small: the variants, what the paper has for them, and what may be said of ours.

Source of the paper's figures: arXiv:2411.04403v2, tables 5 and 6, mean nDCG@10 over BEIR-13.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from nblib.run.params import OwnVariant
from nblib.sweep.layout import Point
from nblib.sweep.points import Result, mean_over_sets

FULL = "full"
PAPER_FULL = 0.5035
APART = 1.1  # FLOPS that differ by more than this factor are not like cost
LATER = 100  # 04's seed is 03's plus this: the same one would bring 03's batches again


@dataclass(frozen=True)
class Variant:
    """What differs from the full recipe in 03 and 04, and the paper's nDCG@10 (None: it has no such row)."""

    paper: float | None
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    given_idf: bool = False


BINARY = {"query_side": "binary"}
DENSE = {"dense_weight": 1.0, "sparse_weight": 0.0}
SPARSE = {"dense_weight": 0.0, "sparse_weight": 1.0}
NO_OTHERS = {"cross_teacher": "", "cross_weight": 0.0, "given_weight": 0.0, "more_teachers": {}}
RAW = {"normalise_teachers": False}
VARIANTS = {
    FULL: Variant(PAPER_FULL),
    "without IDF": Variant(0.4865, BINARY, BINARY),
    "IDF at inference only": Variant(None, BINARY, BINARY, given_idf=True),
    "IDF inside the penalty": Variant(None, {}, {"lambda_flops": 0.0}),  # 13 gives lambda_idf
    "one dense teacher": Variant(0.4948, DENSE, DENSE | NO_OTHERS),  # gte; TAS-B .4947
    "one sparse teacher": Variant(0.4966, SPARSE, SPARSE | NO_OTHERS),  # OpenSearch v1; SPLADE++ED .4987
    "ensemble without normalisation": Variant(0.4956, RAW, RAW),
    "no pretraining": Variant(0.4861, {"num_steps": 0}),
    "InfoNCE pretraining": Variant(0.4892, {"kl_weight": 0.0, "infonce_weight": 1.0}),
}


def chosen_variants(names: list[str], more: Mapping[str, OwnVariant]) -> dict[str, Variant]:
    """Look the paper's variants up by name, and append one's own, of which the paper says nothing."""
    own = {name: Variant(None, one.pretrain, one.finetune, one.given_idf) for name, one in more.items()}
    return {name: VARIANTS[name] for name in names} | own


def ablation_points(variants: Mapping[str, Variant], seeds: list[int], lambda_idf: float) -> list[Point]:
    """List the runs: every variant with the first seed, then with the next.

    Args:
        variants: see chosen_variants.
        seeds: of 03; the paper's variants of a seed share its warm head and see the same batches.
        lambda_idf: strength of the penalty that holds IDF.
    """
    points = []
    for seed in seeds:
        for name, variant in variants.items():
            finetune = variant.finetune | {"seed": seed + LATER}
            if name == "IDF inside the penalty":
                finetune["lambda_idf"] = lambda_idf
            pretrain = variant.pretrain | {"seed": seed}
            points.append(Point(name, seed, finetune, pretrain, variant.given_idf))
    return points


def interval(values: list[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % interval by Student's t with n - 1 degrees of freedom; None with one value.

    With three values t is 4.30, so only a difference of 2.5 standard deviations stands out.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, None, None
    half = float(student_t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / sqrt(n)
    return mean, mean - half, mean + half


def summarise(variants: Mapping[str, Variant], results: list[Result]) -> list[dict[str, Any]]:
    """Average the runs of each variant, and compare them with the full recipe seed by seed.

    Args:
        variants: see chosen_variants; the rows are in their order.
        results: of run_points.

    Returns:
        One row for each variant with a result: variant, seeds and diverged (numbers of runs), ndcg_at_10,
        ci_low, ci_high; flops, d_nnz, wall_s (means); diff, diff_low, diff_high (None for "full", and
        where no seed has both); paper, paper_diff, finding.
    """
    ndcg: dict[str, dict[int, float]] = {}
    for r in results:
        if r["rows"]:
            ndcg.setdefault(r["point"], {})[r["seed"]] = mean_over_sets(r, "test")["ndcg_at_10"]
    rows = []
    for name, variant in variants.items():
        held = [r for r in results if r["point"] == name]
        if name not in ndcg:
            continue
        mean, low, high = interval(list(ndcg[name].values()))
        costs = pd.DataFrame([mean_over_sets(r, "test") for r in held if r["rows"]]).mean()
        row = {"variant": name, "seeds": len(ndcg[name]), "diverged": len(held) - len(ndcg[name])}
        row |= {"ndcg_at_10": mean, "ci_low": low, "ci_high": high}
        row |= {"flops": float(costs["flops"]), "d_nnz": float(costs["d_nnz"])}
        row |= {"wall_s": float(np.mean([r["wall_s"] for r in held if r["rows"]]))}
        rows.append(row | _against_full(name, variant.paper, ndcg))
    full = next((row["flops"] for row in rows if row["variant"] == FULL), None)
    return [row | {"finding": finding(row, full)} for row in rows]


def _against_full(
    name: str, paper: float | None, ndcg: dict[str, dict[int, float]]
) -> dict[str, float | None]:
    row: dict[str, float | None] = {"diff": None, "diff_low": None, "diff_high": None, "paper": paper}
    row["paper_diff"] = None if paper is None or name == FULL else round(paper - PAPER_FULL, 4)
    full = ndcg.get(FULL, {})
    pairs = [value - full[seed] for seed, value in ndcg[name].items() if seed in full]
    if name != FULL and pairs:
        row["diff"], row["diff_low"], row["diff_high"] = interval(pairs)
    return row


def finding(row: dict[str, Any], full_flops: float | None) -> str:
    """Say in a sentence what a row shows, and how it stands to the paper; by rule, from the numbers alone.

    Args:
        row: diff, diff_low, diff_high, flops, diverged, paper_diff.
        full_flops: of the full recipe.
    """
    parts = [f"{row['diverged']} of its runs diverged"] if row["diverged"] else []
    if row["diff"] is not None:
        parts.append(_compared(row))
        if full_flops and max(row["flops"], full_flops) > APART * min(row["flops"], full_flops):
            parts.append(f"not at like cost: FLOPS {row['flops']:.2f} against {full_flops:.2f}")
    return "; ".join(parts)


def _compared(row: dict[str, Any]) -> str:
    diff, low, high, paper = (row[name] for name in ("diff", "diff_low", "diff_high", "paper_diff"))
    words = f"{'higher' if diff > 0 else 'lower'} by {_dot(abs(diff))}"
    words = "equal to three digits" if round(diff, 3) == 0 else words
    has = "the paper has no such row" if paper is None else f"the paper has {_signed(paper)}"
    if low is None:
        return f"{words}, one seed without an interval: no finding; {has}"
    if low <= 0 <= high:
        return f"{words}, the interval holds 0: no finding; {has}"
    if paper is None:
        return f"{words}; {has}"
    agrees = "agrees" if diff * paper > 0 else "disagrees"
    return f"{words}: {agrees} in sign with the paper's {_signed(paper)}"


def ablation_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Lay the rows of `summarise` out for reading, beside the paper's figures."""
    lines = []
    for row in rows:
        line = {"variant": row["variant"], "seeds": row["seeds"]}
        line["nDCG@10 [95 %]"] = _with_interval(
            _dot(row["ndcg_at_10"]), [_dot(v) for v in (row["ci_low"], row["ci_high"]) if v is not None]
        )
        ends = [_signed(v) for v in (row["diff_low"], row["diff_high"]) if v is not None]
        line["against full [95 %]"] = (
            "" if row["diff"] is None else _with_interval(_signed(row["diff"]), ends)
        )
        line |= {"FLOPS": f"{row['flops']:.2f}", "minutes a run": f"{row['wall_s'] / 60:.1f}"}
        line["paper nDCG@10"] = "" if row["paper"] is None else _dot(row["paper"], 4)
        line["paper against full"] = "" if row["paper_diff"] is None else _signed(row["paper_diff"], 4)
        lines.append(line | {"finding": row["finding"]})
    return pd.DataFrame(lines)


def _with_interval(mean: str, ends: list[str]) -> str:
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _dot(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("0.", ".", 1)
