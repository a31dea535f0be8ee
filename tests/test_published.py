"""Published figures: the file against the averages its sources state, and when they may be shown."""

import pytest

from nblib.published import BEIR13, MEAN, SIZES, beir13_mean, is_whole, published, published_for

# As stated beside the figures: OpenSearch's model cards; Anserini's own thirteen-set averages are not stated.
STATED = {
    "OS v1": (0.524, 11.4), "OS v2-distill": (0.528, 8.3), "OS doc-v1": (0.490, 2.3),
    "OS doc-v2-distill": (0.504, 1.8), "OS doc-v2-mini": (0.497, 1.7), "OS doc-v3-distill": (0.517, 1.8),
    "OS doc-v3-gte": (0.546, 1.7),
}  # fmt: skip


def row(dataset, n_docs, n_queries):
    return {"dataset": dataset, "system": "bm25", "n_docs": n_docs, "n_queries": n_queries}


def test_means_agree_with_the_stated_averages():
    means = {one["system"]: one for one in beir13_mean(list(published()))}
    assert set(STATED) | {"BM25", "SPLADE++ ED", "SPLADE-v3"} == set(means)
    for system, (ndcg, flops) in STATED.items():
        assert means[system]["ndcg_at_10"] == pytest.approx(ndcg, abs=0.0006), system
        assert means[system]["flops"] == pytest.approx(flops) and means[system]["dataset"] == MEAN
    assert means["BM25"]["flops"] is None


def test_every_figure_has_a_source_and_a_known_set():
    assert len(BEIR13) == 13
    keys = [(one["dataset"], one["system"]) for one in published()]
    assert len(set(keys)) == len(keys) and {dataset for dataset, _ in keys} == set(SIZES)
    for one in published():
        assert 0 < one["ndcg_at_10"] < 1 and "Apache-2.0" in one["source"]


def test_only_whole_sets_have_published_figures():
    assert is_whole(row("scifact", 5183, 300))
    assert is_whole(row("nq", 2_681_000, 3452)), "mirrors differ by some documents"
    assert not is_whole(row("scifact", 5183, 50)), "a sample of the queries"
    assert not is_whole(row("scifact", 2000, 300)), "a sample of the documents"
    assert not is_whole(row("climate-fever-sent", 5240, 1061)), "another collection"
    rows = published_for([row("scifact", 5183, 300), row("climate-fever", 5240, 1061)])
    assert {one["dataset"] for one in rows} == {"scifact"} and len(rows) == 10


def test_a_mean_needs_all_thirteen():
    rows = [one | {"system": "x"} for one in published() if one["system"] == "BM25"]
    (mean,) = beir13_mean(rows)
    assert mean["ndcg_at_10"] == pytest.approx(0.437, abs=0.0005)
    assert beir13_mean([one for one in rows if one["dataset"] != "quora"]) == []
