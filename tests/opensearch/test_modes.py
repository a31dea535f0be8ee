"""The same model in the cluster: vectors, scores, order; and each way to search, beside our engine."""

from types import SimpleNamespace

import numpy as np
import pytest

from nblib.bags import query_matrix
from nblib.export.opensearch import token_strings
from nblib.export.sentence_transformers import LONGEST_QUERY
from nblib.model.prune import prune_reps
from nblib.opensearch import modes
from nblib.opensearch.deploy import deploy
from nblib.opensearch.ingest import (
    create_index,
    encoding_pipeline,
    index_documents,
    rows,
    seismic_index,
    sparse_index,
    vectors,
)
from nblib.opensearch.live import stored_vectors
from nblib.opensearch.load import Load, measure, table
from nblib.opensearch.modes import SearchError, search
from nblib.opensearch.parity import QUANTISED, TOLERANCE, compare_scores, compare_vectors, predict
from nblib.opensearch.parity import table as comparisons
from nblib.opensearch.zips import open_package


@pytest.fixture(scope="module", params=["en", "ko"])
def live(request, client, exported):
    """A model of each language in the cluster, with its documents: encoded there, here, and for SEISMIC."""
    model, name = exported(request.param), f"live-{request.param}"
    doc, query = (deploy(client, open_package(model.zips[kind])) for kind in ("doc", "query"))
    core = model.encoder.tokenizer.backend_tokenizer
    terms = token_strings(core, model.encoder.special_ids, len(model.idf))
    d_reps = model.encoder.encode_documents(model.texts)
    q_reps = query_matrix(model.queries, model.encoder.tokenizer, model.idf)
    ids, n = [f"d{i}" for i in range(len(model.texts))], len(model.texts)
    client.ingest.put_pipeline(id=name, body=encoding_pipeline(doc.model_id))
    analyzer = "english" if request.param == "en" else "cjk"
    create_index(client, f"{name}-there", sparse_index(analyzer, pipeline=name))
    index_documents(client, f"{name}-there", rows(ids, model.texts, None), n)
    create_index(client, f"{name}-here", sparse_index(analyzer))
    index_documents(client, f"{name}-here", rows(ids, model.texts, vectors(d_reps, terms)), n)
    create_index(client, f"{name}-seismic", seismic_index())
    numbered = vectors(d_reps, [str(i) for i in range(len(terms))])
    index_documents(client, f"{name}-seismic", rows(ids, None, numbered, allow_empty=False), n)
    yield SimpleNamespace(
        name=name,
        model=model,
        doc=doc.model_id,
        query=query.model_id,
        terms=terms,
        d_reps=d_reps,
        q_reps=q_reps,
        tokens=list(vectors(q_reps, terms)),
        ids=ids,
        qids=[f"q{i}" for i in range(len(model.queries))],
        exact=(q_reps @ d_reps.T).toarray(),
    )
    for kind in ("there", "here", "seismic"):
        client.indices.delete(index=f"{name}-{kind}")


def found(client, live, mode, size=10):
    return search(client, mode, live.qids, live.model.queries, live.tokens, size)


def best(run):
    return {query: sorted(hits, key=hits.get, reverse=True) for query, hits in run.items()}


def test_the_cluster_encodes_documents_and_queries_as_we_do(client, live):
    documents = predict(client, live.doc, live.model.texts)
    ours = compare_vectors(documents, list(vectors(live.d_reps, live.terms)))
    assert ours["same_terms"] == 1 and ours["max_abs_diff"] < TOLERANCE and ours["texts"] == len(live.ids)
    queries = predict(client, live.query, live.model.queries)
    assert compare_vectors(queries, live.tokens)["max_abs_diff"] < TOLERANCE


