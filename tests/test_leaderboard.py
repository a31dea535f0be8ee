"""The table of data sets x systems: bold, marks, mean, and published figures apart from our own."""

import re

import pytest

from nblib.leaderboard import leaderboard_frame, leaderboard_html, leaderboard_markdown, make_leaderboard
from nblib.published import published_for


def row(dataset, system, value, diff=None, p=None, size=(5183, 300)):
    against = {"diff_vs_bm25": diff, "p_holm_vs_bm25": p}
    sizes = {"n_docs": size[0], "n_queries": size[1]}
    return {"dataset": dataset, "system": system, "ndcg_at_10": value} | against | sizes


ROWS = [
    row("scifact", "bm25", 0.6),
    row("scifact", "dense", 0.55, -0.05, 0.04),
    row("scifact", "fine|tuned", 0.60004, 0.00004, 0.9),
    row("cacm", "bm25", 0.2),
    row("cacm", "dense", 0.4, 0.2, 0.0499),
    row("cacm", "fine|tuned", 0.3, 0.1, 0.05),
    row("med", "bm25", 0.9),
]


@pytest.fixture
def leaderboard():
    return make_leaderboard(ROWS, published_for(ROWS), "bm25")


def lines(leaderboard):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in leaderboard_markdown(leaderboard).splitlines()
        if line.startswith("|")
    ]


def test_bold_marks_and_mean_by_hand(leaderboard):
    head, _, scifact, cacm, med, mean, published_head, *_ = lines(leaderboard)
    assert head == ["data set", "bm25", "dense", "fine\\|tuned"]
    assert scifact == ["scifact", "**.600**", ".550 -", "**.600**"], "equal as shown: both are bold"
    assert cacm == ["cacm", ".200", "**.400 +**", ".300"], "p = .05 is not below .05"
    assert med == ["med", "**.900**", "", ""]
    assert mean == ["mean of 2 sets, of 3", ".400", "**.475**", ".450"], "not over med, which one system has"
    assert published_head[0] == "published"
    assert "over the sets that all systems have" in leaderboard_markdown(leaderboard)


def test_published_figures_stand_apart(leaderboard):
    published_head, _, *figures = lines(leaderboard)[6:]
    assert [line[0] for line in figures] == ["scifact"], "no mean: cacm has no published figure"
    held = dict(zip(published_head[1:], figures[0][1:], strict=True))
    assert held["BM25"] == "*.679*" and held["OS doc-v3-gte"] == "*.725*"
    alone = make_leaderboard(ROWS, [], "bm25")
    assert lines(alone) == lines(leaderboard)[:6], "bold, marks and mean do not know of them"
    assert "Anserini" in leaderboard_markdown(leaderboard) and "Anserini" not in leaderboard_markdown(alone)


def test_the_published_mean_is_over_the_same_sets():
    rows = [row("scifact", "bm25", 0.6), row("nfcorpus", "bm25", 0.3, size=(3633, 323))]
    head, _, *figures = lines(make_leaderboard(rows, published_for(rows)))[5:]
    assert figures[-1][0] == "mean of 2 sets"
    assert figures[-1][1] == "*.500*", "BM25: .6789 and .3218"


def test_the_frame_holds_numbers(leaderboard):
    frame = leaderboard_frame(leaderboard).set_index("dataset")
    assert frame.loc["cacm", "dense"] == 0.4 and frame.loc["mean of 2 sets, of 3", "dense"] == 0.475
    assert frame["dense against bm25"].tolist() == ["-", "+", "", ""]
    assert "bm25 against bm25" not in frame
    assert frame.loc["scifact", "published: BM25"] == 0.6789 and frame["published: BM25"].count() == 1


def test_html_escapes_and_needs_no_style_sheet():
    rows = [row("<b>", "a&b", 0.5)]
    html = leaderboard_html(make_leaderboard(rows, []))
    assert "<b>" not in html.replace("<b>.500</b>", "") and "&lt;b&gt;" in html and "a&amp;b" in html
    assert "<style" not in html and "overflow-x:auto" in html
    assert "better and worse" not in html, "no baseline, no marks"


def test_html_says_the_same_as_markdown(leaderboard):
    html = leaderboard_html(leaderboard)
    for text in ("<b>.400</b>", ">+</span>", ">−</span>", "<i>.679</i>", "mean of 2 sets, of 3"):
        assert text in html, text
