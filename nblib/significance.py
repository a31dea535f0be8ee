"""Is a system better than a baseline, or was it luck with the queries? Paired tests over queries."""

from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test

RESAMPLES = 9_999  # p can be no smaller than 2 / (RESAMPLES + 1) = 0.0002
TIE = 1e-9  # differences below this are rounding


def paired_difference(
    system: dict[str, float], baseline: dict[str, float], seed: int = 13, confidence: float = 0.95
) -> dict[str, Any]:
    """Compare two systems query by query.

    p is from the paired randomisation test: under the null hypothesis the two values of a query may be
    swapped, so the sign of each difference is a coin toss. It supposes no distribution; differences of
    nDCG are mostly exactly 0 with lumps at a few values, far from the normal law that a t-test wants. Up to
    13 queries that differ, all sign patterns are counted and p is exact; above, 9,999 patterns are drawn
    with a fixed seed. The interval is a percentile bootstrap over queries, with the same seed.

    Source: Smucker, Allan, Carterette 2007, "A comparison of statistical significance tests for
    information retrieval evaluation".

    Args:
        system, baseline: query id -> value (for example nDCG@10), with the same query ids.
        seed: of the sign patterns and of the bootstrap.
        confidence: of the interval, 0 to 1.

    Returns:
        p (two-sided), diff (mean of system - baseline), ci_low, ci_high (None with fewer than 2 queries),
        wins, ties, losses (numbers of queries).

    Raises:
        ValueError: the query ids differ, or there is no query.
    """
    if system.keys() != baseline.keys() or not system:
        odd = sorted(system.keys() ^ baseline.keys())[:3]
        raise ValueError(f"both systems need values for the same queries, at least one; one side only: {odd}")
    diff = np.array([system[qid] - baseline[qid] for qid in sorted(system)])  # sorted: seed gives one result
    diff[np.abs(diff) < TIE] = 0.0
    low, high = _interval(diff, seed, confidence)
    return {
        "p": _randomisation_p(diff, seed),
        "diff": float(diff.mean()),
        "ci_low": low,
        "ci_high": high,
        "wins": int((diff > 0).sum()),
        "ties": int((diff == 0).sum()),
        "losses": int((diff < 0).sum()),
    }


def _randomisation_p(diff: np.ndarray, seed: int) -> float:
    changed = diff[diff != 0]  # a tie keeps its 0 under either sign: leaving it out changes no pattern's sum
    if changed.size == 0:
        return 1.0
    if changed.size == 1:
        return 1.0  # + and - are equally far from 0
    test = permutation_test(
        (changed,), np.sum, permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, batch=1_000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(min(test.pvalue, 1.0))


def _interval(diff: np.ndarray, seed: int, confidence: float) -> tuple[float | None, float | None]:
    if diff.size < 2:
        return None, None
    result = bootstrap(
        (diff,), np.mean, method="percentile", confidence_level=confidence,
        n_resamples=RESAMPLES, batch=1_000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(p_values: list[float]) -> list[float]:
    """Correct p values for testing several systems against one baseline (Holm 1979), in the order given.

    The smallest p is multiplied by m, the next by m - 1, and so on; a corrected value never falls below one
    that was smaller before, and never rises above 1.
    """
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected


def compare_with(
    rows: list[dict[str, Any]],
    per_query: dict[tuple[str, str], dict[str, dict[str, float]]],
    baseline: str,
    metric: str = "ndcg_at_10",
    seed: int = 13,
) -> list[dict[str, Any]]:
    """Add the comparison with one baseline to every metrics row of the data sets that have this baseline.

    Args:
        rows: metrics rows with dataset and system.
        per_query: (dataset, system) -> query id -> metric -> value, as `nblib.evaluate.score_run` gives.
        baseline: name of the baseline system. Its own rows, and rows of data sets without it, get None.
        metric: what is compared.
        seed: of the tests.

    Returns:
        New rows with diff_vs_B, ci_low_vs_B, ci_high_vs_B, p_vs_B, p_holm_vs_B (corrected over the systems
        compared with this baseline on the same data set), wins_vs_B, ties_vs_B, losses_vs_B.
    """
    names = ("diff", "ci_low", "ci_high", "p", "p_holm", "wins", "ties", "losses")
    added = [dict.fromkeys(names) for _ in rows]
    for dataset in {row["dataset"] for row in rows if (row["dataset"], baseline) in per_query}:
        base = _column(per_query[dataset, baseline], metric)
        tested = [i for i, r in enumerate(rows) if r["dataset"] == dataset and r["system"] != baseline]
        for i in tested:
            added[i] |= paired_difference(_column(per_query[dataset, rows[i]["system"]], metric), base, seed)
        for i, p in zip(tested, holm([added[i]["p"] for i in tested]), strict=True):
            added[i]["p_holm"] = p
    return [
        row | {f"{name}_vs_{baseline}": extra[name] for name in names}
        for row, extra in zip(rows, added, strict=True)
    ]


def _column(per_query: dict[str, dict[str, float]], metric: str) -> dict[str, float]:
    return {qid: values[metric] for qid, values in per_query.items()}