def test_a_query_is_whole_there_up_to_512_tokens(client, live):
    tokenizer, idf = live.model.encoder.tokenizer, live.model.idf
    first, last = live.model.texts[0], live.model.texts[-1]
    n = len(tokenizer(first)["input_ids"]) - 2  # without [CLS] and [SEP]
    for times, held in ((max(1, 300 // n), True), (600 // n + 1, False)):
        long = " ".join([first] * times + [last])
        ours = vectors(query_matrix([long], tokenizer, idf, LONGEST_QUERY), live.terms)
        whole = query_matrix([long], tokenizer, idf)
        assert (query_matrix([long], tokenizer, idf, LONGEST_QUERY).nnz == whole.nnz) == held
        told = compare_vectors(predict(client, live.query, [long]), list(ours))
        assert told["same_terms"] == 1 and told["max_abs_diff"] < TOLERANCE


def test_what_the_pipeline_wrote_is_what_we_would_write(client, live):
    there, here = (
        [client.get(index=f"{live.name}-{kind}", id=i)["_source"]["embedding"] for i in live.ids]
        for kind in ("there", "here")
    )
    told = compare_vectors(there, here)
    assert told["same_terms"] == 1 and told["max_abs_diff"] < TOLERANCE


def test_a_pipeline_prunes_as_we_do(client, live):
    """OpenSearch's max_ratio against nblib.model.prune."""
    client.ingest.put_pipeline(id="pruned", body=encoding_pipeline(live.doc, prune_ratio=0.6))
    create_index(client, name := f"{live.name}-pruned", sparse_index(pipeline="pruned"))
    index_documents(client, name, rows(live.ids, live.model.texts, None), len(live.ids))
    there = stored_vectors(client, name, live.ids)
    ours = list(vectors(prune_reps(live.d_reps, 0.6), live.terms))
    client.indices.delete(index=name)
    told = compare_vectors(there, ours)
    assert told["same_terms"] == 1 and told["max_abs_diff"] < TOLERANCE
    assert 0 < sum(map(len, ours)) < live.d_reps.nnz, "something was pruned, and not all"


def test_scores_and_order_are_the_exact_engines(client, live):
    runs = {
        "raw": found(client, live, modes.sparse(f"{live.name}-here")),
        "raw, encoded there": found(client, live, modes.sparse(f"{live.name}-there")),
        "tokenizer": found(client, live, modes.by_model(f"{live.name}-here", live.query)),
    }
    for name, run in runs.items():
        told = compare_scores(run, live.qids, live.ids, live.q_reps, live.d_reps)
        assert told["pairs"] == np.count_nonzero(live.exact), name
        assert told["max_rel_diff"] < QUANTISED, name
        for number, query in enumerate(live.qids):
            wanted = [live.ids[i] for i in np.argsort(-live.exact[number]) if live.exact[number, i] > 0]
            got = [live.exact[number, live.ids.index(i)] for i in best(run)[query]]
            ideal = [live.exact[number, live.ids.index(i)] for i in wanted]
            np.testing.assert_allclose(got, ideal, rtol=QUANTISED, err_msg=name)  # near ties may change place


def test_two_phases_find_the_best(client, live):
    modes.put_search_pipeline(client, "two-phase", modes.two_phase())
    mode = modes.sparse(f"{live.name}-here", "two-phase", "os-two-phase")
    plain = best(found(client, live, modes.sparse(f"{live.name}-here")))
    for query, order in best(found(client, live, mode)).items():
        assert order[:3] == plain[query][:3]


def test_a_pipeline_is_asked_for(client, live):
    mode = modes.sparse(f"{live.name}-here", "no-such-pipeline")
    with pytest.raises(SearchError, match="no-such-pipeline"):
        found(client, live, mode)


def test_a_bi_encoder_gives_queries_the_documents_vectors(client, live):
    run = found(client, live, modes.by_model(f"{live.name}-here", live.doc, "os-bi-encoder"))
    q_reps = live.model.encoder.encode_documents(live.model.queries)
    told = compare_scores(run, live.qids, live.ids, q_reps, live.d_reps)
    assert told["pairs"] and told["max_rel_diff"] < QUANTISED


def test_seismic_finds_what_the_exact_engine_finds(client, live):
    keyed = {term: i for i, term in enumerate(live.terms)}
    mode = modes.seismic(f"{live.name}-seismic", keyed)
    plain = best(found(client, live, modes.sparse(f"{live.name}-here")))
    for query, order in best(found(client, live, mode)).items():
        top = set(plain[query][:3])
        assert len(set(order[:3]) & top) >= len(top) - 1, "weights there have 8 bits"


def test_bm25_ranks_by_words(client, live):
    run = found(client, live, modes.bm25(f"{live.name}-here"))
    first, word = best(run)["q0"][0], {"live-en": "frame", "live-ko": "서울"}[live.name]
    assert word in live.model.texts[live.ids.index(first)]
    assert run["q2"] == {}, "neither 'unseen zebra' nor 없는 말 is in a document"


def test_a_hybrid_joins_both(client, live):
    for pipeline, body in (("normalised", modes.normalising()), ("by-rank", modes.by_rank())):
        modes.put_search_pipeline(client, pipeline, body)
        run = found(client, live, modes.hybrid(f"{live.name}-here", pipeline))
        assert set(run["q0"]) >= set(found(client, live, modes.bm25(f"{live.name}-here"))["q0"])
        assert max(run["q0"].values()) <= 1.0


def test_an_analyzer_has_weights_of_its_own(client, live):
    if live.name == "live-ko":
        pytest.skip("OpenSearch brings an analyzer of an English vocabulary, and a multilingual one")
    run = found(client, live, modes.by_analyzer(f"{live.name}-here"))
    told = compare_scores(run, live.qids, live.ids, live.q_reps, live.d_reps)
    assert run["q0"] and told["max_rel_diff"] > 0.1


def test_a_query_that_is_refused_is_named(client, live):
    mode = modes.by_model(f"{live.name}-here", "no-such-model")
    with pytest.raises(SearchError, match="os-tokenizer, query q0: "):
        found(client, live, mode)


def test_load_is_counted_for_every_mode(client, live):
    ways = [modes.bm25(f"{live.name}-here"), modes.sparse(f"{live.name}-here")]
    loads = measure(client, ways, live.model.queries, live.tokens, 10, clients=2, searches=40)
    assert [load.mode for load in loads] == ["os-bm25", "os-sparse"]
    for load in loads:
        assert load.searches == 40 and load.clients == 2
        assert 0 < load.p50_ms <= load.p99_ms and load.queries_per_s > 0
        assert load.took_p50_ms <= load.p50_ms + 1


def test_times_are_laid_out_by_way_and_clients():
    loads = [
        Load(mode, clients, 9, p50, p99, 0.0, 1.0, rate)
        for mode, clients, p50, p99, rate in [
            ("os-bm25", 1, 0.5, 2.0, 900.0),
            ("os-sparse", 1, 0.75, 3.0, 800.0),
            ("os-bm25", 4, 1.0, 4.0, 1900.0),
            ("os-sparse", 4, 1.25, 3.0, 1800.4),
        ]
    ]
    lines = table(loads).values.tolist()
    assert lines[0] == ["os-bm25", "0.50 / 2.00 (1.00)", "1.00 / 4.00 (1.00)", "1,900", "9"]
    assert lines[1] == ["os-sparse", "0.75 / 3.00 (1.50)", "1.25 / 3.00 (0.75)", "1,800", "9"]


def test_differences_are_found():
    ours = [{"a": 1.0, "b": 2.0}, {"a": 1.0}]
    assert compare_vectors(ours, ours) == {"texts": 2, "same_terms": 1.0, "max_abs_diff": 0.0}
    told = compare_vectors([{"a": 1.0, "b": 2.5}, {}], ours)
    assert told == {"texts": 2, "same_terms": 0.5, "max_abs_diff": 1.0}


def test_comparisons_are_laid_out():
    checks = {
        "document vectors": {"texts": 200, "same_terms": 1.0, "max_abs_diff": 7.8e-06},
        "scores, set": {"pairs": 2958, "max_rel_diff": 0.00388, "mean_rel_diff": 0.00143},
        "nDCG@10, set": {"queries": 300, "here": 0.45355, "there": 0.4537, "diff": 0.00015},
    }
    assert comparisons(checks).values.tolist() == [
        ["document vectors", "200 texts", "same terms in 100%, weights differ by 8e-06 at most"],
        ["scores, set", "2,958 pairs", "differ by 0.39% at most, 0.14% in the mean"],
        ["nDCG@10, set", "300 queries", "0.4536 here, 0.4537 there"],
    ]
