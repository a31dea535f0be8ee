import json

import numpy as np
import pytest
import torch

from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.data.formats import BeirSet, write_beir
from nblib.search.bm25 import Bm25
from nblib.train.data import Collator, lexical_targets, load_training_set


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer(EMBEDDED)


@pytest.fixture
def folder(tmp_path):
    corpus = {f"d{i}": {"title": "", "text": f"document number {i}"} for i in range(5)}
    queries = {"q0": "first", "q1": "second", "q2": "third"}
    qrels = {"train": {"q0": {"d0": 1}, "q1": {"d1": 1, "d2": 1}, "q2": {"d3": 1}}}
    rows = [
        {"query_id": "q0", "doc_ids": ["d0", "d1", "d4"], "scores": [3.0, 2.0, 1.0]},
        {"query_id": "q1", "doc_ids": ["d1", "d2", "d3"], "scores": [3.0, 2.0, 1.0]},
        {"query_id": "q2", "doc_ids": ["d3"], "scores": [1.0]},
    ]
    write_beir(tmp_path, BeirSet("s", corpus, queries, qrels), rows)
    return tmp_path


def test_rows_of_positions(folder):
    data = load_training_set(folder, num_hard_negatives=1)
    text = data.documents
    got = {(data.queries[q], text[p], tuple(text[n] for n in negs)) for q, p, negs in data.rows}
    assert got == {
        ("first", "document number 0", ("document number 1",)),
        ("second", "document number 1", ("document number 3",)),
        ("second", "document number 2", ("document number 3",)),
        ("third", "document number 3", ()),
    }


def test_max_docs_limits_what_the_teacher_reads(folder):
    data = load_training_set(folder, num_hard_negatives=2, max_docs=3)
    assert 0 < len(data.documents) <= 3
    for q, p, negatives in data.rows:
        assert p in data.positives_of[q] and not data.positives_of[q] & set(negatives)


def test_missing_rows_name_the_step(tmp_path):
    with pytest.raises(FileNotFoundError, match="01_data_prep"):
        load_training_set(tmp_path, 1)


def test_rows_without_negatives_are_refused(folder):
    rows = [json.loads(line) for line in (folder / "train_rows.jsonl").read_text().splitlines()]
    (folder / "train_rows.jsonl").write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(ValueError, match="no negatives"):
        load_training_set(folder, 2)


def test_torn_rows_name_file_and_line(folder):
    with open(folder / "train_rows.jsonl", "a") as handle:
        handle.write('{"query_id": ')
    with pytest.raises(ValueError, match=r"train_rows.jsonl, line 4"):
        load_training_set(folder, 1)


def test_a_negative_brings_its_own_query(folder, tok):
    data = load_training_set(folder, num_hard_negatives=2)
    row = next(r for r in data.rows if data.queries[r[0]] == "first")
    batch = Collator(data, tok, max_length=16)([row])
    assert batch["input_ids"].shape[0] == 3  # d0, and d1, d4 as negatives
    assert batch["q_bags"].shape == (2, len(tok)), "d1 answers 'second'"
    assert batch["positives"].tolist() == [[True, False, False], [False, True, False]]
    first = batch["q_bags"][0].nonzero().flatten().tolist()
    assert tok.convert_ids_to_tokens(first) == ["first"]


def test_lexical_targets_search_as_bm25_does(tok):
    """With IDF on the query side, targets as document reps give BM25's own ranking and scores."""
    texts = [
        "the cat sat on the mat",
        "a dog and a cat and a dog",
        "dog " * 9,
        "rain in spain stays in the plain",
    ]
    queries = ["cat dog", "the plain cat"]
    ids = tok(texts)["input_ids"]
    targets = lexical_targets(ids, len(tok), tok.all_special_ids)
    index = Bm25(texts, lambda t: tok.tokenize(t))
    want = (index.query_matrix(queries) @ index.doc_matrix.T).toarray()
    words = [set(tok(q, add_special_tokens=False)["input_ids"]) for q in queries]
    df = np.asarray((targets > 0).sum(axis=0)).ravel()
    idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    got = [[sum(idf[t] * targets[d, t] for t in sorted(q)) for d in range(len(texts))] for q in words]
    assert np.allclose(np.array(got) / 2.5, want, atol=1e-4)  # bm25s leaves the constant k1 + 1 out


def test_batch_with_teacher_and_lexical(folder, tok):
    class Constant:  # stands in for no model: it checks which pairs are asked for
        def scores(self, q_rows, d_rows):
            return torch.tensor([[100.0 * q + d for d in d_rows] for q in q_rows])

    data = load_training_set(folder, num_hard_negatives=2)
    collate = Collator(data, tok, 16, Constant(), lexical=True)
    batch = collate(data.rows[:2])
    assert batch["teacher"].shape == batch["positives"].shape
    assert batch["lexical"].shape == (batch["input_ids"].shape[0], len(tok))
    assert (batch["lexical"] > 0).sum(dim=1).min() >= 3
