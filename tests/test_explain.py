"""Explanations: contributions by hand, and HTML that a hostile text cannot break."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.bags import query_matrix, token_matrix
from nblib.encoded import Blocks
from nblib.explain import (
    Match,
    clean_token,
    explain_queries,
    explanation_html,
    explanation_page,
    matched_terms,
)
from nblib.search.inverted import top_k


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(EMBEDDED)


def weights(tokenizer, **terms) -> csr_matrix:
    row = np.zeros((1, len(tokenizer)), dtype=np.float32)
    for token, weight in terms.items():
        row[0, tokenizer.convert_tokens_to_ids(token)] = weight
    return csr_matrix(row)


def test_contributions_by_hand(tokenizer):
    q = weights(tokenizer, table=2.0, sort=3.0, the=0.5)
    d = weights(tokenizer, table=1.5, sort=0.5, order=4.0)
    own = weights(tokenizer, table=1.0)
    assert matched_terms(q, d, tokenizer, own) == [
        Match("table", 2.0, 1.5, 3.0, False),
        Match("sort", 3.0, 0.5, 1.5, True),
    ]
    assert [m.added for m in matched_terms(q, d, tokenizer)] == [False, False]
    assert matched_terms(q, weights(tokenizer, order=1.0), tokenizer) == []


def test_contributions_sum_to_the_score(tokenizer):
    rng = np.random.default_rng(0)
    q, d = (csr_matrix(rng.random((1, len(tokenizer))) * (rng.random(len(tokenizer)) < 0.01)) for _ in "qd")
    matches = matched_terms(q, d, tokenizer)
    assert sum(m.contribution for m in matches) == pytest.approx((q @ d.T).toarray()[0, 0])
    parts = [m.contribution for m in matches]
    assert parts == sorted(parts, reverse=True) and len(parts) > 0


def test_rows_of_different_shape_are_refused(tokenizer):
    with pytest.raises(ValueError, match="single rows"):
        matched_terms(csr_matrix((1, 3)), csr_matrix((1, 4)), tokenizer)
    with pytest.raises(ValueError, match="single rows"):
        matched_terms(csr_matrix((2, 3)), csr_matrix((2, 3)), tokenizer)


@pytest.mark.parametrize(
    ("token", "shown"),
    [("##ing", "-ing"), ("##", "##"), ("▁the", "the"), ("Ġthe", "the"), ("▁", "▁"), ("a", "a")],
)
def test_subword_marks_are_cleaned(token, shown):
    assert clean_token(token) == shown


TEXTS = ["sort the table by <script>alert(1)</script> column", "draw a figure", "read tables"]


@pytest.fixture(scope="module")
def rows(tokenizer):
    data = SimpleNamespace(
        doc_ids=["d&0", "d1", "d2"],
        texts=TEXTS,
        query_ids=["q0", "q1", "q2", "q3"],
        queries=["sort <b>table</b>", "draw quickly", "zebra", "figure"],
        qrels={"q0": {"d&0": 1}, "q1": {"d2": 1, "d1": 0}, "q2": {"d1": 1}, "q3": {"d2": 1}},
    )
    d_reps = token_matrix(TEXTS, tokenizer).tolil()
    d_reps[2, tokenizer.convert_tokens_to_ids("figure")] = 0.5  # an expansion: "read tables" says no figure
    d_reps = d_reps.tocsr()
    idf = np.ones(len(tokenizer), dtype=np.float32)
    idf[tokenizer.all_special_ids] = 0
    q_reps = query_matrix(data.queries, tokenizer, idf)
    index, scores = top_k(q_reps, d_reps, 3)
    result = SimpleNamespace(q_reps=q_reps, d_reps=Blocks.whole(d_reps), index=index, scores=scores)
    return explain_queries(data, result, tokenizer, max_length=32, n=10)


def test_each_query_has_its_top_document_and_its_verdict(rows):
    first, second, third, fourth = rows
    assert first["doc_id"] == "d&0" and first["judged"] and first["judged_rank"] == 1
    assert second["doc_id"] == "d1" and not second["judged"]  # judged with grade 0 is not relevant
    assert second["judged_rank"] is None and second["judged_id"] == "d2"
    assert [token for token, _ in second["missed"]] == ["quickly"]
    assert third["doc_id"] is None and third["matches"] == [] and third["missed"]
    assert fourth["doc_id"] == "d1" and fourth["judged_rank"] == 2
    for row in rows:
        assert sum(m.contribution for m in row["matches"]) == pytest.approx(row["score"])


def test_added_terms_are_told_from_said_ones(rows, tokenizer):
    d_reps = weights(tokenizer, figure=0.5, read=1.0)
    own = token_matrix(["read tables"], tokenizer, 32)
    added = {m.token: m.added for m in matched_terms(d_reps, d_reps, tokenizer, own)}
    assert added == {"read": False, "figure": True}


def test_a_term_beyond_the_cut_counts_as_added(tokenizer):
    own = token_matrix(["read the table"], tokenizer, max_length=4)  # [CLS] read the [SEP]
    row = weights(tokenizer, table=1.0)
    assert matched_terms(row, row, tokenizer, own)[0].added


def test_the_sample_is_fixed_by_the_seed(rows, tokenizer):
    assert len(rows) == 4  # fewer queries than asked for: all, in their order
    assert [row["query"] for row in rows] == ["sort <b>table</b>", "draw quickly", "zebra", "figure"]


class Strict(HTMLParser):
    """Collects tags and fails on one that is closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_well_formed_escaped_and_brings_no_style_sheet(rows):
    page = Strict()
    page.feed(explanation_html(rows))
    assert page.open == []
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "style", "link"}
    assert (
        "sort <b>table</b>" in page.text and "<script>alert(1)</script>" in page.text and "d&0" in page.text
    )
    assert page.text.count("✓") == 1 and "d2 was not found" in page.text and "d2 is at rank 2" in page.text
    assert "no hit" in page.text and "not in it: quickly" in page.text
    assert sum(tag == "tr" for tag, _ in page.seen) == 1 + len(rows)


