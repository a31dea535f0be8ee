"""Figures of notebook 12. Each function takes rows, draws on what it is given and returns it."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def quality(fig: Figure, curves: dict[str, Rows]) -> Figure:
    """Draw nDCG@10 on dev data and FLOPS over minutes of training, one above the other."""
    styles = {"ours": ("#4477aa", "o", "ours"), "peer": ("#cc6677", "s", "sentence-transformers")}
    axes = fig.subplots(2, 1, sharex=True)
    named = {"ndcg_at_10": "nDCG@10 on dev", "flops": "FLOPS"}
    for ax, (name, unit) in zip(axes, named.items(), strict=True):
        for side, rows in curves.items():
            colour, marker, label = styles[side]
            minutes, heights = [r["minutes"] for r in rows], [r[name] for r in rows]
            ax.plot(minutes, heights, color=colour, marker=marker, label=label)
        ax.set_ylabel(unit)
        ax.grid(alpha=0.3)
    axes[0].set_title("Relevance and its cost over training time, same weights at the start")
    axes[0].legend(loc="best")
    axes[1].set(xlabel="minutes of training (searches not counted)", xlim=(0, None), ylim=(0, None))
    return fig
