"""BM25: a score by hand, search against the matrix product and against bm25s, and a published figure."""

import math
import os
import subprocess
import sys

import bm25s
import numpy as np
import pytest

from nblib.data.formats import document_text, read_beir
from nblib.files import ROOT
from nblib.search.bm25 import Bm25, analyze

SCIFACT = ROOT.parent / "shared" / "data" / "scifact"
TEXTS = ["red apple", "red red car", "green pear tree", "car", "red apple"]
QUERIES = ["red car", "apple apple", "nothing known", ""]


@pytest.fixture(scope="module")
def index() -> Bm25:
    return Bm25(TEXTS, "whitespace")


def test_score_by_hand(index):
    # "car" stands in 2 of 5 documents; document 3 has 1 of on average 11 / 5 = 2.2 words
    idf = math.log(1 + (5 - 2 + 0.5) / (2 + 0.5))
    expected = idf * 1 / (1 + 1.5 * (1 - 0.75 + 0.75 * 1 / 2.2))
    docs, scores = index.search(["car"], 1)
    assert docs.tolist() == [[3]]
    assert scores[0, 0] == pytest.approx(expected, rel=1e-6)


def test_search_equals_matrix_product(index):
    product = (index.query_matrix(QUERIES) @ index.doc_matrix.T).toarray()  # [Q, N]
    docs, scores = index.search(QUERIES, 5)
    for q in range(len(QUERIES)):
        hits = docs[q][docs[q] >= 0]
        assert set(hits) == set(np.flatnonzero(product[q]))
        np.testing.assert_allclose(scores[q][: len(hits)], product[q][hits], rtol=1e-6)


def test_pieces_make_the_same_index(index, monkeypatch):
    monkeypatch.setattr("nblib.search.bm25.PIECE", 2)
    pieces = Bm25(TEXTS, "whitespace")
    assert pieces.vocabulary == index.vocabulary and (pieces.doc_matrix != index.doc_matrix).nnz == 0


def test_shapes_and_missing_hits(index):
    docs, scores = index.search(QUERIES, 7)
    assert docs.shape == scores.shape == (4, 7) and scores.dtype == np.float32
    assert (docs[2:] == -1).all() and (scores[2:] == 0).all()
    assert (
        index.doc_matrix.shape[0] == 5 and index.doc_matrix.shape[1] == index.query_matrix(QUERIES).shape[1]
    )


def test_ties_go_to_the_lower_index(index):
    docs, scores = index.search(["apple"], 1)
    assert docs[0, 0] == 0  # document 4 has the same text
    docs, scores = index.search(["apple"], 2)
    assert docs[0].tolist() == [0, 4] and scores[0, 0] == scores[0, 1]


def test_repeated_query_term_counts_twice(index):
    once, twice = index.search(["apple", "apple apple"], 1)[1][:, 0]
    assert twice == pytest.approx(2 * once)


def test_agrees_with_bm25s():
    texts = [document_text(d) for d in read_beir(ROOT / "tests/data/english").corpus.values()]
    queries = list(read_beir(ROOT / "tests/data/english").queries.values())
    reference = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    reference.index(analyze(texts, "english"), show_progress=False)
    scores = [reference.get_scores(terms) for terms in analyze(queries, "english")]
    _, found = Bm25(texts, "english").search(queries, 3)
    np.testing.assert_allclose(found, [np.sort(s)[::-1][:3] for s in scores], rtol=1e-5)


def test_analyzers():
    assert analyze(["The running dogs ran"], "english") == [["run", "dog", "ran"]]
    assert analyze(["The DOGS, ran"], "whitespace") == [["the", "dogs,", "ran"]]
    assert analyze(["ab c"], lambda text: list(text.replace(" ", ""))) == [["a", "b", "c"]]
    assert analyze([], "english") == []


def test_korean_particles_do_not_hide_the_noun():
    terms = analyze(["인덱스를 만들면 느려진다", "인덱스가 있다"], "korean")
    assert "인덱스" in terms[0] and "인덱스" in terms[1]
    assert "를" not in terms[0] and "가" not in terms[1]


HASH = """
import hashlib
from nblib.data.formats import document_text, read_beir
from nblib.search.bm25 import Bm25
beir = read_beir("tests/data/english")
texts = [document_text(doc) for doc in beir.corpus.values()]
docs, scores = Bm25(texts, "english").search(texts, 40)
print(hashlib.sha256(docs.tobytes() + scores.tobytes()).hexdigest())
"""


def test_same_bits_in_every_process():
    """Training rows hold these scores, and building twice must give the same files."""
    run = [
        subprocess.run(
            [sys.executable, "-c", HASH],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(run[0].strip()) == 64 and run[0] == run[1]


def test_unusable_input():
    with pytest.raises(ValueError, match="'klingon'.*english"):
        Bm25(["a text"], "klingon")
    with pytest.raises(ValueError, match="no term left in 1 documents"):
        Bm25(["the"], "english")
    with pytest.raises(ValueError, match="k and threads must be at least 1"):
        Bm25(TEXTS, "whitespace").search(["red"], 0)


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="../shared/data/scifact is not on this machine")
def test_scifact_ndcg():
    import pytrec_eval

    beir = read_beir(SCIFACT)
    ids, qrels = list(beir.corpus), beir.qrels["test"]
    index = Bm25([document_text(doc) for doc in beir.corpus.values()], "english")
    docs, scores = index.search([beir.queries[q] for q in qrels], 100)
    run = {
        q: {ids[d]: float(s) for d, s in zip(docs[i], scores[i], strict=True) if d >= 0}
        for i, q in enumerate(qrels)
    }
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert np.mean([m["ndcg_cut_10"] for m in measured.values()]) == pytest.approx(0.686, abs=0.01)
