"""Figures of notebook 12. Each function takes rows, draws on one Axes and returns it."""

from typing import Any

from matplotlib.axes import Axes

Rows = list[dict[str, Any]]


def ratios(ax: Axes, rows: Rows) -> Axes:
    """Draw how many times better ours is, one bar a row, against the best peer of each setting."""
    best: dict[tuple, dict] = {}
    for row in rows:
        if row["ratio"] is None or row["row"] == "quality_minutes":
            continue
        key = (row["row"], row["regime"], row["dtype"])
        if key not in best or row["ratio"] < best[key]["ratio"]:
            best[key] = row
    names = [" ".join(filter(None, (name.replace("_", " "), regime, dtype))) for name, regime, dtype in best]
    values = [row["ratio"] for row in best.values()]
    bars = ax.barh(range(len(names)), values, color="#4477aa")
    ax.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=1)
    ax.set(xscale="log", xlabel="times as fast, or as small, as the best peer setting (log scale)")
    ax.set_xlim(0.5, max([2.0, *values]) * 1.6)
    ax.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    ax.set_title("Ours against the peer; right of 1 is better")
    return ax


def quality(ax: Axes, curves: dict[str, Rows]) -> Axes:
    """Draw nDCG@10 on dev data over minutes of training, with FLOPS at the last point of each side."""
    styles = {"ours": ("#4477aa", "o", "ours"), "peer": ("#cc6677", "s", "sentence-transformers")}
    for side, rows in curves.items():
        colour, marker, label = styles[side]
        minutes, heights = [r["minutes"] for r in rows], [r["ndcg_at_10"] for r in rows]
        last = rows[-1]
        label = f"{label} (at the end: FLOPS {last['flops']:.2f}, {last['d_nnz']:.0f} terms)"
        ax.plot(minutes, heights, color=colour, marker=marker, label=label)
    ax.set(xlabel="minutes of training (2 cores, searches not counted)", ylabel="nDCG@10 on dev")
    ax.set_title("Relevance over training time, same weights at the start")
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax
