"""Search rows on tiny postings: what is compared must be the same search; how fast it is is not asserted."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from nblib.data.formats import read_beir
from nblib.experiment import load_eval_set
from nblib.files import ROOT
from nblib.search.bm25 import Bm25
from nblib.search.inverted import InvertedIndex, top_k
from nblib.speed import large, postings, search
from nblib.speed.rows import row
from tests.search.plain import plain_scores, plain_top_k

ENGLISH = "tests/data/english"


@pytest.fixture(scope="module")
def case() -> postings.Case:
    data = load_eval_set(ENGLISH, "", "test")
    return postings.bm25_case(data, "english", 6)


def test_shares_follow_zipfs_law_and_add_up():
    share = postings.shares(150)
    assert share.sum() == pytest.approx(150) and share[0] == 0.5 and (np.diff(share) <= 0).all()
    tail = share[share < 0.5]
    assert tail[1] / tail[0] == pytest.approx(1 - 1 / (30_522 - len(tail) + 2))  # c / rank


def test_generated_postings_hold_what_they_say():
    made = postings.generated(3000, 150, 400, seed=1)
    share = postings.shares(150)
    assert made.d_reps.shape == (3000, 30_522) and made.counts.shape == (400, 30_522)
    assert made.d_reps.getnnz(axis=0)[:9].tolist() == np.round(3000 * share[:9]).tolist()
    assert (made.counts.getnnz(axis=1) == 8).all() and (made.counts.data == 1).all()
    assert made.d_reps.data.min() > 0 and made.d_reps.has_canonical_format
    in_query = made.counts.getnnz(axis=0) / 400
    assert in_query @ share == pytest.approx(1.0, abs=0.1)  # FLOPS
    again = postings.generated(3000, 150, 400, seed=1)
    assert (made.d_reps != again.d_reps).nnz == 0 and (made.counts != again.counts).nnz == 0


def test_the_case_of_a_real_set_scores_as_bm25(case):
    beir = read_beir(ROOT / ENGLISH)
    data = load_eval_set(ENGLISH, "", "test")
    want, _ = Bm25(data.texts, "english").search(data.queries[:6], 5)
    found, scores = top_k(case.q_reps, case.d_reps, 5)
    assert (found == want).mean() > 0.9 and case.counts.shape[0] == 6 and len(beir.corpus) == 40
    np.testing.assert_allclose(scores, Bm25(data.texts, "english").search(data.queries[:6], 5)[1], rtol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_every_exact_side_finds_the_same_scores(case, k):
    index = InvertedIndex.from_csr(case.d_reps)
    _, want = plain_top_k(plain_scores(case.q_reps, case.d_reps), k)
    sides = [search.ours(index, case, k), search.bm25s_side(case, k), search.scipy_side(case, k)]
    for side in [*sides, search.sentence_transformers_side(case, k)]:
        for number in range(6):
            found = side.scores(side.one(number))
            np.testing.assert_allclose(found, want[number, : len(found)], rtol=1e-5)
            assert not want[number, len(found) :].any()


def test_a_side_with_other_scores_is_refused(case):
    index = InvertedIndex.from_csr(case.d_reps)
    mine = search.ours(index, case, 5)
    wrong = search.Side(mine.one, lambda result: result[1][0] * 1.01)
    with pytest.raises(AssertionError, match="peer found other scores for query 0"):
        search._compare("x", "", mine, wrong, "peer", 6)


def test_rows_of_all_sides(case):
    rows = search.search_rows(case)
    bm25s = [line for line in rows if line["row"] == "search_bm25s"]
    assert [line["regime"].split(", ")[2:] for line in bm25s] == [
        ["k=10"],
        ["k=10", "two-phase"],
        ["k=40"],  # no more documents than there are
        ["k=40", "two-phase"],
    ]
    assert all(line["ratio"] == line["peer"] / line["ours"] and line["ours"] > 0 for line in rows)
    assert all(line["ours_per_s_4"] > 0 and line["peer_per_s_1"] > 0 for line in bm25s)
    assert 0 < bm25s[1]["ours_recall_at_10"] <= 1
    peers = {line["row"]: line for line in rows}
    assert {"search_sentence_transformers", "search_scipy"} <= set(peers)
    if "search_seismic" in peers:
        assert 0.5 < peers["search_seismic"]["peer_recall_at_10"] <= 1
    shown = search.table(rows)
    assert len(shown) == len(rows) and shown["ours, recall@10"][1] != ""


def test_recall_by_hand():
    d, q = csr_matrix(np.array([[3.0], [2.0], [1.0], [0.0]])), csr_matrix(np.array([[1.0], [0.0]]))
    one_case = postings.Case("", d, q, np.ones(1))
    found = np.array([[0, 3, -1], [1, 2, 3]])  # 1 of 3; the second query has no hits, and does not count
    index = InvertedIndex.from_csr(d)
    assert search._recall(index, one_case, lambda q, k: (found, None)) == pytest.approx(1 / 3)


def test_large_index_is_measured_and_removed(tmp_path):
    found = large.measure(documents=50, shard=20, terms=5, queries=3, seed=1, folder=str(tmp_path))
    assert found["ms"] > 0 and found["ms_two_phase"] > 0 and found["ms_1000"] > 0
    one = postings.generated_documents(20, postings.shares(5), 1)
    assert found["index_bytes"] > 8 * one.nnz * 2 and not list(tmp_path.iterdir())


def test_projection_by_hand(monkeypatch, tmp_path):
    facts = {"ms": 2.0, "index_bytes": 2**30, "build_seconds": 60.0, "build_peak_gib": 1.5}
    jobs = []

    def fresh(module, **job):
        jobs.append(job)
        return facts

    monkeypatch.setattr(search, "in_fresh_process", fresh)
    line = search.large_row(884_182, 100_000, 150, 9, 1, tmp_path)
    assert [job["documents"] for job in jobs] == [88_418, 884_182] and jobs[0]["shard"] == 88_418
    assert line["ms_marco_ms"] == pytest.approx(20, rel=1e-5) and line["ms_marco_gib"] == pytest.approx(
        10, rel=1e-5
    )
    assert (
        line["ms_marco_build_minutes"] == pytest.approx(10, rel=1e-5) and line["build_peak_gib_tenth"] == 1.5
    )
    assert line["ours"] == 2 and line["ratio"] is None
    shown = search.large_table([line])
    assert shown[shown["measure"] == "ms_marco_gib"].values.tolist() == [["ms_marco_gib", 10]]
    monkeypatch.setattr(search, "in_fresh_process", lambda module, **job: {"failed": "killed"})
    line = search.large_row(1000, 100, 150, 9, 1, tmp_path)
    assert line["failed"] == "killed" and line["ours"] is None and "ms_marco_ms" not in line
    assert search.table([line, row("idf", "", "", 1, 1, "", "", less_is_better=True)]).empty
