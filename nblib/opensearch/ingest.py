"""Fill an index with documents and their sparse vectors: encoded here, or by the cluster's own model.

N documents, V terms.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Event
from typing import Any

from opensearchpy import OpenSearch, helpers
from opensearchpy.exceptions import TransportError
from scipy.sparse import csr_matrix

from nblib.opensearch.client import BUSY
from nblib.run.progress import report

TEXT, VECTOR = "text", "embedding"  # fields
CHUNK = 200  # documents of a request
CHUNK_BYTES = 8_000_000
AHEAD = 2  # requests of each thread that may wait: the source is read no faster than the cluster writes
WRITE_S = 3600  # in which a refresh is surely done; that of SEISMIC clusters all postings
OUTAGE_S = 120.0  # in which nothing is written, after which a call gives up


class IngestError(RuntimeError):
    """Documents that the cluster did not take; names the first and the reason."""


def sparse_index(
    analyzer: str = "english", shards: int = 1, replicas: int = 0, pipeline: str = ""
) -> dict[str, Any]:
    """Describe an index of text, for BM25, and a sparse vector, for neural_sparse: the body of its creation.

    Args:
        analyzer: of the text: "english", "cjk" (bigrams of Korean), or one that a plugin brings, such as
            "nori".
        shards, replicas: of the index.
        pipeline: an ingest pipeline that encodes the text; "" = vectors come with the documents.
    """
    settings = {"number_of_shards": shards, "number_of_replicas": replicas}
    fields = {TEXT: {"type": "text", "analyzer": analyzer}, VECTOR: {"type": "rank_features"}}
    return {
        "settings": {"index": settings | ({"default_pipeline": pipeline} if pipeline else {})},
        "mappings": {"dynamic": "strict", "properties": fields},
    }


def seismic_index(
    approximate_from: int = 0, shards: int = 1, replicas: int = 0, **method: Any
) -> dict[str, Any]:
    """Describe an index of sparse vectors that SEISMIC searches; its terms are ids, written as digits.

    Args:
        approximate_from: documents of a segment from which on it is searched approximately.
        shards, replicas: of the index.
        method: more parameters of sparse_vector: n_postings, cluster_ratio, summary_prune_ratio, ...

    Source: OpenSearch documentation, "Sparse vector" (3.3 and later).
    """
    parameters = {"approximate_threshold": approximate_from} | method
    field = {"type": "sparse_vector", "method": {"name": "seismic", "parameters": parameters}}
    settings = {"number_of_shards": shards, "number_of_replicas": replicas, "sparse": True}
    return {"settings": {"index": settings}, "mappings": {"dynamic": "strict", "properties": {VECTOR: field}}}


def encoding_pipeline(model_id: str, prune_ratio: float = 0.0) -> dict[str, Any]:
    """Describe an ingest pipeline that encodes the text by a SPARSE_ENCODING model of the cluster.

    prune_ratio: weights below this share of a document's largest are dropped.
    """
    pruning = {"prune_type": "max_ratio", "prune_ratio": prune_ratio} if prune_ratio else {}
    return {
        "processors": [{"sparse_encoding": {"model_id": model_id, "field_map": {TEXT: VECTOR}} | pruning}]
    }


def create_index(client: OpenSearch, name: str, body: dict[str, Any]) -> None:
    """Make an index, removing one of this name."""
    client.indices.delete(index=name, ignore=[404])
    client.indices.create(index=name, body=body)


def vectors(reps: csr_matrix, terms: Sequence[str]) -> Iterator[dict[str, float]]:
    """Write reps [N, V] as OpenSearch takes them, {term: weight}, without zeros; terms: V strings.

    Weights of a document are float32 there, and in a rank_features field 9 bits of precision.
    """
    for row in range(reps.shape[0]):
        at = slice(reps.indptr[row], reps.indptr[row + 1])
        pairs = zip(reps.indices[at].tolist(), reps.data[at].tolist(), strict=True)
        yield {terms[i]: weight for i, weight in pairs if weight > 0}


def rows(
    doc_ids: Sequence[str],
    texts: Sequence[str] | None,
    encoded: Iterable[dict[str, float]] | None,
    allow_empty: bool = True,
) -> Iterator[dict[str, Any]]:
    """Join ids, texts and vectors into documents for `index_documents`; None leaves a part out.

    allow_empty: write a vector without terms as {}; False leaves it out, as sparse_vector wants.
    """
    parts = iter(encoded) if encoded is not None else None
    for number, doc_id in enumerate(doc_ids):
        row: dict[str, Any] = {"_id": doc_id}
        if texts is not None:
            row[TEXT] = texts[number]
        vector = next(parts) if parts is not None else None
        if vector or (vector is not None and allow_empty):
            row[VECTOR] = vector
        yield row


def index_documents(
    client: OpenSearch,
    index: str,
    documents: Iterable[dict[str, Any]],
    total: int,
    threads: int = 1,
    chunk: int = CHUNK,
    outage_s: float = OUTAGE_S,
) -> float:
    """Write documents into an index, each once, whatever the cluster does meanwhile.

    A document is written under its own id, so that a request that is sent again, since no answer came,
    changes nothing. While the cluster is full (429) or away, requests wait and are sent again; meanwhile no
    more documents are read than `threads` x AHEAD requests hold.

    Args:
        client: see nblib.opensearch.client.connect.
        index: its name; it must be there. It may hold documents, of these ids or of others.
        documents: rows with "_id" and the fields.
        total: N, for the line of progress, and to be compared with what the index holds in the end.
        threads: requests at a time.
        chunk: documents of a request.
        outage_s: seconds in which nothing can be written, after which it gives up.

    Returns:
        The seconds until all were written and searchable.

    Raises:
        IngestError: a document was refused, the cluster stayed away, or the index holds another number of
            documents.
    """
    before = client.count(index=index)["count"]
    begun, done, source, stop = time.perf_counter(), 0, iter(documents), Event()
    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while (part := list(islice(source, chunk))) or waiting:
                if part:
                    waiting.append(pool.submit(_send, client, index, part, outage_s, stop))
                while waiting and (not part or len(waiting) >= threads * AHEAD):
                    done += waiting.popleft().result()
                    report(f"{index}: documents", done, total)
        except BaseException:
            stop.set()  # what waits for the cluster waits no longer
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    client.indices.refresh(index=index, request_timeout=WRITE_S)
    seconds = time.perf_counter() - begun
    held = client.count(index=index)["count"]
    if not max(before, total) <= held <= before + total:
        raise IngestError(
            f"{index} held {before:,} documents, {total:,} were written, now it has {held:,}: are ids unique?"
        )
    return seconds


def _send(client: OpenSearch, index: str, part: list[dict[str, Any]], outage_s: float, stop: Event) -> int:
    """Send documents until all are written; how many."""
    end, pause, left, why = time.monotonic() + outage_s, 0.5, part, ""
    while True:
        try:
            before, (left, why) = len(left), _bulk(client, index, left)
            if not left:
                return len(part)
            if len(left) < before:
                end = time.monotonic() + outage_s  # it takes some
        except TransportError as error:
            why = str(error)
            if error.status_code not in ("N/A", "TIMEOUT", *BUSY):
                end = 0.0
        if time.monotonic() > end:
            raise IngestError(f"{index}: {left[0]['_id']} and {len(left) - 1} more are not written: {why}")
        if stop.wait(pause):
            raise IngestError(f"{index}: stopped")
        pause = min(2 * pause, 5.0)


def _bulk(client: OpenSearch, index: str, part: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Send one request; what the cluster had no room for, and why."""
    by_id, left, why = {row["_id"]: row for row in part}, [], ""
    answers = helpers.streaming_bulk(
        client,
        ({"_op_type": "index", "_index": index} | row for row in part),
        chunk_size=len(part),
        max_chunk_bytes=CHUNK_BYTES,
        raise_on_error=False,
    )
    for written, answer in answers:
        if written:
            continue
        found = answer["index"]
        if found["status"] not in BUSY:
            raise IngestError(f"{index}: document {found['_id']!r} was refused, {_why(found['error'])}")
        left.append(by_id[found["_id"]])
        why = _why(found["error"])
    return left, why


def _why(error: dict[str, Any]) -> str:
    """Join what the cluster says of an error and of its causes."""
    said = []
    while error:
        said.append(f"{error.get('type')}: {error.get('reason')}")
        error = error.get("caused_by")
    return "; ".join(said)
