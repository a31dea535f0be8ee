"""The search page over an index of a real node: the same hits as in this process, and what it refuses."""

import shutil
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from itertools import pairwise
from socketserver import TCPServer

import pytest
from opensearchpy import OpenSearch

from nblib.demo.cluster import LexicalThere, SparseThere, check_index
from nblib.demo.engines import Sparse
from nblib.demo.server import main, make_server
from nblib.export.opensearch import token_strings
from nblib.files import read_json, write_json
from nblib.opensearch.ingest import create_index, index_documents, rows, sparse_index, vectors
from nblib.opensearch.modes import SearchError
from nblib.opensearch.parity import QUANTISED
from nblib.query_side import CONFIG
from nblib.systems import learned_sparse
from tests.steps import TEXTS

INDEX, LENGTH = "of-the-page", 32


@pytest.fixture(scope="module")
def texts():
    return [*TEXTS, "\U0001f35e Bake <b>bread</b> & breads, then bake bread.", "서울은 대한민국의 수도이다."]


@pytest.fixture(scope="module")
def system(trained, tmp_path_factory):
    model = f"{trained['model_dir']}/artifacts/final_model"
    idf = f"{trained['idf_dir']}/artifacts/idf.json"
    return learned_sparse("finetuned", model, idf, LENGTH, 4, tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def filled(client, texts, system):
    d_reps = system.index(texts)[0].to_csr()
    tokenizer = system.tokenizer
    terms = token_strings(tokenizer.backend_tokenizer, tokenizer.all_special_ids, len(system.idf))
    ids = [f"d{i}" for i in range(len(texts))]
    create_index(client, INDEX, sparse_index("english"))
    index_documents(client, INDEX, rows(ids, texts, vectors(d_reps, terms)), len(texts))
    yield ids
    client.indices.delete(index=INDEX)


def test_the_sparse_hits_are_those_of_this_process(client, filled, texts, system, tmp_path):
    here = Sparse(filled, texts, system, LENGTH, tmp_path)
    there = SparseThere(client, INDEX, system, LENGTH)
    for query in ("bread and butter", "bake", "the sea"):
        ours, theirs = here.search(query, 5), there.search(query, 5)
        assert ours, query
        assert [hit.score for hit in theirs] == pytest.approx([hit.score for hit in ours], rel=QUANTISED)
        by_id = {hit.doc_id: hit for hit in ours}
        same = [(hit, by_id[hit.doc_id]) for hit in theirs if hit.doc_id in by_id]
        assert len(same) >= len(ours) - 1  # the last may be of a near tie
        for their, our in same:
            assert {m.token: m.added for m in their.terms} == {m.token: m.added for m in our.terms}
            assert "".join(part.text for part in their.parts) == texts[filled.index(their.doc_id)]
            assert [part.text for part in their.parts] == [part.text for part in our.parts]
    assert there.search("서울", 5) == here.search("서울", 5) == [], "a query without a weight is not sent"


def test_the_words_of_bm25_add_up_and_are_marked(client, filled, texts):
    hits = LexicalThere(client, INDEX).search("baking breads", 5)
    assert hits[0].doc_id == f"d{len(TEXTS)}", "it says both words twice"
    for hit in hits:
        assert sum(match.contribution for match in hit.terms) == pytest.approx(hit.score, rel=1e-4)
        assert "".join(part.text for part in hit.parts) == texts[filled.index(hit.doc_id)]
    assert [part.text for part in hits[0].parts if part.weight] == [
        "Bake",
        "bread",
        "breads",
        "bake",
        "bread",
    ]
    assert all(a.score >= b.score for a, b in pairwise(hits))
    assert LexicalThere(client, INDEX).search("zzz", 5) == []


def test_overlapping_pieces_of_an_analyzer_are_one_mark(client):
    create_index(client, "of-bigrams", sparse_index("cjk"))
    text = "대한민국의 수도는 서울"
    index_documents(client, "of-bigrams", [{"_id": "1", "text": text}], 1)
    (hit,) = LexicalThere(client, "of-bigrams").search("대한민국", 3)
    client.indices.delete(index="of-bigrams")
    assert [part.text for part in hit.parts if part.weight] == ["대한민국"]
    assert "".join(part.text for part in hit.parts) == text


def test_an_index_of_another_kind_is_refused(client, filled):
    assert check_index(client, INDEX) == len(filled)
    with pytest.raises(ValueError, match="no index of-nobody; .* -p keep=true"):
        check_index(client, "of-nobody")
    client.indices.create(index="of-words", body={"mappings": {"properties": {"text": {"type": "text"}}}})
    with pytest.raises(ValueError, match="want text of type text and embedding of type rank_features"):
        check_index(client, "of-words")
    with pytest.raises(ValueError, match="name one"):
        check_index(client, "of-*")
    client.indices.delete(index="of-words")


def test_a_text_that_cannot_be_analyzed_is_shown_unmarked(client, filled):
    client.indices.put_settings(index=INDEX, body={"index.analyze.max_token_count": 3})
    hits = LexicalThere(client, INDEX).search("baking breads", 1)
    client.indices.put_settings(index=INDEX, body={"index.analyze.max_token_count": None})
    assert hits[0].terms and not any(part.weight for part in hits[0].parts)


def test_main_makes_the_engines_of_an_index(client, filled, node, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSEARCH_URL", node.url)
    served = []
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda self: served.append(self))
    folders = ["--model", trained["model_dir"], "--idf", trained["idf_dir"], "--port", "0"]
    assert main([*folders, "--index", INDEX]) == 0
    threading.Thread(target=TCPServer.serve_forever, args=(served[0],), daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{served[0].server_port}/?q=bread") as answer:
        text = answer.read().decode()
    served[0].shutdown()
    assert f"{len(filled)} documents of the index {INDEX}" in text
    assert text.count("<mark") >= 4 and "in OpenSearch" in text


def test_a_cluster_that_is_gone_ends_a_search_and_not_the_page(system):
    gone = OpenSearch(["http://127.0.0.1:9"], max_retries=0)
    engines = [LexicalThere(gone, INDEX), SparseThere(gone, INDEX, system, LENGTH)]
    for engine in engines:
        with pytest.raises(SearchError, match=f"{INDEX} was not searched"):
            engine.find("bread", 3)
    server = make_server(engines, "Side by side", "", port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(urllib.error.HTTPError, match="502") as answer:
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/?q=bread")
    assert "No answer: of-the-page was not searched" in answer.value.read().decode()
    server.shutdown()


def test_what_cannot_be_shown_is_said_at_once(trained, tmp_path, monkeypatch, capsys):
    options = ["--idf", trained["idf_dir"], "--index", INDEX]
    monkeypatch.setenv("OPENSEARCH_URL", "http://127.0.0.1:9")
    assert main(["--model", trained["model_dir"], *options]) == 2
    assert "127.0.0.1:9 does not answer" in capsys.readouterr().err
    copied = shutil.copytree(f"{trained['model_dir']}/artifacts/final_model", tmp_path / "model")
    write_json(copied / CONFIG, read_json(copied / CONFIG) | {"query_side": "siamese"})
    assert main(["--model", str(copied), *options]) == 2
    assert "siamese" in capsys.readouterr().err
