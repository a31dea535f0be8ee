"""Figures of the reports. Each function takes data, draws on an Axes or Figure, returns it; no plt.show()."""

import warnings
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

HANGUL_FONTS = (
    "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "NanumBarunGothic", "Malgun Gothic",
    "Apple SD Gothic Neo", "AppleGothic", "UnDotum",
)  # fmt: skip
# One colour and marker per system in all figures; grey to brown are untrained, squares are lexical.
SYSTEM_STYLE = {
    "bm25": ("#555555", "s"), "bm25-tokens": ("#999999", "s"), "dense": ("#8c6bb1", "D"),
    "idf-bag": ("#a6761d", "^"), "pretrained": ("#6baed6", "o"), "finetuned": ("#d94801", "o"),
}  # fmt: skip
OTHER_COLOURS = (
    "#1b9e77", "#e7298a", "#66a61e", "#1f78b4", "#e6ab02",
    "#00a5cf", "#5e3c99", "#80b1d3", "#f781bf", "#543005",
)  # fmt: skip
OTHER_MARKERS = "vP*X"
LOSS_PANELS = (
    ("mlm", "masked-LM loss"), ("mlm_accuracy", "masked-LM accuracy"),
    ("loss", "total loss"), ("kl", "KL to the teachers"), ("infonce", "InfoNCE"),
    ("margin_mse", "MarginMSE"), ("triplet", "triplet loss"), ("lexical", "lexical loss"),
    ("flops", "FLOPS loss"), ("query_flops", "FLOPS loss of queries"), ("l1", "L1"),
    ("idf_penalty", "IDF penalty"), ("df_flops", "DF-FLOPS"), ("anti_zero", "anti-zero"),
    ("lambda", "lambda"), ("d_nnz", "terms per document"), ("q_nnz", "terms per query"),
    ("overlap", "terms that two documents share"),
    ("eval_ndcg_at_10", "nDCG@10 on dev"), ("eval_flops", "FLOPS on dev"),
    ("grad_norm", "gradient norm"), ("learning_rate", "learning rate"), ("examples_per_s", "examples / s"),
)  # fmt: skip
LOG_SCALE = {"flops", "d_nnz"}
AS_IT_IS = {"lambda", "learning_rate", "eval_ndcg_at_10", "eval_flops"}  # nothing to smooth
TEXT, PUBLISHED, HOLLOW = "#333333", "#555555", "Do^sv<>"  # colours; markers of published figures
NAMED_AT_MOST = 6  # markers with their names beside them; of more it is not clear whose a name is


def set_style(hangul: bool = False) -> str | None:
    """Set readable defaults, and a font with Hangul if one is installed.

    Args:
        hangul: the figures will hold Korean, so say it in words if no installed font can show it.

    Returns:
        The name of the Hangul font; None if there is none (Korean labels then show boxes).
    """
    rcParams.update(
        {
            "figure.dpi": 100, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.facecolor": "white",
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
            "axes.axisbelow": True, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.labelsize": 10,
            "font.size": 10, "legend.frameon": False, "legend.fontsize": 9, "axes.unicode_minus": False,
        }
    )  # fmt: skip
    installed = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in HANGUL_FONTS if name in installed), None)
    if font is None and hangul:
        warnings.warn(
            "no font with Hangul is installed: Korean labels will show boxes. Install Noto Sans CJK or Nanum "
            "(Debian, Ubuntu: apt-get install fonts-noto-cjk) and delete matplotlib's font cache",
            stacklevel=2,
        )
    if font:
        # DejaVu first: it has the signs that the Korean fonts lack; the list is tried glyph by glyph.
        rcParams["font.family"] = ["DejaVu Sans", font]
    return font


