"""Relevance against cost over a list of lambdas: the points, the curve, and its knee."""

from typing import Any

import numpy as np
import pandas as pd

from nblib.sweep.layout import Point
from nblib.sweep.points import Result, mean_over_sets


def lambda_points(lambdas: list[float], seeds: list[int]) -> list[Point]:
    """List the runs: every lambda with the first seed, then with the next."""
    return [
        Point(f"lambda {value:g}", seed, {"lambda_flops": value, "seed": seed})
        for seed in seeds
        for value in lambdas
    ]


def curve(lambdas: list[float], results: list[Result]) -> list[dict[str, Any]]:
    """Average the runs of each lambda over sets and seeds, and mark the knee.

    Args:
        lambdas: in the order wanted.
        results: of run_points; what diverged, or is missing, is not averaged.

    Returns:
        One row for each lambda that has a result: lambda, seeds (number), ndcg_at_10, flops, each with _low
        and _high (smallest and largest seed), d_nnz, all on the test sets; dev_ndcg_at_10, dev_flops; knee.
    """
    rows = []
    for value in lambdas:
        held = [r for r in results if r["point"] == f"lambda {value:g}" and r["rows"]]
        if not held:
            continue
        test, dev = (pd.DataFrame([mean_over_sets(r, role) for r in held]) for role in ("test", "dev"))
        row = {"lambda": value, "seeds": len(held), "d_nnz": float(test["d_nnz"].mean())}
        for name in ("ndcg_at_10", "flops"):
            low, mean, high = test[name].min(), test[name].mean(), test[name].max()
            row |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row | {f"dev_{name}": float(dev[name].mean()) for name in ("ndcg_at_10", "flops")})
    place = knee([row["dev_flops"] for row in rows], [row["dev_ndcg_at_10"] for row in rows])
    return [row | {"knee": i == place} for i, row in enumerate(rows)]


def knee(flops: list[float], relevance: list[float]) -> int | None:
    """Find the point above which more cost buys the least: the one farthest above the chord.

    The chord runs from the cheapest point to the dearest, over log FLOPS; distances are vertical. With both
    axes scaled to 0..1, as the source does, the same point is farthest.

    Source: Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack" (sensitivity 0: one knee, no smoothing).

    Args:
        flops: cost of each point, in any order; a point at 0 (no term left) is left out.
        relevance: such as nDCG@10.

    Returns:
        Its position; None with fewer than three points, or if none lies above the chord.
    """
    kept = [i for i, cost in enumerate(flops) if cost > 0]
    if len(kept) < 3:
        return None
    x, y = np.log(np.array(flops)[kept]), np.array(relevance)[kept]
    first, last = x.argmin(), x.argmax()
    if x[first] == x[last]:
        return None
    above = y - np.interp(x, [x[first], x[last]], [y[first], y[last]])
    best = int(above.argmax())
    return kept[best] if above[best] > 1e-9 else None


def diverged(lambdas: list[float], results: list[Result]) -> dict[float, str]:
    """Say of each lambda which seeds have no result since their training diverged; "" = none."""
    said = {}
    for value in lambdas:
        lost = [r for r in results if r["point"] == f"lambda {value:g}" and r["diverged"]]
        said[value] = f"diverged: seed {', '.join(str(r['seed']) for r in lost)}" if lost else ""
    return said


def curve_table(
    rows: list[dict[str, Any]], references: list[dict[str, Any]], lost: dict[float, str]
) -> pd.DataFrame:
    """Lay a curve out for reading, the systems without training below it.

    Args:
        rows: of `curve`.
        references: of reference_means.
        lost: of `diverged`; a lambda without any result gets a line, too.
    """
    lines = [
        {
            "lambda": f"{row['lambda']:g}",
            "seeds": str(row["seeds"]),
            "FLOPS": f"{row['flops']:.2f}",
            "terms per document": f"{row['d_nnz']:.0f}",
            "nDCG@10 dev": f"{row['dev_ndcg_at_10']:.3f}",
            "nDCG@10 test": f"{row['ndcg_at_10']:.3f}",
            "smallest to largest seed": f"{row['ndcg_at_10_low']:.3f} to {row['ndcg_at_10_high']:.3f}",
            "": "; ".join(filter(None, ["knee" if row["knee"] else "", lost[row["lambda"]]])),
        }
        for row in rows
    ]
    held = {row["lambda"] for row in rows}
    lines += [
        {"lambda": f"{value:g}", "seeds": "0", "": said}
        for value, said in lost.items()
        if said and value not in held
    ]
    lines += [
        {
            "lambda": row["system"],
            "FLOPS": f"{row['flops']:.2f}",
            "terms per document": f"{row['d_nnz']:.0f}",
            "nDCG@10 dev": f"{row['dev_ndcg_at_10']:.3f}",
            "nDCG@10 test": f"{row['ndcg_at_10']:.3f}",
        }
        for row in references
    ]
    return pd.DataFrame(lines).fillna("")


def reference_means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average rows of nblib.sweep.stages.search over the sets, for each system."""
    found = []
    for system in dict.fromkeys(row["system"] for row in rows):
        of_system = {"rows": [row for row in rows if row["system"] == system]}
        dev = {f"dev_{name}": value for name, value in mean_over_sets(of_system, "dev").items()}
        found.append({"system": system} | mean_over_sets(of_system, "test") | dev)
    return found
