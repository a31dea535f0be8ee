"""Figures of the live cluster."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from nblib.opensearch.load import BASE, Load, relative
from nblib.plots import panels

MARKERS = "osD^v<>P"
PAPER_RATIO = 1.1  # arXiv:2411.04403, abstract: latency of the sparse search over that of BM25


def latency(loads: Sequence[Load]) -> Figure:
    """Draw times, their ratio to BM25's in the same index, and the rate, by the number of clients.

    loads: of `nblib.opensearch.load.measure`, for several numbers of clients.
    """
    fig, axes = panels(4)
    ratio = relative(loads)
    drawn = [
        ("p50 of a search, ms", lambda one: one.p50_ms),
        ("p99 of a search, ms", lambda one: one.p99_ms),
        (f"p99 over that of {BASE}", lambda one: ratio[one.mode, one.clients]),
        ("searches per second, all clients", lambda one: one.queries_per_s),
    ]
    modes = list(dict.fromkeys(one.mode for one in loads))
    numbers = sorted({one.clients for one in loads})
    for ax, (label, value) in zip(axes, drawn, strict=True):
        for number, mode in enumerate(modes):
            own = sorted((one for one in loads if one.mode == mode), key=lambda one: one.clients)
            colour, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
            xs, ys = [one.clients for one in own], [value(one) for one in own]
            ax.plot(xs, ys, marker=marker, color=colour, label=mode)
        ax.set(xscale="log", yscale="log", xlabel="clients at a time", ylabel=label)
        ax.set_xticks(numbers, [str(number) for number in numbers])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
    axes[2].axhline(PAPER_RATIO, color="0.4", linestyle="--", label="1.1 in the paper")
    handles, names = axes[2].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8)
    return fig
