"""What the search page asks of an index of OpenSearch: the engines of nblib.demo.engines, over there.

V terms.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError
from scipy.sparse import csr_matrix

from nblib.bags import query_matrix
from nblib.demo.engines import Engine, Hit, matched, sparse_hit, split
from nblib.export.opensearch import token_strings
from nblib.opensearch import modes
from nblib.opensearch.ingest import TEXT, VECTOR, vectors
from nblib.systems import System

WEIGHED = re.compile(rf"weight\({TEXT}:(.+) in \d+\)")  # a term in the explanation of a score
Answer = TypeVar("Answer")


def check_index(client: OpenSearch, index: str) -> int:
    """Make sure that an index can be searched by words and by sparse vectors.

    Args:
        client: see nblib.opensearch.client.connect.
        index: its name, or one alias of it.

    Returns:
        The documents that it holds.

    Raises:
        ValueError: it is not there, or lacks a field; names the cure.
        SearchError: the cluster gave no answer.
    """
    if not _asked(index, lambda: client.indices.exists(index=index)):
        raise ValueError(f"there is no index {index}; 07_opensearch with -p keep=true leaves some")
    held = _asked(index, lambda: client.indices.get_mapping(index=index))
    if len(held) != 1:
        raise ValueError(f"{index} names {len(held)} indexes: name one")
    fields = next(iter(held.values()))["mappings"].get("properties", {})
    kinds = {name: fields.get(name, {}).get("type") for name in (TEXT, VECTOR)}
    if kinds != {TEXT: "text", VECTOR: "rank_features"}:
        raise ValueError(
            f"index {index} has {kinds}: want {TEXT} of type text and {VECTOR} of type rank_features, as "
            "nblib.opensearch.ingest.sparse_index makes them"
        )
    return _asked(index, lambda: client.count(index=index))["count"]


class LexicalThere(Engine):
    """BM25 of an index, by the analyzer of its text.

    Args:
        client, index: the cluster, and an index that `check_index` took.
    """

    name = "BM25 in OpenSearch"

    def __init__(self, client: OpenSearch, index: str):
        self.client, self.index, self.mode = client, index, modes.bm25(index)

    def find(self, query: str, k: int) -> list[dict[str, Any]]:
        """Find the k best documents. Raises SearchError: the cluster gave no answer."""
        return _hits(self.client, self.mode, self.mode.request(query, {}, k))

    def show(self, query: str, found: list[dict[str, Any]]) -> list[Hit]:
        """Ask again, for texts and what each word adds. Raises SearchError as `find` does."""
        body = self.mode.request(query, {}, len(found)) | {"explain": True, "_source": [TEXT]}
        return [self._hit(row) for row in _hits(self.client, self.mode, body)] if found else []

    def _hit(self, row: dict[str, Any]) -> Hit:
        found = dict(_weights(row["_explanation"]))
        text = row["_source"].get(TEXT, "")
        return Hit(row["_id"], row["_score"], split(text, self._marked(text, found)), matched(found))

    def _marked(self, text: str, found: Mapping[str, float]) -> list[tuple[int, int, float]]:
        """Weigh the pieces that the analyzer of the field makes of a text; overlapping ones are joined."""
        body = {"field": TEXT, "text": text}
        try:
            tokens = self.client.indices.analyze(index=self.index, body=body)["tokens"]
        except TransportError:  # more tokens than it takes, mostly; a text without marks is a text still
            return []
        at = _places(text)
        pieces: list[tuple[int, int, float]] = []
        for token in tokens:
            if not (weight := found.get(token["token"], 0.0)):
                continue
            start, stop = at[token["start_offset"]], at[token["end_offset"]]
            if pieces and start < pieces[-1][1]:
                first, end, before = pieces.pop()
                start, stop, weight = first, max(end, stop), max(before, weight)
            pieces.append((start, stop, weight))
        return pieces


class SparseThere(Engine):
    """A learned sparse model whose documents are in an index; queries are weighed here, by a table.

    Args:
        client, index: the cluster, and an index that `check_index` took.
        system: whose tokenizer and IDF weigh queries; its network is not asked.
        max_length: tokens that the model saw of a document.

    Raises:
        ValueError: tokens that OpenSearch would merge.
    """

    name = "Learned sparse in OpenSearch"

    def __init__(self, client: OpenSearch, index: str, system: System, max_length: int):
        self.client, self.mode = client, modes.sparse(index)
        self.system, self.max_length = system, max_length
        tokenizer, n_terms = system.tokenizer, len(system.idf)
        self.terms = token_strings(tokenizer.backend_tokenizer, tokenizer.all_special_ids, n_terms)
        self.ids = {term: number for number, term in enumerate(self.terms)}

    def find(self, query: str, k: int) -> tuple[csr_matrix, dict[str, Any], int]:
        """Find the k best documents: the query's weights [1, V], the request, and how many were found.

        Raises:
            SearchError: the cluster gave no answer.
        """
        system = self.system
        q_row = query_matrix([query], system.tokenizer, system.idf, system.query_length)
        tokens = next(vectors(q_row, self.terms))
        body = self.mode.request(query, tokens, k)
        return q_row, body, len(_hits(self.client, self.mode, body)) if tokens else 0

    def show(self, query: str, found: tuple[csr_matrix, dict[str, Any], int]) -> list[Hit]:
        """Ask again, for texts and vectors. Raises SearchError as `find` does."""
        q_row, body, n = found
        more = {"_source": [TEXT, VECTOR], "size": n}
        return [self._hit(q_row, row) for row in _hits(self.client, self.mode, body | more)] if n else []

    def _hit(self, q_row: csr_matrix, row: dict[str, Any]) -> Hit:
        held = {self.ids[t]: w for t, w in row["_source"].get(VECTOR, {}).items() if t in self.ids}
        places = np.zeros(len(held), np.int32), np.fromiter(held, np.int32, len(held))
        d_row = csr_matrix((list(held.values()), places), shape=q_row.shape)
        text, tokenizer = row["_source"].get(TEXT, ""), self.system.tokenizer
        return sparse_hit(row["_id"], row["_score"], text, q_row, d_row, tokenizer, self.max_length)


def _asked(index: str, call: Callable[[], Answer]) -> Answer:
    """Make a call; an error of the cluster is a SearchError."""
    try:
        return call()
    except TransportError as error:
        raise modes.SearchError(f"{index} was not searched: {error}") from error


def _hits(client: OpenSearch, mode: modes.Mode, body: dict[str, Any]) -> list[dict[str, Any]]:
    return _asked(mode.index, lambda: modes.ask(client, mode, body))["hits"]["hits"]


def _places(text: str) -> list[int]:
    """Say which character begins at each offset as Java counts: those beyond U+FFFF count twice there."""
    places = [number for number, sign in enumerate(text) for _ in range(1 + (sign > "\uffff"))]
    return [*places, len(text)]


def _weights(explanation: dict[str, Any]) -> list[tuple[str, float]]:
    """Find the terms of a BM25 score, and what each adds."""
    if found := WEIGHED.match(explanation["description"]):
        return [(found[1], explanation["value"])]
    return [pair for part in explanation.get("details", []) for pair in _weights(part)]
