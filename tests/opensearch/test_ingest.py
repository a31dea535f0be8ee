"""Documents in the real cluster: every one, once, whatever happens to the node meanwhile."""

import threading
import time
from itertools import count
from urllib.parse import urlsplit

import numpy as np
import pytest
from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError
from scipy.sparse import csr_matrix

from nblib.opensearch import ingest
from nblib.opensearch.client import connect
from nblib.opensearch.ingest import IngestError, create_index, index_documents, rows, sparse_index, vectors
from nblib.opensearch.node import start


@pytest.fixture
def index(client, request):
    """A fresh index of text and vectors, for one test."""
    name = request.node.name[:40].strip("_").lower()
    create_index(client, name, sparse_index())
    yield name
    client.indices.delete(index=name, ignore=[404])


def documents(n):
    vector = lambda i: {"a": 1.0 + i % 7, f"t{i % 50}": 0.5}  # noqa: E731
    return [{"_id": f"d{i}", "text": f"text {i}", "embedding": vector(i)} for i in range(n)]


def held(client, name, n):
    """Ids in an index, as often as they are there."""
    hits = client.search(index=name, body={"size": n + 1, "_source": False, "query": {"match_all": {}}})
    return sorted(hit["_id"] for hit in hits["hits"]["hits"])


def test_vectors_are_the_rows_without_zeros():
    reps = csr_matrix(np.array([[0, 2.0, 0], [0, 0, 0], [0.5, 0, 1.0]], np.float32))
    reps.data[0] = 0.0  # stored, and still no term
    assert list(vectors(reps, ["a", "b", "c"])) == [{}, {}, {"a": 0.5, "c": 1.0}]


def test_rows_leave_out_what_is_not_there():
    encoded = [{"a": 1.0}, {}]
    assert list(rows(["x", "y"], ["one", "two"], encoded)) == [
        {"_id": "x", "text": "one", "embedding": {"a": 1.0}},
        {"_id": "y", "text": "two", "embedding": {}},
    ]
    assert list(rows(["x", "y"], None, encoded, allow_empty=False))[1] == {"_id": "y"}
    assert list(rows(["x"], ["one"], None)) == [{"_id": "x", "text": "one"}]


def test_a_second_call_changes_nothing(client, index):
    for _ in range(2):
        assert index_documents(client, index, iter(documents(450)), 450, threads=2) > 0
    assert held(client, index, 450) == sorted(f"d{i}" for i in range(450))


def test_two_documents_of_one_id_are_noticed(client, index):
    with pytest.raises(IngestError, match=r"held 0 documents, 2 were written, now it has 1: are ids unique"):
        index_documents(client, index, [{"_id": "x", "text": "one"}, {"_id": "x", "text": "two"}], 2)


@pytest.mark.parametrize(
    "spoiled, words",
    [
        ({"embedding": {"a": 0.0}}, "must be a positive normal float"),
        ({"other": 1}, "strict_dynamic_mapping_exception"),
    ],
)
def test_a_document_that_is_refused_is_named(client, index, spoiled, words):
    part = [*documents(5), {"_id": "bad one", "text": "x"} | spoiled]
    with pytest.raises(IngestError, match=f"document 'bad one' was refused, .*{words}"):
        index_documents(client, index, part, 6)


def test_a_full_cluster_is_waited_for(client, index, monkeypatch):
    """The queue of writes is full now and then: for a whole request, and for single documents."""
    real, calls = client.bulk, count()

    def full(*args, **kwargs):
        turn = next(calls)
        if turn == 0:
            raise TransportError(429, "rejected_execution_exception", {})
        answer = real(*args, **kwargs)
        if turn == 1:
            for item in answer["items"][::3]:
                item["index"] |= {"status": 429, "error": {"type": "rejected_execution_exception"}}
        return answer

    monkeypatch.setattr(client, "bulk", full)
    index_documents(client, index, documents(30), 30, chunk=30)
    assert held(client, index, 30) == sorted(f"d{i}" for i in range(30)) and next(calls) == 3


def test_a_cluster_that_stays_full_ends_the_call(client, index, monkeypatch):
    """A disk at its flood stage refuses each document by itself, and for good."""
    client.indices.put_settings(index=index, body={"index.blocks.read_only_allow_delete": True})
    with pytest.raises(
        IngestError, match=r"d0 and 4 more are not written: cluster_block_exception: .*read-only"
    ):
        index_documents(client, index, documents(5), 5, outage_s=1.0)


def test_documents_may_join_others(client, index):
    index_documents(client, index, documents(5), 5)
    index_documents(client, index, [{"_id": "more", "text": "x"}], 1)
    assert held(client, index, 6) == ["d0", "d1", "d2", "d3", "d4", "more"]


def test_an_interrupted_call_ends_at_once(client, index, monkeypatch):
    """Though a request waits for a cluster that is full."""
    monkeypatch.setattr(ingest, "_bulk", lambda client, index, part: (part, "full"))

    def source():
        yield from documents(5)
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        index_documents(client, index, source(), 100, chunk=5, outage_s=60)
    assert time.monotonic() - begun < 20


def test_the_source_is_read_no_faster_than_the_cluster_writes(client, index, monkeypatch):
    read, most, sent = 0, 0, 0
    real = ingest._send

    def source():
        nonlocal read
        for document in documents(400):
            read += 1
            yield document

    def slow(*args):
        nonlocal sent, most
        most = max(most, read - sent)
        time.sleep(0.02)
        done = real(*args)
        sent += done
        return done

    monkeypatch.setattr(ingest, "_send", slow)
    index_documents(client, index, source(), 400, threads=1, chunk=10)
    assert most <= 10 * (ingest.AHEAD + 2)


def test_a_cluster_that_stays_away_ends_the_call():
    away = OpenSearch("http://127.0.0.1:1", max_retries=0)
    away.count = lambda index: {"count": 0}
    with pytest.raises(IngestError, match="nowhere: d0 and 4 more are not written: ConnectionError.*refused"):
        index_documents(away, "nowhere", documents(5), 5, outage_s=0.1)


def test_a_node_killed_in_mid_bulk_holds_every_document_once(node, client, index):
    """Killed while requests are under way, started again while the same call waits."""
    n, seen, ends = 6000, threading.Event(), []
    own = connect(node.url)

    def source():
        for number, document in enumerate(documents(n)):
            if number == n // 3:
                seen.set()
            yield document

    def write():
        ends.append(index_documents(own, index, source(), n, threads=2, chunk=50))

    writing = threading.Thread(target=write)
    writing.start()
    assert seen.wait(60)
    node.kill()
    assert not node.alive() and writing.is_alive()
    again = start(node.folder.name, port=urlsplit(node.url).port)
    writing.join(120)
    assert ends and again.url == node.url and again.pid != node.pid
    assert held(client, index, n) == sorted(f"d{i}" for i in range(n))
