"""The figures are drawn for real; what is checked is what a reader would miss: labels, overlaps, axes."""

import warnings

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import font_manager  # noqa: E402

from nblib import plots  # noqa: E402

NAMES = ["bm25", "bm25-tokens", "dense", "idf-bag", "pretrained", "finetuned"]


def rows(ndcg, flops, dataset="set"):
    columns = zip(NAMES, ndcg, flops, strict=True)
    return [{"dataset": dataset, "system": s, "ndcg_at_10": n, "flops": f} for s, n, f in columns]


CASES = {
    "spread": ([0.563, 0.507, 0.511, 0.439, 0.506, 0.534], [0.21, 1.45, None, 0.95, 2.9, 1.47]),
    "crowded": ([0.500, 0.501, 0.502, 0.499, 0.500, 0.503], [1.0, 1.02, None, 0.98, 1.01, 1.0]),
    "all equal": ([0.4] * 6, [1.0, 1.3, None, 0.7, 2.0, 0.5]),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("case", CASES)
def test_every_system_is_named_and_no_labels_overlap(case):
    fig, ax = plt.subplots(figsize=(6.4, 4))
    assert plots.relevance_flops(ax, rows(*CASES[case])) is ax
    fig.canvas.draw()
    texts = [t for t in ax.texts if t.get_text()]
    for name, value in zip(NAMES, CASES[case][0], strict=True):
        assert sum(t.get_text().startswith(f"{name} {value:.3f}") for t in texts) == 1
    boxes = [t.get_window_extent() for t in texts]
    frame = ax.get_window_extent()
    (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    struck = ax.transData.transform((1, dashed.get_ydata()[0]))[1]
    for i, box in enumerate(boxes):
        assert not box.y0 <= struck <= box.y1, texts[i].get_text()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, texts[i].get_text()
        for other in boxes[i + 1 :]:
            assert not box.overlaps(other), (case, texts[i].get_text())


def test_dense_is_a_dashed_line_and_has_no_marker():
    _, ax = plt.subplots()
    plots.relevance_flops(ax, rows(*CASES["spread"]))
    (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert set(dashed.get_ydata()) == {0.511}
    markers = [line for line in ax.lines if line.get_marker() in ("o", "s", "^", "D")]
    assert len(markers) == 5 and ax.get_xscale() == "log"


def test_relevance_flops_with_a_dense_system_only():
    _, ax = plt.subplots()
    plots.relevance_flops(ax, rows(*CASES["spread"])[2:3])
    assert len(ax.texts) == 1


def test_published_points_are_hollow_named_beside_the_axes_and_left_free():
    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    others = [{"system": f"P{i}", "ndcg_at_10": 0.5 + i / 100, "flops": 1 + i} for i in range(7)]
    unknown = {"system": "no flops", "ndcg_at_10": 0.9, "flops": None}
    plots.relevance_flops(ax, rows(*CASES["spread"]), published=[*others, unknown])
    fig.canvas.draw()
    hollow = [line for line in ax.lines if line.get_fillstyle() == "none"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow] == [
        (one["flops"], one["ndcg_at_10"]) for one in others
    ]
    assert len({line.get_marker() for line in hollow}) == 7
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "published"
    assert [t.get_text() for t in legend.get_texts()][:2] == ["P0 0.500", "P1 0.510"]
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
    for text in ax.texts:
        box = text.get_window_extent()
        for line in hollow:
            assert not box.contains(*ax.transData.transform(line.get_xydata()[0])), text.get_text()


def test_many_systems_are_named_beside_the_axes():
    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    variants = [{"system": f"finetuned-{i}", "ndcg_at_10": 0.5 + i / 1000, "flops": 2.0} for i in range(7)]
    dense = {"system": "dense", "ndcg_at_10": 0.503, "flops": None}
    other = {"system": "P", "ndcg_at_10": 0.51, "flops": 3.0}
    plots.relevance_flops(ax, [*variants, dense], published=[other])
    fig.canvas.draw()
    legend = ax.get_legend()
    said = [t.get_text() for t in legend.get_texts()]
    assert said == [f"finetuned-{i} {0.5 + i / 1000:.3f}" for i in range(6, -1, -1)] + ["P 0.510"]
    assert legend.get_title().get_text() == "hollow: published"
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
    assert [t.get_text() for t in ax.texts] == ["dense 0.503 (no FLOPS)"]


def test_bars_carry_their_values_and_data_sets():
    _, ax = plt.subplots()
    both = rows(*CASES["spread"], "one") + rows(*CASES["crowded"], "two")
    plots.metric_bars(ax, both)
    assert len(ax.patches) == 12
    assert [p.get_width() for p in ax.patches] == [r["ndcg_at_10"] for r in both]
    words = [t.get_text().strip() for t in ax.texts]
    assert {"one", "two", "0.563", "0.439"} <= set(words)
    assert [t.get_text() for t in ax.get_yticklabels()] == NAMES * 2
    low, high = ax.get_ylim()
    assert low > high, "the first system stands on top"


def test_bars_of_zero_do_not_break():
    _, ax = plt.subplots()
    plots.metric_bars(ax, [{"dataset": "d", "system": "bm25", "ndcg_at_10": 0.0}])


def test_histogram_counts_every_document_even_empty_ones():
    _, ax = plt.subplots()
    plots.nnz_hist(ax, {"finetuned": np.array([0, 5, 50, 500]), "idf-bag": np.array([7, 7])})
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["finetuned: mean 139", "idf-bag: mean 7"]
    for outline in ax.patches:
        assert max(outline.get_xy()[:, 0]) >= 500
    flat = [p for p in ax.patches if p.get_edgecolor() == matplotlib.colors.to_rgba("#d94801")]
    heights = flat[0].get_xy()[:, 1]
    assert sum(heights[1:-1:2]) == pytest.approx(100)  # percent


def test_histogram_of_one_value():
    fig, ax = plt.subplots()
    plots.nnz_hist(ax, {"bm25": np.array([1, 1, 1])})
    fig.canvas.draw()


def training_log(n):
    return [
        {"step": i + 1, "loss": 1 / (i + 1), "kl": 1.0, "d_nnz": 400 / (i + 1), "lambda": i * 1e-3}
        for i in range(n)
    ]


def test_losses_get_a_panel_each_and_only_if_logged():
    fig = plots.training_losses(plt.figure(), training_log(100) + [{"step": 100, "eval": 1.0}])
    titles = [ax.get_title() for ax in fig.axes if ax.axison]
    assert titles == ["total loss", "KL to the teachers", "lambda", "terms per document"]
    raw, mean = fig.axes[0].lines
    assert len(raw.get_xdata()) == 100
    assert mean.get_ydata()[0] == pytest.approx(np.mean([1 / i for i in range(1, 21)]))
    assert 1 < mean.get_xdata()[0] < 20, "centred"
    assert len(fig.axes[2].lines) == 1, "a schedule is not smoothed"
    assert fig.axes[3].get_yscale() == "log"


def test_a_short_log_is_drawn_and_an_empty_one_refused():
    plots.training_losses(plt.figure(), training_log(1)).canvas.draw()
    with pytest.raises(ValueError, match="0 lines"):
        plots.training_losses(plt.figure(), [])
    with pytest.raises(ValueError, match="1 lines and none of"):
        plots.training_losses(plt.figure(), [{"step": 1}])


def test_idf_histogram_leaves_special_tokens_out():
    _, ax = plt.subplots()
    plots.idf_hist(ax, np.array([0.0, 0.0, 1.0, 2.0, 2.0]), {"the": 1.0})
    assert sum(p.get_height() for p in ax.patches) == 3
    assert ax.texts[0].get_text().strip() == "the"


def test_style_takes_an_installed_hangul_font_or_says_that_there_is_none(monkeypatch):
    with matplotlib.rc_context(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert plots.set_style() is None or not caught
        font = plots.set_style(hangul=True)
        installed = {f.name for f in font_manager.fontManager.ttflist} & set(plots.HANGUL_FONTS)
        assert (font in installed) if installed else (font is None and "Hangul" in str(caught[0].message))
    real = font_manager.fontManager.ttflist[0]
    with matplotlib.rc_context():
        monkeypatch.setattr(plots, "HANGUL_FONTS", ("no such font", real.name))
        assert plots.set_style() == real.name and real.name in matplotlib.rcParams["font.family"]
