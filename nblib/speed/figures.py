"""Figures of notebook 12. Each function takes rows, draws on what it is given and returns it."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nblib.speed.rows import strongest

Rows = list[dict[str, Any]]


def ratios(ax: Axes, rows: Rows) -> Axes:
    """Draw how many times better ours is, one line a row, against the strongest peer."""
    lines = [
        (" ".join(filter(None, (name.replace("_", " "), regime, dtype))), shipped["ratio"], tuned)
        for (name, regime, dtype), (shipped, tuned) in strongest(rows).items()
        if shipped["ratio"] is not None and name != "quality_minutes"
    ]
    values = [ratio for _, ratio, _ in lines]
    bars = ax.barh(range(len(lines)), values, color="#4477aa", label="peer as shipped")
    ax.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=3)
    lent = [(y, tuned["ratio"]) for y, (_, _, tuned) in enumerate(lines) if tuned and tuned["ratio"]]
    if lent:
        places, ratios = zip(*lent, strict=True)
        label = "peer with our settings and kernels"
        ax.plot(ratios, places, "D", color="#ccbb44", markeredgecolor="black", label=label)
        ax.legend(loc="lower right")
    ax.set_yticks(range(len(lines)), [name for name, _, _ in lines])
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=1)
    ax.set(xscale="log", xlabel="times as fast, or as small, as the strongest peer (log scale)")
    least, most = min([0.6, *values]) / 1.2, max([2.0, *values]) * 1.8
    ax.set_xlim(least, most)
    ticks = [step * 10.0**power for power in range(-2, 4) for step in (1, 2, 5)]
    ticks = [tick for tick in ticks if least <= tick <= most]
    ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
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
