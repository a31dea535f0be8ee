"""Hard negatives: never a positive nor its text, drawn from the depth asked for, repeatable by seed."""

import numpy as np
import pytest

from nblib.data.formats import BeirSet, document_text, read_beir
from nblib.data.negatives import in_turn, mine_negatives
from nblib.files import ROOT
from nblib.search.bm25 import Bm25


@pytest.fixture(scope="module")
def english() -> BeirSet:
    return read_beir(ROOT / "tests" / "data" / "english")


def tiny(**qrels: dict[str, int]) -> BeirSet:
    texts = ["red apple", "Red  apple", "red pear", "red plum", "grey stone", "blue sea"]
    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(texts)}
    return BeirSet("tiny", corpus, dict.fromkeys(qrels, "red apple"), {"train": qrels})


def test_rows_of_a_real_set(english):
    rows = mine_negatives(english, 4, 10, "english", 13)
    assert [row["query_id"] for row in rows] == list(english.qrels["train"])
    ids, texts = list(english.corpus), [document_text(d) for d in english.corpus.values()]
    index = Bm25(texts, "english")
    for row in rows:
        query = english.queries[row["query_id"]]
        positives = [d for d, grade in english.qrels["train"][row["query_id"]].items() if grade > 0]
        assert row["doc_ids"][: len(positives)] == positives
        negatives = row["doc_ids"][len(positives) :]
        assert len(set(negatives)) == 4 and not set(negatives) & set(positives)
        expected = (index.query_matrix([query]) @ index.doc_matrix.T).toarray()[0]
        assert row["scores"] == pytest.approx([expected[ids.index(d)] for d in row["doc_ids"]], abs=1e-4)
        top = {ids[i] for i in index.search([query], 10)[0][0] if i >= 0}
        mined = [d for d, score in zip(row["doc_ids"], row["scores"], strict=True) if score > 0]
        assert set(mined) <= top | set(positives)


def test_same_text_as_a_positive_is_no_negative():
    (row,) = mine_negatives(tiny(q={"d0": 1}), 4, 6, "whitespace", 13)
    assert row["doc_ids"][:3] == ["d0", "d2", "d3"]  # d1 differs in case and spacing only
    assert sorted(row["doc_ids"][3:]) == ["d4", "d5"] and row["scores"][3:] == [0, 0]  # random, to fill up


def test_depth_bounds_the_draw():
    drawn = {mine_negatives(tiny(q={"d0": 1}), 1, 3, "whitespace", s)[0]["doc_ids"][1] for s in range(20)}
    assert drawn == {"d2"}  # ranks 1 and 2 are the positive and its copy
    drawn = {mine_negatives(tiny(q={"d0": 1}), 1, 4, "whitespace", s)[0]["doc_ids"][1] for s in range(20)}
    assert drawn == {"d2", "d3"}


def test_seed(english):
    first, again, other = (mine_negatives(english, 2, 20, "english", seed) for seed in (13, 13, 14))
    assert first == again and first != other


def test_draw_does_not_depend_on_other_queries(english):
    qrels = {"train": dict(list(english.qrels["train"].items())[3:5])}
    few = mine_negatives(BeirSet("few", english.corpus, english.queries, qrels), 2, 20, "english", 13)
    assert few == mine_negatives(english, 2, 20, "english", 13)[3:5]


def test_grade_0_is_a_negative_and_no_positive():
    rows = mine_negatives(tiny(q={"d2": 0}, r={"d0": 1, "d2": 0}), 1, 6, "whitespace", 13)
    assert [row["query_id"] for row in rows] == ["r"] and rows[0]["doc_ids"][0] == "d0"


def test_given_negatives_come_first():
    (row,) = mine_negatives(tiny(q={"d0": 1}), 2, 6, "whitespace", 13, {"q": {"d5": None}})
    assert row["doc_ids"][:2] == ["d0", "d5"] and row["doc_ids"][2] in ("d2", "d3")
    (row,) = mine_negatives(tiny(q={"d0": 1}), 1, 6, "whitespace", 13, {"q": {"d5": None, "d4": None}})
    assert row["doc_ids"] == ["d0", "d5", "d4"]  # more than K: all are kept


def test_given_scores_are_kept():
    given = {"q": {"d5": 0.25, "d0": 7.5}}
    assert mine_negatives(tiny(q={"d0": 1}), 4, 6, "whitespace", 13, given) == [
        {"query_id": "q", "doc_ids": ["d0", "d5"], "scores": [7.5, 0.25]}
    ]


def test_no_negatives_asked():
    (row,) = mine_negatives(tiny(q={"d0": 1}), 0, 6, "whitespace", 13)
    assert row["doc_ids"] == ["d0"]


def test_two_rankings_in_turn():
    first = np.array([[4, 2, 7, -1], [1, -1, -1, -1]])
    second = np.array([[2, 9, 4, 5], [3, 1, -1, -1]])
    assert in_turn(first, second, 4).tolist() == [[4, 2, 9, 7], [1, 3, -1, -1]]
    assert in_turn(first, second, 6).tolist()[0] == [4, 2, 9, 7, 5, -1]


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory, tiny_backbone) -> str:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("dense")
    SentenceTransformer(str(tiny_backbone), device="cpu").save(str(folder))
    return str(folder)


def test_a_dense_model_ranks_beside_bm25(english, dense_model):
    from nblib.teachers.dense import encode_dense, load_dense

    few = {"train": dict(list(english.qrels["train"].items())[:4])}
    few = BeirSet("few", english.corpus, english.queries, few)
    model = load_dense(dense_model, 16)
    ids, texts = list(few.corpus), [document_text(d) for d in few.corpus.values()]
    d_reps = encode_dense(model, texts, "document", True, 8)
    lexical = mine_negatives(few, 3, 10, "english", 13)
    mixed = mine_negatives(few, 3, 10, "english", 13, dense=dense_model, max_length=16)
    assert lexical != mixed
    for row in mixed:
        query = few.queries[row["query_id"]]
        near = np.argsort(-(d_reps @ encode_dense(model, [query], "query", True, 8)[0]))[:10]
        top = Bm25(texts, "english").search([query], 10)[0][0]
        allowed = {ids[d] for d in [*near, *top] if d >= 0}
        judged = set(few.qrels["train"][row["query_id"]])
        assert set(row["doc_ids"]) - judged <= allowed