def test_the_page_of_its_own_is_whole_and_follows_the_dark_setting(rows):
    page = Strict()
    html = explanation_page(rows, "a < b")
    page.feed(html.replace("<meta ", "<br ").removeprefix("<!doctype html>"))
    assert page.open == [] and "a < b" in page.text
    assert 'name="color-scheme" content="light dark"' in html and 'charset="utf-8"' in html


def test_no_opaque_colour_that_a_dark_page_would_clash_with(rows):
    html = explanation_html(rows)
    assert "background:#" not in html and "background:white" not in html and "color:black" not in html
    assert "background:rgba(" in html


def test_chips_show_shade_dashes_and_weights():
    matches = [Match("sort", 2.0, 3.0, 6.0, False), Match("##ing", 1.0, 1.5, 1.5, True)]
    row = {
        "query": "q",
        "doc_id": "d",
        "text": "x" * 300,
        "score": 7.5,
        "matches": matches,
        "missed": [("the", 0.1)],
    }
    row |= {"judged": True, "judged_rank": 1, "judged_id": "d"}
    page = Strict()
    page.feed(explanation_html([row], max_chars=50).split("</thead>")[1].replace("</table>", ""))
    chips = [attrs for tag, attrs in page.seen if tag == "span" and "border-radius" in attrs.get("style", "")]
    assert [c["title"] for c in chips] == [
        "query 2.00 × document 3.00 = 6.00",
        "query 1.00 × document 1.50 = 1.50",
    ]
    assert "solid" in chips[0]["style"] and "dashed" in chips[1]["style"]
    shades = [float(c["style"].split(",")[3].split(")")[0]) for c in chips]
    assert shades == pytest.approx([0.5, 0.18], abs=0.01)
    assert "+ -ing" in page.text and "x" * 50 + "…" in page.text and "7.5" in page.text
    only_one = explanation_html([row], max_chips=1)
    assert "and 1 more, 1.5" in only_one
