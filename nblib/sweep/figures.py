"""Figures of notebooks 08 and 13. Each function takes rows, draws on what it is given and returns it."""

from typing import Any

from matplotlib.axes import Axes

from nblib import plots

Rows = list[dict[str, Any]]
OURS, GREY = "#d94801", "#777777"


def relevance_cost(ax: Axes, rows: Rows, references: Rows, published: Rows) -> Axes:
    """Draw nDCG@10 against FLOPS over lambda, with the knee; published models above, on an axis of their own.

    Bars span the smallest and the largest seed, in both directions.

    Args:
        ax: where to draw.
        rows: of nblib.sweep.pareto.curve.
        references: system, flops, ndcg_at_10 of systems without training.
        published: the same of published models: means over BEIR-13, other data, so that only FLOPS compare.
    """
    rows = sorted((row for row in rows if row["flops"] > 0), key=lambda row: row["flops"])
    for row in references:
        colour, marker = plots.style_of(row["system"])
        ax.plot(row["flops"], row["ndcg_at_10"], marker, color=colour, markersize=8, zorder=3)
        _name(ax, row["system"], row, (8, -3), colour)
    _curve(ax, rows)
    every = [*rows, *references]
    y = [row["ndcg_at_10"] for row in every]
    room = max(max(y) - min(y), 0.04)
    ax.set_ylim(min(y) - 0.15 * room, max(y) + room * (0.9 if published else 0.25))
    costs = [row["flops"] for row in [*every, *published]]
    ax.set(xlim=(min(costs) / 1.6, max(costs) * 2.2), xscale="log")
    plots.plain_log(ax)
    ax.set(xlabel="FLOPS: expected multiplications per pair (log scale)", ylabel="nDCG@10, test sets")
    ax.set_title("Relevance against cost")
    if published:
        ax.set_yticks(
            [tick for tick in ax.get_yticks() if min(y) - 0.15 * room <= tick <= max(y) + 0.1 * room]
        )
        _published(ax, published)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return ax


def _curve(ax: Axes, rows: Rows) -> None:
    x, y = [row["flops"] for row in rows], [row["ndcg_at_10"] for row in rows]
    bars = {f"{side}err": _reach(rows, name) for side, name in (("x", "flops"), ("y", "ndcg_at_10"))}
    seeds = max((row["seeds"] for row in rows), default=1)
    label = "ours, named by lambda" + (f"; bars span {seeds} seeds" if seeds > 1 else "")
    ax.errorbar(x, y, **bars, color=OURS, marker="o", capsize=2, elinewidth=1, label=label, zorder=4)
    for i, row in enumerate(rows):  # below and above in turn: neighbours may be close
        _name(ax, f"{row['lambda']:g}", row, (0, 9 if i % 2 else -17), OURS, "center")
        if row["knee"]:
            label = f"knee, chosen on dev: lambda {row['lambda']:g}"
            ring = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": "black"}
            ax.plot(row["flops"], row["ndcg_at_10"], "o", **ring, label=label, linestyle="none", zorder=5)


def _reach(rows: Rows, name: str) -> list[list[float]]:
    """Distances from the mean down to the smallest and up to the largest seed: [2, points]."""
    down = [row[name] - row[f"{name}_low"] for row in rows]
    return [down, [row[f"{name}_high"] - row[name] for row in rows]]


def _name(ax: Axes, text: str, row: dict, offset: tuple[float, float], colour: str, ha: str = "left") -> None:
    place = (row["flops"], row["ndcg_at_10"])
    ax.annotate(text, place, offset, textcoords="offset points", fontsize=8, color=colour, ha=ha, zorder=6)


def _published(ax: Axes, published: Rows) -> None:
    """Put published models into the upper third; dotted lines carry their FLOPS, all that compares, down."""
    other = ax.twinx()
    y = [row["ndcg_at_10"] for row in published]
    room = max(max(y) - min(y), 0.01)
    other.set_ylim(min(y) - 2.2 * room, max(y) + 0.2 * room)
    other.set_yticks([min(y), max(y)], [f"{min(y):.3f}", f"{max(y):.3f}"])
    for row in published:
        ax.axvline(row["flops"], color=GREY, linewidth=0.6, linestyle=":", zorder=1)
        other.plot(row["flops"], row["ndcg_at_10"], "D", markerfacecolor="white", markeredgecolor=GREY)
        name = row["system"].removeprefix("OS ")
        dearest = row["flops"] > max(one["flops"] for one in published) / 2  # those are named inward
        _name(other, name, row, (-7, -3) if dearest else (7, -3), GREY, "right" if dearest else "left")
    other.set_ylabel("published: BEIR-13 mean", color=GREY, loc="top")
    other.tick_params(axis="y", colors=GREY)
    other.grid(visible=False)
    other.spines["right"].set(visible=True, color=GREY, bounds=(min(y), max(y)))
    ax.plot([], [], "D", markerfacecolor="white", markeredgecolor=GREY, linestyle="none",
            label="published (right axis): other data, only FLOPS compare")  # fmt: skip


def differences(ax: Axes, rows: Rows) -> Axes:
    """Draw each variant's difference from the full recipe with its interval, and the paper's beside it.

    Args:
        ax: where to draw.
        rows: of nblib.sweep.ablation.summarise.
    """
    rows = [row for row in rows if row["diff"] is not None]
    for y, row in enumerate(rows):
        ends = (row["diff_low"], row["diff_high"])
        if None not in ends:
            ax.plot(ends, (y, y), color=OURS, linewidth=2)
        ax.plot(row["diff"], y, "o", color=OURS, zorder=3)
        if row["paper_diff"] is not None:
            ax.plot(row["paper_diff"], y, "D", markerfacecolor="white", markeredgecolor="black", zorder=4)
        ax.annotate(
            f"{row['diff']:+.3f}, FLOPS {row['flops']:.2f}", (1.01, y), xycoords=("axes fraction", "data"),
            va="center", fontsize=9,
        )  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    seeds = max((row["seeds"] for row in rows), default=0)
    label = f"ours, 95 % interval over {seeds} seeds" if seeds > 1 else "ours, one seed"
    ax.plot([], [], "o-", color=OURS, label=label)
    ax.plot(
        [],
        [],
        "D",
        markerfacecolor="white",
        markeredgecolor="black",
        label="paper, BEIR-13 (none: no such row)",
    )
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)  # the first on top
    ax.set(xlabel="nDCG@10 less that of the full recipe")
    ax.set_title("What each part is worth")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax
