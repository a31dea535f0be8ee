"""Seismic against exact search, and what it must refuse."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from nblib.search import seismic
from nblib.search.inverted import InvertedIndex
from nblib.search.seismic import ApproximateIndex, SeismicBuild
from tests.search.plain import random_reps

needs_package = pytest.mark.skipif(
    not find_spec("seismic"), reason="pyseismic-lsr has no wheel for this machine"
)
ALL = {"build": SeismicBuild(n_postings=10_000, summary_energy=1.0), "query_cut": 100, "heap_factor": 1.0}


def test_without_the_package_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(ImportError, match="pyseismic-lsr.*Linux x86-64 with Python 3.11 and 3.12"):
        ApproximateIndex(csr_matrix((1, 1)))


@needs_package
@pytest.mark.parametrize("n_terms", [60, 70_000])  # the smaller kind of index, the larger one
def test_exhaustive_parameters_give_the_exact_result(n_terms):
    q, d = random_reps(300, 60, 0.1, 1, True), random_reps(400, 60, 0.2, 2, True)
    d.data[d.indptr[7] : d.indptr[9]] = 0
    d.eliminate_zeros()  # two documents without terms, which the package leaves out
    for reps in (q, d):
        reps.resize(reps.shape[0], n_terms)
    index, scores = ApproximateIndex(d, **ALL).search(q, 400)
    want = InvertedIndex.from_csr(d).search(q, 400)
    np.testing.assert_array_equal(index, want[0])  # whole weights: exact in float16, and many ties
    np.testing.assert_array_equal(scores, want[1])


@needs_package
def test_recall_with_the_defaults_and_threads():
    q, d = random_reps(50, 500, 0.02, 3, False, 3), random_reps(2000, 500, 0.05, 4, False, 3)
    q.data, d.data = abs(q.data), abs(d.data)
    exact, _ = InvertedIndex.from_csr(d).search(q, 10)
    index, scores = ApproximateIndex(d).search(q, 10, threads=2)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(index, exact, strict=True)]) > 0.9
    assert (np.diff(scores, axis=1) <= 0).all()
    cut, _ = ApproximateIndex(d, query_cut=1).search(q, 10)
    assert (cut != index).any()


@needs_package
def test_shapes_progress_and_missing_hits(monkeypatch):
    monkeypatch.setattr(seismic, "BATCH", 2)
    d = csr_matrix(np.array([[1, 0, 0], [2, 0, 0]], dtype=np.float32))
    q = csr_matrix(np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=np.float32))
    seen = []
    index, scores = ApproximateIndex(d).search(q, 3, progress=lambda *x: seen.append(x))
    assert index.tolist() == [[1, 0, -1], [-1] * 3, [-1] * 3] and scores[0].tolist() == [2, 1, 0]
    assert seen == [(2, 3), (3, 3)] and index.dtype == np.int64 and scores.dtype == np.float32


@needs_package
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, 70_000])
def test_weights_that_the_package_would_spoil_are_refused(value):
    good, bad = csr_matrix(np.ones((1, 2))), csr_matrix(np.array([[value, 1.0]]))
    with pytest.raises(ValueError, match="a document weighs .*Seismic takes weights from 0 to 65504"):
        ApproximateIndex(bad)
    with pytest.raises(ValueError, match="a query weighs"):
        ApproximateIndex(good).search(bad, 1)


@needs_package
def test_nonsense_is_refused():
    index = ApproximateIndex(csr_matrix(np.ones((1, 2))))
    with pytest.raises(ValueError, match="queries have 3 terms and the index 2"):
        index.search(csr_matrix((1, 3)), 1)
    with pytest.raises(ValueError, match="k and threads"):
        index.search(csr_matrix((1, 2)), 0)
