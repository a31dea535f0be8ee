"""Variants and hybrids over one corpus: what they change, what they reuse, and what is measured."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack

from nblib import encoded, retrieval
from nblib.cost import COST
from nblib.idf import compute_idf_weights, count_df
from nblib.run.params import Variant
from nblib.search.inverted import TwoPhase
from nblib.systems import System, bm25
from tests.steps import QUERIES, TEXTS, all_systems

# Three queries of unlike weights over five documents.
Q = csr_matrix(np.array([[8, 4, 1, 0], [0, 2, 1.5, 0.1], [3, 0, 0, 3]], np.float32))
D = csr_matrix(np.array([[0, 3, 0, 1], [1, 0, 5, 0], [0, 0, 4, 0], [1, 1, 1, 1], [0, 2, 0, 0.5]], np.float32))


def made_up(asked=None):
    """A system whose reps are given; `asked` counts how often the documents are encoded."""

    def index(texts):
        if asked is not None:
            asked.append(len(texts))
        return encoded.Blocks.whole(D), lambda queries: Q[[int(q) for q in queries]], 0.5

    return System("finetuned", index)


def not_counted(stemmer):
    raise AssertionError("no variant asked for the corpus's IDF")


def search(variants=None, hybrids=None, systems=None, k=5):
    systems = systems or [made_up()]
    texts = TEXTS[: D.shape[0]]
    found = retrieval.search_all(systems, texts, ["0", "1", "2"], k, variants, hybrids)
    return {result.name: result for result in found}


def scores(result):
    """The scores as a dense [Q, N]."""
    full = np.zeros((len(result.index), D.shape[0]), np.float32)
    for row, (index, values) in enumerate(zip(result.index, result.scores, strict=True)):
        full[row, index[index >= 0]] = values[index >= 0]
    return full


def test_variants_change_reps_as_they_say():
    variants = {
        "q-ratio": Variant(of="finetuned", query_max_ratio=0.5),
        "q-top": Variant(of="finetuned", query_top_k=1),
        "d-ratio": Variant(of="finetuned", doc_max_ratio=0.3),
        "d-top": Variant(of="finetuned", doc_top_k=1),
    }
    found = search(variants)
    assert list(found) == ["finetuned", *variants]
    q, d = Q.toarray(), D.toarray()
    largest = q.max(axis=1, keepdims=True)
    wanted = {
        "finetuned": q @ d.T,
        "q-ratio": np.where(q > 0.5 * largest, q, 0) @ d.T,
        "q-top": np.array([[8, 0, 0, 0], [0, 2, 0, 0], [3, 0, 0, 0]], np.float32) @ d.T,
        "d-ratio": q @ np.where(d > 0.3 * d.max(axis=1, keepdims=True), d, 0).T,
        "d-top": q @ np.array([[0, 3, 0, 0], [0, 0, 5, 0], [0, 0, 4, 0], [1, 0, 0, 0], [0, 2, 0, 0]]).T,
    }
    for name, want in wanted.items():
        np.testing.assert_allclose(scores(found[name]), want, rtol=1e-6, err_msg=name)
    assert found["q-top"].cost["q_nnz"] == 1 and found["d-top"].cost["d_nnz"] == 1
    assert found["q-top"].cost["flops"] < found["finetuned"].cost["flops"]


def test_two_phase_finds_by_heavy_terms_and_ranks_by_all():
    found = search({"two": Variant(of="finetuned", two_phase=True)})["two"]
    # Query 0: 8 and 4 reach .4 x 8; document 2 holds the light term only, so it is not found.
    assert sorted(found.index[0][found.index[0] >= 0].tolist()) == [0, 1, 3, 4]
    np.testing.assert_allclose(found.scores[0][:4], [13, 13, 12, 8], rtol=1e-6)
    given = retrieval.vary(
        retrieval.enter(made_up(), TEXTS),
        "mine",
        Variant(of="finetuned", two_phase=True, two_phase_ratio=0.9, two_phase_window=50),
        made_up(),
        not_counted,
    )
    assert given.two_phase == TwoPhase(0.9, 5.0, 50)


def test_seismic_searches_the_same_documents():
    pytest.importorskip("seismic", reason="pyseismic-lsr has no wheel for this machine")
    found = search({"approximate": Variant(of="finetuned", engine="seismic")}, k=2)
    assert found["approximate"].index[0].tolist() == found["finetuned"].index[0].tolist()
    np.testing.assert_allclose(found["approximate"].scores[0], found["finetuned"].scores[0], rtol=2e-3)
    assert found["approximate"].cost["build_s"] > 0


def test_documents_are_encoded_once_and_an_index_serves_all_that_share_its_documents():
    asked = []
    entry = retrieval.enter(made_up(asked), TEXTS)
    light = retrieval.vary(entry, "q", Variant(of="finetuned", query_top_k=1), made_up(), not_counted)
    pruned = retrieval.vary(entry, "d", Variant(of="finetuned", doc_top_k=1), made_up(), not_counted)
    assert light.engine is entry.engine and pruned.engine is not entry.engine
    asked.clear()
    variants = {f"v{i}": Variant(of="finetuned", doc_top_k=i) for i in (1, 2, 3)}
    search(variants, systems=[made_up(asked)])
    assert asked == [len(TEXTS)]


def test_a_hybrid_fuses_ranks_of_systems_and_variants():
    found = search(
        {"short": Variant(of="finetuned", query_top_k=1)},
        {"rrf": ["finetuned", "short"]},
    )
    want: dict[int, float] = {}
    for name in ("finetuned", "short"):
        for rank, document in enumerate(found[name].index[1].tolist(), 1):
            if document >= 0:
                want[document] = want.get(document, 0) + 1 / (60 + rank)
    got = {d: s for d, s in enumerate(scores(found["rrf"])[1].tolist()) if s}
    assert got == pytest.approx(want, rel=1e-6)
    assert found["rrf"].cost == {} and found["rrf"].d_nnz is None


def test_what_is_measured_of_which_system(trained, tmp_path):
    systems = all_systems(trained, tmp_path, ["bm25", "dense"])
    hybrids = {"rrf": ["bm25", "dense"]}
    found = {r.name: r for r in retrieval.search_all(systems, TEXTS, QUERIES, 3, None, hybrids)}
    assert set(found["bm25"].cost) == set(COST), "every cost of a sparse system"
    assert set(found["dense"].cost) == {"encode_docs_per_s", "query_ms_p50", "query_ms_p99"}
    assert all(value > 0 for value in found["bm25"].cost.values())
    # Of either list the first document is one of the relevant ones, so it stays first.
    assert found["rrf"].index[:, 0].tolist() == [1, 2, 3]


def test_threads_give_the_same_hits():
    entry = retrieval.enter(bm25("english"), TEXTS * 40)
    q_reps = entry.encode_queries(QUERIES * 20)
    one, four = (entry.search(q_reps, 30, threads) for threads in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_corpus_in_parts_finds_the_same_at_the_same_cost(trained, tmp_path, monkeypatch):
    corpora = [[f"{text} {number % 7}" for number, text in enumerate(TEXTS * copies)] for copies in (5, 3)]
    names = ["bm25", "dense", "idf-bag", "finetuned"]
    variants = {
        "pruned": Variant(of="finetuned", doc_top_k=5),
        "two": Variant(of="finetuned", two_phase=True),
        "own": Variant(of="idf-bag", corpus_idf=1.0),
    }

    def found(part):
        monkeypatch.setattr(encoded, "PART", part)
        systems = all_systems(trained, tmp_path / str(part), names)
        each = [
            retrieval.search_all(systems, texts, QUERIES, 9, variants, scratch=tmp_path / "scratch")
            for texts in corpora
        ]
        return {(number, r.name): r for number, results in enumerate(each) for r in results}

    whole, parts = found(100), found(10)
    for key, want in whole.items():
        got = parts[key]
        np.testing.assert_array_equal(got.index, want.index, err_msg=key)
        np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5, err_msg=key)
        measured = {c for c in want.cost if not c.endswith(("_s", "_1", "_2", "_4")) and "_ms_" not in c}
        assert {c: got.cost[c] for c in measured} == pytest.approx({c: want.cost[c] for c in measured})
        assert key[1] == "dense" or got.d_nnz.tolist() == want.d_nnz.tolist()
    for number in (0, 9, 10, 24):
        rows = [results[0, "finetuned"].d_reps.row(number) for results in (whole, parts)]
        np.testing.assert_allclose(*(row.toarray() for row in rows), rtol=1e-5)
    for name in ("idf-bag", "finetuned", "pruned"):
        assert parts[0, name].d_reps.sizes == [10, 10, 5] and parts[1, name].d_reps.sizes == [10, 5]
    assert not (tmp_path / "scratch").exists()


def test_parts_of_a_corpus_are_encoded_once_and_a_killed_call_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "PART", 2)
    asked, rows = [], {text: D[[number]] for number, text in enumerate(TEXTS)}

    def encode(texts, killed=False):
        if killed and len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(texts)
        return vstack([rows[text] for text in texts], "csr")

    with pytest.raises(KeyboardInterrupt):
        encoded.cached_blocks(tmp_path, ["v"], TEXTS, lambda texts: encode(texts, True))

    def index(texts):
        d_reps, seconds = encoded.cached_blocks(tmp_path, ["v"], texts, encode)
        return d_reps, lambda queries: Q[[int(q) for q in queries]], seconds

    variants = {
        "pruned": Variant(of="finetuned", doc_top_k=1),
        "two": Variant(of="finetuned", two_phase=True),
    }
    system, scratch = System("finetuned", index), tmp_path / "scratch"
    first, *_ = retrieval.search_all([system], TEXTS, ["0", "1"], 3, variants, scratch=scratch)
    assert asked == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    np.testing.assert_array_equal(first.d_reps.to_csr().toarray(), D.toarray())
    with pytest.raises(ValueError, match="5 documents are indexed on disk: give a scratch folder"):
        next(retrieval.search_all([system], TEXTS, ["0"], 3))


def test_seismic_takes_the_parts_together(tmp_path):
    pytest.importorskip("seismic", reason="pyseismic-lsr has no wheel for this machine")
    parts = encoded.Blocks([3, 2], lambda i: (D[:3], D[3:])[i])
    index, _ = retrieval.build(parts, "seismic")
    whole, _ = retrieval.build(encoded.Blocks.whole(D), "seismic")
    np.testing.assert_array_equal(index.search(Q, 2)[0], whole.search(Q, 2)[0])


def test_the_corpus_is_counted_once_for_all_variants(trained, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(
        retrieval, "count_df", lambda *given, **more: counted.append(1) or count_df(*given, **more)
    )
    (system,) = all_systems(trained, tmp_path, ["idf-bag"])
    variants = {f"v{share}": Variant(of="idf-bag", corpus_idf=share) for share in (0.3, 0.7)}
    list(retrieval.search_all([system], TEXTS, QUERIES, 3, variants))
    assert counted == [1]
    stemmed = {"stems": Variant(of="idf-bag", corpus_idf=1.0, idf_stemmer="english")}
    _, one = retrieval.search_all([system], ["sorted rows", "sorting", "a table"], ["sort"], 3, stemmed)
    assert one.q_reps.data == pytest.approx(np.log(1 + 1.5 / 2.5)), "two of the three documents sort"


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="bm25: 0 documents"):
        list(retrieval.search_all([bm25("english")], [], ["q"], 1))
    with pytest.raises(ValueError, match="bm25: 0 queries"):
        list(retrieval.search_all([bm25("english")], ["a document"], [], 1))


def test_query_weights_counted_on_the_searched_corpus(trained, tmp_path):
    systems = all_systems(trained, tmp_path, ["idf-bag"])
    options = {"own": {"corpus_idf": 1.0}, "half": {"corpus_idf": 0.5}}
    variants = {name: Variant(of="idf-bag", **one) for name, one in options.items()}
    found = {r.name: r.q_reps for r in retrieval.search_all(systems, TEXTS, QUERIES, 3, variants)}
    counted = np.array(list(compute_idf_weights(TEXTS, systems[0].tokenizer).values()))
    df, _ = count_df(TEXTS, systems[0].tokenizer)
    own = found["own"].tocoo()
    known = df[own.col] > 0
    assert known.any() and not known.all()
    assert own.data[known] == pytest.approx(counted[own.col[known]])
    assert own.data[~known].tolist() == systems[0].idf[own.col[~known]].tolist(), "what it lacks keeps 02's"
    mean = (found["idf-bag"] + found["own"]) / 2
    assert found["half"].toarray() == pytest.approx(mean.toarray())


def test_query_words_counted(trained, tmp_path):
    systems = all_systems(trained, tmp_path, ["idf-bag"])
    twice = ["mean column, file column, file of a column"]
    variants = {"counted": Variant(of="idf-bag", query_counts=True)}
    once, counted = (r.q_reps.toarray()[0] for r in retrieval.search_all(systems, TEXTS, twice, 3, variants))
    column, file, mean = systems[0].tokenizer.convert_tokens_to_ids(["column", "file", "mean"])
    assert counted[column] == pytest.approx(3 * once[column]) and once[column] > 0
    assert counted[file] == pytest.approx(2 * once[file]) and once[file] > 0
    assert counted[mean] == once[mean] == systems[0].idf[mean]
    assert (counted < once).sum() == 0


def test_other_query_weights_leave_the_cut_of_queries(trained, tmp_path):
    (system,) = all_systems(trained, tmp_path, ["idf-bag"])
    variants = {"counted": Variant(of="idf-bag", query_counts=True)}
    short = replace(system, query_length=4)  # [CLS], two tokens, [SEP]
    *_, found = retrieval.search_all([short], TEXTS, ["mean column file"], 3, variants)
    assert found.name == "counted" and found.q_reps.nnz == 2


def test_other_query_weights_are_refused_where_they_mean_nothing(trained, tmp_path):
    for option in ({"corpus_idf": 1.0}, {"query_counts": True}):
        with pytest.raises(ValueError, match="counts query words already"):
            Variant(of="bm25", **option)
        passes = System("finetuned", made_up().index, None)  # as a siamese model's
        with pytest.raises(ValueError, match="of 'finetuned': its queries are no bags"):
            search({"own": Variant(of="finetuned", **option)}, systems=[passes])
