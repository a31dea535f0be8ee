"""Metrics and costs by hand, against BEIR, and the guide's evaluate_model against a plain computation."""

import math

import beir.retrieval.custom_metrics
import beir.retrieval.evaluation
import numpy as np
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval

from nblib.evaluate import (
    COLUMNS,
    RELEVANCE,
    evaluate_model,
    mean_scores,
    metrics_row,
    read_trec,
    score_run,
    write_trec,
)
from nblib.experiment import load_eval_set
from nblib.files import ROOT
from nblib.published import published_for
from nblib.retrieval import search_all
from nblib.search.exact import to_run
from nblib.systems import bm25

SCIFACT = ROOT.parent / "shared" / "data" / "scifact"
CORPUS = {
    "d1": {"title": "", "text": "Sort the rows of a table by one column."},
    "d2": {"title": "", "text": "Draw a line between two points of the figure."},
    "d3": {"title": "Read", "text": "Load a table from a file on disk."},
    "d4": {"title": "", "text": "Compute the mean of each column."},
}
QUERIES = {"q1": "sort a table", "q2": "draw a figure", "q3": "mean of a column", "q4": "never judged"}
QRELS = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d4": 2, "d1": 1}}


def test_ndcg_mrr_recall_by_hand():
    qrels = {"q": {"a": 2, "b": 1, "c": 0}}
    per_query = score_run(qrels, {"q": {"x": 9.0, "b": 8.0, "c": 7.0, "a": 6.0}})["q"]
    # Gains 0, 1, 0, 2 at ranks 1 to 4; the ideal order is 2, 1.
    dcg = 1 / math.log2(3) + 2 / math.log2(5)
    assert per_query["ndcg_at_10"] == pytest.approx(dcg / (2 + 1 / math.log2(3)))
    assert per_query["mrr_at_10"] == 0.5
    assert per_query["recall_at_10"] == 1.0
    assert per_query["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_map_reaches_as_deep_as_the_run_and_a_missing_document_adds_nothing():
    run = {"q": {f"d{i:04}": 2000.0 - i for i in range(1500)}}
    assert score_run({"q": {"d0000": 1, "d1200": 1}}, run)["q"]["map"] == pytest.approx((1 + 2 / 1201) / 2)
    assert score_run({"q": {"d0000": 1, "none": 1}}, run)["q"]["map"] == 0.5


def test_cut_offs():
    run = {"q": {f"d{i:02}": 100.0 - i for i in range(30)}}  # d10 at rank 11
    scores = score_run({"q": {"d10": 1, "none": 1}}, run)["q"]
    assert scores["mrr_at_10"] == 0.0 and scores["mrr_at_100"] == pytest.approx(1 / 11)
    assert scores["recall_at_10"] == 0.0 and scores["recall_at_100"] == 0.5
    assert score_run({"q": {"d09": 1}}, run)["q"]["mrr_at_10"] == pytest.approx(0.1)  # rank 10 is inside


def test_queries_without_hits_count_zero_and_unjudged_ones_do_not_count():
    scores = score_run(
        {"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}}, {"a": {"d": 1.0}, "b": {}, "z": {"d": 1.0}}
    )
    assert set(scores) == {"a", "b", "c"}
    assert mean_scores(scores)["ndcg_at_10"] == pytest.approx(1 / 3)


def test_identical_ids_are_dropped_unless_told_otherwise():
    run = {"x": {"x": 2.0, "d": 1.0}}
    assert score_run({"x": {"d": 1}}, run)["x"]["mrr_at_10"] == 1.0
    assert score_run({"x": {"d": 1}}, run, ignore_identical_ids=False)["x"]["mrr_at_10"] == 0.5
    assert "x" in run["x"]  # unlike BEIR's, ours leaves the run alone


def test_equal_scores_follow_trec_eval_not_the_order_of_the_run():
    one, other = {"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1.0, "a": 1.0}}
    assert score_run({"q": {"a": 1}}, one) == score_run({"q": {"a": 1}}, other)
    assert score_run({"q": {"b": 1}}, one)["q"]["mrr_at_10"] == 1.0  # largest id first


def beir_means(monkeypatch, qrels, run, ignore=True):
    """Measure by BEIR's own evaluator, without its rounding to 5 digits; a global hides the builtin."""
    for module in (beir.retrieval.evaluation, beir.retrieval.custom_metrics):
        monkeypatch.setattr(module, "round", lambda value, digits: value, raising=False)
    copied = {qid: dict(hits) for qid, hits in run.items()}  # BEIR drops ids in place
    cuts = [10, 100, 1000]
    ndcg, average, recall, _ = EvaluateRetrieval.evaluate(qrels, copied, cuts, ignore_identical_ids=ignore)
    mrr = EvaluateRetrieval.evaluate_custom(qrels, copied, [10], "mrr")
    return {f"recall_at_{k}": recall[f"Recall@{k}"] for k in cuts} | {
        "ndcg_at_10": ndcg["NDCG@10"], "map": average["MAP@1000"], "mrr_at_10": mrr["MRR@10"]
    }  # fmt: skip


@pytest.mark.parametrize("ignore", [True, False])
def test_equals_beir_on_a_made_up_set(monkeypatch, ignore):
    rng = np.random.default_rng(0)
    ids = [f"d{i}" for i in range(200)]
    qrels = {
        f"q{i}": {d: int(rng.integers(0, 3)) for d in rng.choice(ids, 8, replace=False)} for i in range(25)
    }
    qrels["d5"] = {"d5": 1, "d6": 1}  # a query that is also a document
    run = {
        q: dict(zip(rng.permutation(ids)[:150].tolist(), rng.random(150).tolist(), strict=True))
        for q in qrels
    }
    run["d5"]["d5"] = 2.0
    ours = mean_scores(score_run(qrels, run, ignore_identical_ids=ignore))
    theirs = beir_means(monkeypatch, qrels, run, ignore)
    assert set(theirs) == set(RELEVANCE)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="../shared/data is not there")
def test_bm25_on_scifact_equals_brute_force_beir_and_the_published_figure(monkeypatch):
    data = load_eval_set(str(SCIFACT), "", "test")
    (result,) = search_all([bm25("english")], data.texts, data.queries, 1000, timed_queries=5)
    found = to_run(data.query_ids, data.doc_ids, result.index, result.scores)
    ours = mean_scores(score_run(data.qrels, found))
    full = (
        result.q_reps.astype(np.float64) @ result.d_reps.to_csr().T.astype(np.float64)
    ).toarray()  # [Q, N]
    order = np.argsort(-full, axis=1, kind="stable")[:, :1000]
    brute = to_run(data.query_ids, data.doc_ids, order, np.take_along_axis(full, order, axis=1))
    brute = {q: {d: float(np.float32(s)) for d, s in hits.items() if s > 0} for q, hits in brute.items()}
    for run in (found, brute):
        theirs = beir_means(monkeypatch, data.qrels, run)
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)

    row = metrics_row(data.name, "test", "bm25", score_run(data.qrels, found), {}, len(data.texts),
                      top_k=1000, ignore_identical_ids=True)  # fmt: skip
    (anserini,) = [one for one in published_for([row]) if one["system"] == "BM25"]
    assert anserini["ndcg_at_10"] == 0.6789
    assert ours["ndcg_at_10"] == pytest.approx(anserini["ndcg_at_10"], abs=0.01)
    assert ours["ndcg_at_10"] == pytest.approx(0.686, abs=0.002)  # of data/README.md, by bm25s itself
    assert ours["recall_at_100"] == pytest.approx(0.913, abs=0.005)


@pytest.mark.parametrize(
    ("qrels", "run", "words"),
    [
        ({}, {"q": {"d": 1.0}}, "qrels are empty"),
        ({"q": {"d": 1}}, {"other": {"d": 1.0}}, "no query of the run"),
        ({"q": {"d": 1}}, {"q": {"d": float("nan")}}, "'d': score nan"),
    ],
)
def test_runs_that_cannot_be_measured_are_refused(qrels, run, words):
    with pytest.raises(ValueError, match=words):
        score_run(qrels, run)


RULES = {"top_k": 100, "ignore_identical_ids": False}


def test_a_row_has_the_columns_of_the_contract_in_order():
    per_query = score_run({"q": {"d": 1}}, {"q": {"d": 1.0}})
    row = metrics_row("set", "test", "dense", per_query, {"encode_docs_per_s": 5.0}, 3, **RULES)
    assert tuple(row) == COLUMNS == (
        "dataset", "split", "system", "ndcg_at_10", "mrr_at_10", "map", "recall_at_10", "recall_at_100",
        "recall_at_1000", "flops", "q_nnz", "d_nnz", "l1", "index_bytes", "build_s", "encode_docs_per_s",
        "query_ms_p50", "query_ms_p99", "queries_per_s_1", "queries_per_s_2", "queries_per_s_4", "top_k",
        "ignore_identical_ids", "n_queries", "n_docs",
    )  # fmt: skip
    assert row["top_k"] == 100 and row["ignore_identical_ids"] is False
    assert row["flops"] is None and row["n_queries"] == 1 and row["ndcg_at_10"] == 1.0
    with pytest.raises(ValueError, match="speed"):
        metrics_row("set", "test", "x", per_query, {"speed": 1}, 3, **RULES)


@pytest.mark.parametrize("name", ["a.trec", "a.trec.gz"])
def test_trec_round_trip(tmp_path, name):
    third = float(np.float32(1 / 3))  # a float32 survives its nine digits
    run = {"q:1": {"pandas.head": third, "문서": 1e-12, "b": third}, "q2": {"x": -3.5}, "q3": {}}
    write_trec(tmp_path / "runs" / name, run, "bm25")
    back = read_trec(tmp_path / "runs" / name)
    assert {q: list(hits) for q, hits in back.items()} == {"q:1": ["pandas.head", "b", "문서"], "q2": ["x"]}
    for qid, hits in back.items():
        assert {d: np.float32(s) for d, s in hits.items()} == {d: np.float32(s) for d, s in run[qid].items()}


def test_trec_lines_and_repeatable_bytes(tmp_path):
    run = {"q": {"low": 1.0, "high": 2.5}}
    for name in ("a.trec", "b.trec.gz", "c.trec.gz"):
        write_trec(tmp_path / name, run, "tag")
    assert (tmp_path / "a.trec").read_text() == "q Q0 high 1 2.5 tag\nq Q0 low 2 1 tag\n"
    assert (tmp_path / "b.trec.gz").read_bytes() == (tmp_path / "c.trec.gz").read_bytes()


@pytest.mark.parametrize(
    ("run", "tag"),
    [({"q 1": {"d": 1.0}}, "t"), ({"q": {"d\t1": 1.0}}, "t"), ({"q": {"": 1.0}}, "t"), ({}, "a b")],
)
def test_ids_that_break_columns_are_refused_and_nothing_is_left(tmp_path, run, tag):
    with pytest.raises(ValueError, match="white space"):
        write_trec(tmp_path / "a.trec", run, tag)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_trec_line_is_named(tmp_path):
    (tmp_path / "a.trec").write_text("q Q0 d 1 2.0 t\nq Q0 d 2.0 t\n")
    with pytest.raises(ValueError, match="a.trec, line 2"):
        read_trec(tmp_path / "a.trec")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from nblib.backbones import make_tiny_bert
    from nblib.model.encoder import NeuralSparseEncoder

    texts = [document["text"] for document in CORPUS.values()] + list(QUERIES.values())
    folder = make_tiny_bert(tmp_path_factory.mktemp("tiny"), texts, vocab_size=200)
    return NeuralSparseEncoder(str(folder), max_length=32)


def test_evaluate_model_equals_a_plain_computation(encoder):
    idf = np.linspace(0.5, 2, encoder.vocab_size).astype(np.float32)
    got = evaluate_model(encoder, CORPUS, QUERIES, QRELS, idf, batch_size=3)
    texts = [f"{document['title']} {document['text']}".strip() for document in CORPUS.values()]
    d_reps = encoder.encode_documents(texts).toarray()
    for_scores = np.zeros((3, encoder.vocab_size), dtype=np.float32)
    for i, qid in enumerate(QRELS):
        for token in set(encoder.tokenizer(QUERIES[qid])["input_ids"]) - set(encoder.special_ids):
            for_scores[i, token] = idf[token]
    matrix = for_scores @ d_reps.T
    run = {qid: dict(zip(CORPUS, row.tolist(), strict=True)) for qid, row in zip(QRELS, matrix, strict=True)}
    want = mean_scores(score_run(QRELS, {q: {d: s for d, s in r.items() if s > 0} for q, r in run.items()}))
    for name in ("ndcg_at_10", "mrr_at_10", "recall_at_10", "recall_at_100", "recall_at_1000"):
        assert got[name] == pytest.approx(want[name])
    assert got["d_nnz"] == pytest.approx((d_reps > 0).sum() / 4)
    assert got["q_nnz"] == pytest.approx((for_scores > 0).sum() / 3)


def test_evaluate_model_counts_idf_when_none_is_given(encoder):
    from nblib.idf import compute_idf_weights

    texts = [f"{document['title']} {document['text']}".strip() for document in CORPUS.values()]
    idf = np.array(list(compute_idf_weights(texts, encoder.tokenizer).values()), dtype=np.float32)
    assert evaluate_model(encoder, CORPUS, QUERIES, QRELS) == evaluate_model(
        encoder, CORPUS, QUERIES, QRELS, idf
    )


def test_a_judged_query_without_text_is_refused(encoder):
    with pytest.raises(ValueError, match="no text.*'q9'"):
        evaluate_model(encoder, CORPUS, QUERIES, {"q9": {"d1": 1}})


def test_a_dense_model_is_refused_in_words():
    from sentence_transformers import SentenceTransformer

    from nblib.backbones import EMBEDDED, resolve

    dense = SentenceTransformer(resolve(EMBEDDED))
    with pytest.raises(TypeError, match="SentenceTransformer.*dense_teacher"):
        evaluate_model(dense, CORPUS, QUERIES, QRELS)


def test_the_masked_lm_inside_is_refused_too(encoder):
    with pytest.raises(TypeError, match="want a NeuralSparseEncoder, got transformers"):
        evaluate_model(encoder.mlm, CORPUS, QUERIES, QRELS)
