"""What a reader would miss in the figures of the sweeps; each is drawn for real."""

import matplotlib
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

from nblib.sweep import figures  # noqa: E402


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close("all")


def point(value, ndcg, flops, knee=False):
    row = {"lambda": value, "seeds": 2, "ndcg_at_10": ndcg, "flops": flops, "knee": knee}
    return (
        row
        | {"ndcg_at_10_low": ndcg - 0.01, "ndcg_at_10_high": ndcg + 0.02, "flops_low": flops}
        | {"flops_high": 1.1 * flops}
    )


CURVE = [point(0.001, 0.59, 2.0), point(0.01, 0.58, 1.0, knee=True), point(9.0, 0.0, 0.0)]
OTHERS = [{"system": "bm25", "ndcg_at_10": 0.6, "flops": 0.8}]
PUBLISHED = [{"system": "OS v1", "ndcg_at_10": 0.524, "flops": 11.4}]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_curve_names_lambdas_knee_and_references(ax):
    figures.relevance_cost(ax, CURVE, OTHERS, [])
    assert texts(ax) == ["bm25", "0.01", "0.001"], "a point without terms has no place on a log axis"
    (errors,) = ax.containers
    _, _, (_, bars) = errors
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.57, 0.60))
    _, labels = ax.get_legend_handles_labels()
    assert (
        "knee, chosen on dev: lambda 0.01" in labels and "ours, named by lambda; bars span 2 seeds" in labels
    )


def test_published_models_have_an_axis_of_their_own(ax):
    figures.relevance_cost(ax, CURVE, OTHERS, PUBLISHED)
    (other,) = [axes for axes in ax.figure.axes if axes is not ax]
    assert texts(other) == ["v1"] and "BEIR-13" in other.get_ylabel()
    assert ax.get_xlim()[1] > 11.4 and max(ax.get_yticks()) < 0.62, "no tick of ours beside them"
    lowest = other.transData.transform((11.4, 0.524))[1]
    assert lowest > ax.transData.transform((1, 0.61))[1], "above all of ours"


def test_differences_of_variants(ax):
    row = {"variant": "without IDF", "diff": -0.02, "diff_low": -0.03, "diff_high": -0.01}
    row |= {"paper_diff": -0.017, "flops": 1.5, "seeds": 3}
    full = {"variant": "full", "diff": None, "seeds": 3}
    lone = row | {"variant": "no pretraining", "diff_low": None, "diff_high": None, "paper_diff": None}
    figures.differences(ax, [full, row, lone])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["without IDF", "no pretraining"]
    assert texts(ax)[0] == "-0.020, FLOPS 1.50"
    figures.differences(ax, [full])