def panels(n: int, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Make a figure with n Axes of one size, two in a row."""
    columns = min(n, 2)
    lines = -(-n // columns)
    fig = plt.figure(figsize=(width * columns, height * lines), layout="constrained")
    return fig, [fig.add_subplot(lines, columns, i + 1) for i in range(n)]


def style_of(system: str) -> tuple[str, str]:
    """Colour and marker of a system, the same in every figure."""
    if system in SYSTEM_STYLE:
        return SYSTEM_STYLE[system]
    number = crc32(system.encode())  # of the name, so that a system looks the same in every run
    number, colour = divmod(number, len(OTHER_COLOURS))
    return OTHER_COLOURS[colour], OTHER_MARKERS[number % len(OTHER_MARKERS)]


def relevance_flops(
    ax: Axes,
    rows: list[dict[str, Any]],
    metric: str = "ndcg_at_10",
    published: Sequence[dict[str, Any]] = (),
) -> Axes:
    """Draw relevance against FLOPS, one marker per system; up and to the left is better.

    A system without FLOPS (dense) is a dashed line at its height: it has no place on the x axis. Names stand
    at the markers, or beside the axes where there are more than NAMED_AT_MOST.

    Args:
        ax: where to draw.
        rows: metrics rows of one data set: system, flops (None = dense), and the metric (0 to 1).
        metric: name of the column on the y axis.
        published: figures of others (see nblib.published), drawn hollow; those without FLOPS are left out.
    """
    sparse, others = [r for r in rows if r.get("flops")], [r for r in published if r["flops"]]
    crowded = len(sparse) > NAMED_AT_MOST
    named = lambda row: f"{row['system']} {row[metric]:.3f}"  # noqa: E731
    for row in sorted(sparse, key=lambda r: -r[metric]):
        colour, marker = style_of(row["system"])
        label = named(row) if crowded else "_nolegend_"
        ax.plot(row["flops"], row[metric], marker, color=colour, markersize=9, label=label, zorder=3)
    for row, marker in zip(others, HOLLOW * len(others), strict=False):
        colour, label = PUBLISHED, named(row)
        ax.plot(row["flops"], row[metric], marker, color=colour, fillstyle="none", label=label, zorder=2)
    if others or crowded:
        title = ("hollow: published" if crowded else "published") if others else None
        ax.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    ax.set(
        xscale="log", xlabel="FLOPS: expected multiplications per pair (log scale)", ylabel=_pretty(metric)
    )
    ax.set_title("Relevance against cost")
    plain_log(ax)
    _pad_limits(ax, [r["flops"] for r in sparse + others], [r[metric] for r in [*rows, *others]])
    lines = [(row["system"], row[metric]) for row in rows if not row["flops"]]
    for name, height in lines:
        ax.axhline(height, color=style_of(name)[0], linestyle="--", linewidth=1.2, zorder=1)
    points = [] if crowded else [(r["system"], r["flops"], r[metric]) for r in sparse]
    free_of = [(r["flops"], r[metric]) for r in (others + sparse if crowded else others)]
    _label_points(ax, points, lines, free_of)
    return ax


def plain_log(ax: Axes) -> None:
    """Write 0.2, 50, 1,000 on a log x axis; powers of ten alone say little over one or two decades."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))


def _pad_limits(ax: Axes, x: list[float], y: list[float]) -> None:
    """Leave room for labels, and never zoom so far in that a difference of .001 looks like a gap."""
    if x:
        ax.set_xlim(min(x) / 3, max(x) * 3)
    middle, half = (min(y) + max(y)) / 2, max((max(y) - min(y)) / 2, 0.02) * 1.35
    ax.set_ylim(middle - half, middle + half)


def _label_points(ax: Axes, points: list[tuple], lines: list[tuple], free_of: Sequence[tuple] = ()) -> None:
    """Name points and dashed lines; each label takes the first free place around its point.

    free_of: (x, y) of other markers that no label may cover.
    """
    ax.figure.draw_without_rendering()  # the layout must stand before boxes are measured
    renderer = ax.figure.canvas.get_renderer()
    spots = [ax.transData.transform(xy) for xy in [*((x, y) for _, x, y in points), *free_of]]
    taken = [Bbox.from_extents(px - 7, py - 7, px + 7, py + 7) for px, py in spots]
    for name, height in lines:
        text = ax.annotate(
            f"{name} {height:.3f} (no FLOPS)", (1, height), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", xytext=(-4, 3), color=TEXT, fontsize=9,
        )  # fmt: skip
        _settle(text, [(-4, 3), (-4, -12), (-180, 3), (-180, -12)], taken, renderer)
    taken += [_strip(ax, height) for _, height in lines]  # no label may be struck through
    for name, x, y in sorted(points, key=lambda p: -p[2]):
        text = ax.annotate(
            f"{name} {y:.3f}", (x, y), textcoords="offset points", xytext=(0, 0), fontsize=9,
            color=TEXT, zorder=4,
        )  # fmt: skip
        width = text.get_window_extent(renderer).width * 72 / ax.figure.dpi
        places = [(8, 4), (8, -11), (-width - 8, 4), (-width - 8, -11), (-width / 2, 11), (-width / 2, -19)]
        farther = [(side, step) for step in (18, -25, 32, -39) for side in (8, -width - 8)]
        _settle(text, places + farther, taken, renderer)


def _strip(ax: Axes, height: float) -> Bbox:
    frame, y = ax.get_window_extent(), ax.transData.transform((1, height))[1]
    return Bbox.from_extents(frame.x0, y - 1, frame.x1, y + 1)


def _settle(text: Any, places: list[tuple[float, float]], taken: list[Bbox], renderer: Any) -> None:
    """Move an annotation to the first place (offset in points) inside the axes and free of other boxes."""
    frame = text.axes.get_window_extent(renderer)
    for place in [*places, places[0]]:  # if none is free, the first
        text.set_position(place)
        box = text.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    taken.append(text.get_window_extent(renderer))


def metric_bars(ax: Axes, rows: list[dict[str, Any]], metric: str = "ndcg_at_10") -> Axes:
    """Draw one horizontal bar per system, grouped by data set, with its value.

    Args:
        ax: where to draw.
        rows: metrics rows: dataset, system and the metric.
        metric: name of the column.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    ticks, names, y = [], [], 0.0
    for dataset in datasets:
        ax.text(0, y, f" {dataset}", fontweight="bold", va="center")
        y += 0.9
        for row in (r for r in rows if r["dataset"] == dataset):
            ax.barh(y, row[metric], height=0.75, color=style_of(row["system"])[0])
            ax.text(row[metric], y, f" {row[metric]:.3f}", va="center", fontsize=9)
            ticks.append(y)
            names.append(row["system"])
            y += 1
        y += 0.5
    ax.set_yticks(ticks, names)
    ax.set_ylim(y - 0.7, -0.7)  # the first system on top
    ax.set_xlim(0, max(row[metric] for row in rows) * 1.15 + 1e-9)
    ax.set(xlabel=_pretty(metric), title=f"{_pretty(metric)} by data set and system")
    ax.grid(axis="y", visible=False)
    return ax


def nnz_hist(ax: Axes, counts: dict[str, np.ndarray]) -> Axes:
    """Draw how many non-zero terms the documents have, one outline per system.

    Args:
        ax: where to draw.
        counts: system -> [N] int, non-zero terms of each document.
    """
    if not counts:
        ax.text(0.5, 0.5, "no sparse system", ha="center", transform=ax.transAxes)
        return ax
    largest = max(int(c.max()) for c in counts.values())
    smallest = max(1, min(int(c.min()) for c in counts.values()))
    bins = np.geomspace(smallest, max(largest, smallest + 1) * 1.02, 41)
    for name, count in counts.items():
        weights = np.full(len(count), 100 / len(count))
        label = f"{name}: mean {count.mean():,.0f}"
        lexical = style_of(name)[1] == "s"  # dashed and on top: bm25-tokens has the counts of idf-bag
        ax.hist(np.maximum(count, smallest), bins, weights=weights, histtype="step", linewidth=1.8,
                color=style_of(name)[0], label=label, linestyle="--" if lexical else "-",
                zorder=3 if lexical else 2)  # fmt: skip
    ax.set(xscale="log", xlabel="non-zero terms per document (log scale)", ylabel="documents, %")
    plain_log(ax)
    ax.set_title("Length of the documents in the index")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def idf_hist(ax: Axes, idf: np.ndarray, marked: dict[str, float] | None = None) -> Axes:
    """Draw the distribution of IDF weights, with a few tokens named at their weight.

    Args:
        ax: where to draw.
        idf: [V] weights in nats; zeros (special tokens) are left out.
        marked: token -> weight, to be named.
    """
    ax.hist(idf[idf > 0], bins=60, color="#6baed6")
    ax.set(yscale="log", xlabel="IDF (nats)", ylabel="tokens (log scale)", title="Most tokens are rare")
    for i, (token, weight) in enumerate(sorted((marked or {}).items(), key=lambda item: item[1])):
        ax.axvline(weight, color="#d94801", linewidth=0.8)
        ax.annotate(
            f" {token}", (weight, 0.97 - 0.07 * (i % 4)), xycoords=("data", "axes fraction"),
            color="#d94801", fontsize=9, va="top", bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8},
        )  # fmt: skip
    return ax


def training_losses(fig: Figure, log: list[dict[str, Any]], smooth: int = 20) -> Figure:
    """Draw every logged quantity of a training run in its own panel: raw faint, running mean strong.

    Args:
        fig: an empty figure.
        log: one dict per logged step: step, and any of loss, kl, infonce, flops, lambda, q_nnz, d_nnz,
            learning_rate, examples_per_s ..., see LOSS_PANELS. A panel appears only for what was logged.
        smooth: steps in the running mean.

    Raises:
        ValueError: the log is empty or holds none of these quantities.
    """
    panels = [(key, title) for key, title in LOSS_PANELS if any(key in entry for entry in log)]
    if not panels:
        raise ValueError(f"the log has {len(log)} lines and none of {[key for key, _ in LOSS_PANELS]}")
    fig.set_layout_engine("constrained")  # titles of one row must not touch the ticks of the row above
    columns = min(3, len(panels))
    grid = fig.subplots(-(-len(panels) // columns), columns, sharex=True, squeeze=False)
    for ax, (key, title) in zip(grid.flat, panels, strict=False):
        steps, values = np.array([(e["step"], e[key]) for e in log if e.get(key) is not None], float).T
        _curve(ax, steps, values, 1 if key in AS_IT_IS else smooth)
        ax.set_title(title)
        if key in LOG_SCALE and (values > 0).all() and values.max() > 20 * values.min():
            ax.set_yscale("log")
        else:
            ax.ticklabel_format(axis="y", scilimits=(-3, 5))
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in grid[-1]:
        ax.set_xlabel("step")
    return fig


def _curve(ax: Axes, steps: np.ndarray, values: np.ndarray, smooth: int) -> None:
    noisy = smooth > 1 and len(values) >= 3 * smooth
    ax.plot(steps, values, color="#6baed6" if noisy else "#08519c", alpha=0.45 if noisy else 1, linewidth=1)
    if noisy:
        mean = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
        first = (smooth - 1) // 2  # centred: a trailing mean would lag behind the curve
        ax.plot(steps[first : first + len(mean)], mean, color="#08519c", linewidth=1.6)


def _pretty(metric: str) -> str:
    name, _, k = metric.partition("_at_")
    return {"ndcg": "nDCG", "mrr": "MRR", "recall": "Recall"}.get(name, name) + (f"@{k}" if k else "")
