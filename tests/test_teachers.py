import numpy as np
import pytest
import torch

from nblib import teachers
from nblib.backbones import EMBEDDED
from nblib.losses import ensemble_scores
from nblib.search.bm25 import Bm25

QUERIES = ["how to bake bread", "moons of jupiter"]
DOCUMENTS = ["flour, water and yeast make a loaf", "jupiter has dozens of moons", "a bicycle chain needs oil"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    teacher = teachers.DenseTeacher(EMBEDDED, max_length=64)
    teacher.prepare(QUERIES, DOCUMENTS, tmp_path_factory.mktemp("cache"))
    return teacher


def test_dense_scores_equal_sentence_transformers(dense):
    model = teachers.load_dense(EMBEDDED, 64)
    want = model.similarity(model.encode(QUERIES), model.encode(DOCUMENTS))  # cosine
    got = dense.scores(np.array([1, 0]), np.array([2, 1]))
    assert torch.allclose(got, want[[1, 0]][:, [2, 1]], atol=1e-5)
    assert want.argmax(dim=1).tolist() == [0, 1]


def test_bm25_scores_any_block():
    teacher = teachers.Bm25Teacher("english")
    teacher.prepare(QUERIES, DOCUMENTS)
    got = teacher.scores(np.array([1]), np.array([0, 1]))
    index, scores = Bm25(DOCUMENTS, "english").search(QUERIES, 3)
    assert got[0, 0] == 0.0 and index[1, 0] == 1
    assert got[0, 1].item() == pytest.approx(float(scores[1, 0]), abs=1e-5)


def test_ensemble_is_the_formula_over_its_parts(dense):
    both = teachers.EnsembleTeacher(EMBEDDED, "bm25:english", 0.7, 0.3, 10.0, max_length=64)
    both.prepare(QUERIES, DOCUMENTS)
    rows = np.arange(2), np.arange(3)
    sparse = teachers.Bm25Teacher("english")
    sparse.prepare(QUERIES, DOCUMENTS)
    want = ensemble_scores([dense.scores(*rows), sparse.scores(*rows)], [0.7, 0.3], 10.0)
    assert torch.allclose(both.scores(*rows), want, atol=1e-4)
    assert both.scores(*rows).max() <= 10.0


def test_a_weight_of_zero_loads_nothing():
    single = teachers.EnsembleTeacher("no/such-model", "bm25:english", 0.0, 1.0)
    assert len(single.teachers) == 1
    with pytest.raises(ValueError, match="no teacher left"):
        teachers.EnsembleTeacher(EMBEDDED, "", 0.0, 1.0)


def test_cache_is_read_and_never_reused_for_other_input(tmp_path, monkeypatch):
    first = teachers.dense_embeddings(EMBEDDED, DOCUMENTS, 64, "document", tmp_path)
    monkeypatch.setattr(teachers, "load_dense", lambda *a, **k: pytest.fail("should be read from the cache"))
    assert np.array_equal(teachers.dense_embeddings(EMBEDDED, DOCUMENTS, 64, "document", tmp_path), first)
    monkeypatch.undo()
    teachers.dense_embeddings(EMBEDDED, DOCUMENTS, 32, "document", tmp_path)
    teachers.dense_embeddings(EMBEDDED, DOCUMENTS[:2], 64, "document", tmp_path)
    teachers.dense_embeddings(EMBEDDED, DOCUMENTS, 64, "query", tmp_path)
    assert len(list(tmp_path.glob("dense-*.npy"))) == 4
