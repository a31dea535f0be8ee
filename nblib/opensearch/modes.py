"""The ways to search an index of text and sparse vectors in OpenSearch, each as the request that asks for it.

Q queries.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from nblib.opensearch.client import patient
from nblib.opensearch.ingest import TEXT, VECTOR

Body = dict[str, Any]
Run = dict[str, dict[str, float]]  # query id -> document id -> score
BERT_TOKENS = "0f052197aac305fe"  # head of the sha256 of bert-base-uncased's tokens, one a line
TWO_PHASE = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10_000}


class SearchError(RuntimeError):
    """The cluster refused a search; names the mode, the query and what the cluster said."""


@dataclass(frozen=True)
class Mode:
    """A way to search.

    name: of its rows. index: that it searches. query: text and weighted tokens of a query, and the hits that
    are wanted -> "query" of the request. pipeline: of the search, by name; "" = none.
    """

    name: str
    index: str
    query: Callable[[str, Mapping[str, float], int], Body]
    pipeline: str = ""

    def request(self, text: str, tokens: Mapping[str, float], size: int) -> Body:
        """Write the body of one search; ids and scores are all that is asked for."""
        return {"size": size, "_source": False, "query": self.query(text, tokens, size)}


def bm25(index: str) -> Mode:
    """BM25 over the text, by the analyzer of the index."""
    return Mode("os-bm25", index, lambda text, tokens, size: {"match": {TEXT: {"query": text}}})


def sparse(index: str, pipeline: str = "", name: str = "os-sparse") -> Mode:
    """neural_sparse by weighted tokens that the caller brings; with a pipeline in two phases."""
    return Mode(name, index, lambda text, tokens, size: _neural({"query_tokens": dict(tokens)}), pipeline)


def by_model(index: str, model_id: str, name: str = "os-tokenizer") -> Mode:
    """neural_sparse by a model of the cluster: SPARSE_TOKENIZE, or SPARSE_ENCODING for a bi-encoder."""
    return Mode(name, index, lambda text, tokens, size: _neural({"query_text": text, "model_id": model_id}))


def by_analyzer(index: str, analyzer: str = "bert-uncased") -> Mode:
    """neural_sparse by an analyzer that OpenSearch brings: its own vocabulary and its own IDF, not ours."""
    return Mode(
        "os-analyzer", index, lambda text, tokens, size: _neural({"query_text": text, "analyzer": analyzer})
    )


def has_bert_vocabulary(tokenizer: Any) -> bool:
    """Tell whether the terms of a model are those of OpenSearch's analyzer bert-uncased."""
    tokens = "\n".join(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    return sha256(tokens.encode()).hexdigest().startswith(BERT_TOKENS)


def seismic(index: str, ids: Mapping[str, int], top_n: int = 10, heap_factor: float = 1.0) -> Mode:
    """neural_sparse over a sparse_vector field, approximately.

    Args:
        index: of `nblib.opensearch.ingest.seismic_index`.
        ids: token -> id, by which that index is keyed.
        top_n: tokens of the query that choose the clusters.
        heap_factor: of the bar that a cluster has to pass; larger finds more and takes longer.

    Source: OpenSearch documentation, "Neural sparse ANN search" (3.3 and later); arXiv:2404.18812.
    """

    def query(text: str, tokens: Mapping[str, float], size: int) -> Body:
        keyed = {str(ids[token]): weight for token, weight in tokens.items()}
        method = {"k": size, "top_n": top_n, "heap_factor": heap_factor}
        return _neural({"query_tokens": keyed, "method_parameters": method})

    return Mode("os-seismic", index, query)


def hybrid(index: str, pipeline: str) -> Mode:
    """BM25 and neural_sparse, joined by a search pipeline, see `normalising` and `by_rank`."""

    def query(text: str, tokens: Mapping[str, float], size: int) -> Body:
        parts = [{"match": {TEXT: {"query": text}}}, _neural({"query_tokens": dict(tokens)})]
        return {"hybrid": {"queries": parts}}

    return Mode("os-hybrid", index, query, pipeline)


def _neural(how: Body) -> Body:
    return {"neural_sparse": {VECTOR: how}}


def two_phase() -> Body:
    """A search pipeline that scores by heavy tokens first, and by all only what that finds."""
    processor = {"enabled": True, "two_phase_parameter": TWO_PHASE}
    return {"request_processors": [{"neural_sparse_two_phase_processor": processor}]}


def normalising(weights: Sequence[float] = (0.5, 0.5)) -> Body:
    """A search pipeline that joins a hybrid's parts by their scores, each brought to 0 to 1."""
    joined = {"technique": "arithmetic_mean", "parameters": {"weights": list(weights)}}
    processor = {"normalization": {"technique": "min_max"}, "combination": joined}
    return {"phase_results_processors": [{"normalization-processor": processor}]}


def by_rank(constant: int = 60) -> Body:
    """A search pipeline that joins a hybrid's parts by reciprocal ranks."""
    processor = {"combination": {"technique": "rrf", "rank_constant": constant}}
    return {"phase_results_processors": [{"score-ranker-processor": processor}]}


def put_search_pipeline(client: OpenSearch, name: str, body: Body) -> None:
    """Make a search pipeline, or replace the one of this name."""
    client.transport.perform_request("PUT", f"/_search/pipeline/{name}", body=body)


def ask(client: OpenSearch, mode: Mode, body: Body) -> dict[str, Any]:
    """Send one search; returns the cluster's answer.

    Raises:
        SearchError: the answer is of a part of the index.
        TransportError: the cluster refused the search.
    """
    params = {"search_pipeline": mode.pipeline} if mode.pipeline else {}
    answer = client.search(index=mode.index, body=body, params=params)
    if answer["timed_out"] or answer["_shards"]["failed"]:
        raise SearchError(f"{mode.name}: {answer['_shards']['failed']} shards of {mode.index} gave no answer")
    return answer


def search(
    client: OpenSearch,
    mode: Mode,
    query_ids: Sequence[str],
    queries: Sequence[str],
    tokens: Sequence[Mapping[str, float]],
    size: int,
    threads: int = 4,
) -> Run:
    """Search all queries.

    Args:
        client: see nblib.opensearch.client.connect.
        mode: how.
        query_ids, queries: Q ids and texts.
        tokens: Q weighted queries; modes whose cluster weighs the query by itself do not read them.
        size: hits of each query.
        threads: requests at a time.

    Returns:
        The run; a query without a token or a hit has no documents.

    Raises:
        SearchError: the cluster refused a search; names the mode and the query.
    """

    def one(number: int) -> dict[str, float]:
        body = mode.request(queries[number], tokens[number], size)
        try:
            hits = patient(lambda: ask(client, mode, body))["hits"]["hits"]
        except TransportError as error:
            raise SearchError(f"{mode.name}, query {query_ids[number]}: {error}") from error
        return {hit["_id"]: hit["_score"] for hit in hits}

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(query_ids, pool.map(one, range(len(queries))), strict=True))
