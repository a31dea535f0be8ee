import numpy as np
import pytest
import torch

from nblib import teachers
from nblib.search.bm25 import Bm25

from .conftest import DOCUMENTS, LENGTH, QUERIES

ALL = np.arange(len(QUERIES)), np.arange(len(DOCUMENTS))
PAIRS = [(q, d) for q in range(2) for d in range(5)]


@pytest.fixture(scope="module")
def dense_name(dense_folder) -> str:
    return str(dense_folder("cosine"))


def stretched(scores: torch.Tensor) -> torch.Tensor:
    low, high = scores.min(dim=1, keepdim=True).values, scores.max(dim=1, keepdim=True).values
    return (scores - low) / (high - low)


def test_bm25_scores_any_block():
    teacher = teachers.make_teacher("bm25:english", LENGTH, "cpu")
    teacher.prepare(QUERIES, DOCUMENTS)
    got = teacher.scores(np.array([1]), np.array([0, 1]))
    index, scores = Bm25(DOCUMENTS, "english").search(QUERIES, 3)
    assert got[0, 0] == 0.0 and set(index[1, :2]) == {1, 4}
    assert got[0, 1].item() == pytest.approx(float(scores[1, list(index[1]).index(1)]), abs=1e-5)
    with pytest.raises(ValueError, match="analyzer 'klingon' is not known"):
        teachers.make_teacher("bm25:klingon", LENGTH, "cpu")


def test_a_prefix_names_the_kind(ours, cross_folder, dense_name):
    names = {"bm25:english": teachers.Bm25Teacher, f"sparse:{ours}": teachers.SparseTeacher}
    names |= {f"cross:{cross_folder}": teachers.CrossTeacher, dense_name: teachers.DenseTeacher}
    assert {name: type(teachers.make_teacher(name, LENGTH, "cpu")) for name in names} == names


@pytest.mark.parametrize("sparse", ["bm25:english", "ours", "sparse:ours"])
def test_the_formula_over_its_parts(dense_name, ours, sparse):
    sparse = sparse.replace("ours", str(ours))
    both = teachers.EnsembleTeacher(dense_name, sparse, 0.7, 0.3, 10.0, max_length=LENGTH)
    both.prepare(QUERIES, DOCUMENTS)
    sparse = sparse if ":" in sparse else f"sparse:{sparse}"
    parts = [teachers.make_teacher(name, LENGTH, "cpu") for name in (dense_name, sparse)]
    for part in parts:
        part.prepare(QUERIES, DOCUMENTS)
    dense, sparse = (stretched(part.scores(*ALL)) for part in parts)
    got = both.scores(*ALL)
    assert torch.allclose(got, 10 * (0.7 * dense + 0.3 * sparse), atol=1e-4)
    assert got.min() >= 0 and got.max() <= 10.0001


def test_cross_encoder_and_given_scores_join_where_they_know_the_pair(dense_name, cross_folder):
    given = teachers.GivenScores([(0, d) for d in range(5)], [1.0, 2.0, 3.0, 4.0, 9.0])
    ensemble = teachers.EnsembleTeacher(
        dense_name,
        "",
        0.5,
        0.0,
        4.0,
        max_length=LENGTH,
        cross_teacher_name=str(cross_folder),
        cross_weight=0.25,
        given=given,
        given_weight=0.25,
    ).prepare(QUERIES, DOCUMENTS, pairs=PAIRS)
    got = ensemble.scores(*ALL)
    assert torch.isfinite(got[0]).all() and torch.isnan(got[1:]).all()
    dense, cross, _ = (teacher.scores([0], np.arange(5)) for teacher in ensemble.teachers)
    third = torch.tensor([0.0, 0.125, 0.25, 0.375, 1.0])
    want = 4 * (0.5 * stretched(dense) + 0.25 * stretched(cross) + 0.25 * third)
    assert torch.allclose(got[:1], want, atol=1e-4)


def test_without_normalisation_raw_scores_are_added():
    given = teachers.GivenScores([(0, 0), (0, 1)], [-3.0, 50.0])
    options = {"normalise": False, "given": given, "given_weight": 2.0}
    raw = teachers.EnsembleTeacher("", "", scale_constant=10.0, **options).prepare(["q"], ["a", "b"])
    assert raw.scores([0], [0, 1]).tolist() == [[-6.0, 100.0]], "S has no part in it"


def test_a_weight_of_zero_loads_nothing(cross_folder):
    single = teachers.EnsembleTeacher("no/such-model", "bm25:english", 0.0, 1.0)
    assert len(single.teachers) == 1
    given = teachers.GivenScores([], [])
    options = {"cross_teacher_name": "no/such-model", "given": given}
    assert len(teachers.EnsembleTeacher("", "bm25:english", 0.0, 1.0, **options).teachers) == 1


def test_what_cannot_work_is_refused_before_any_encoding(dense_name, cross_folder, ours):
    with pytest.raises(ValueError, match="no teacher left"):
        teachers.EnsembleTeacher(dense_name, "", 0.0, 1.0)
    with pytest.raises(ValueError, match="want 0 or more"):
        teachers.EnsembleTeacher(dense_name, "bm25:english", 1.0, -0.5)
    with pytest.raises(ValueError, match="not a dense teacher"):
        teachers.EnsembleTeacher(str(ours), "bm25:english")
    with pytest.raises(ValueError, match="not a sparse teacher"):
        teachers.EnsembleTeacher("", dense_name)
    with pytest.raises(OSError, match="no/such-model"):
        teachers.EnsembleTeacher("", "bm25:english", cross_teacher_name="no/such-model", cross_weight=1.0)
    ensemble = teachers.EnsembleTeacher(
        dense_name, "", 1.0, 0.0, cross_teacher_name=str(cross_folder), cross_weight=1.0
    )
    ensemble.teachers[0].prepare = lambda *a: pytest.fail("encoded before the pairs were looked at")
    with pytest.raises(ValueError, match="pass pairs=training_pairs"):
        ensemble.prepare(QUERIES, DOCUMENTS)


def test_progress_runs_once_over_all_teachers(dense_name, ours, tmp_path):
    seen = []
    both = teachers.EnsembleTeacher(dense_name, str(ours), max_length=LENGTH)
    both.prepare(QUERIES, DOCUMENTS, tmp_path, seen.append)
    assert seen == sorted(seen) and seen[-1] == len(QUERIES) + len(DOCUMENTS)
    assert len(set(seen)) >= 4
