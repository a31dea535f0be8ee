"""What the search page asks of an index of OpenSearch: the engines of nblib.demo.engines, over there.

V terms.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError
from scipy.sparse import csr_matrix

from nblib.bags import query_matrix
from nblib.demo.engines import Hit, matched, sparse_hit, split
from nblib.export.opensearch import token_strings
from nblib.opensearch import modes
from nblib.opensearch.ingest import TEXT, VECTOR, vectors
from nblib.systems import System

WEIGHED = re.compile(rf"weight\({TEXT}:(.+) in \d+\)")  # a term in the explanation of a score


def check_index(client: OpenSearch, index: str) -> int:
    """Make sure that an index can be searched by words and by sparse vectors; returns its documents.

    Raises:
        ValueError: it is not there, or lacks a field; names the cure.
    """
    try:
        held = client.indices.get_mapping(index=index)
        if len(held) != 1:
            raise ValueError(f"{index!r} names {len(held)} indexes: name one")
        fields = next(iter(held.values()))["mappings"].get("properties", {})
        kinds = {name: fields.get(name, {}).get("type") for name in (TEXT, VECTOR)}
        if kinds != {TEXT: "text", VECTOR: "rank_features"}:
            raise ValueError(
                f"index {index} has {kinds}: want {TEXT} of type text and {VECTOR} of type rank_features, as "
                "nblib.opensearch.ingest.sparse_index makes them"
            )
        return client.count(index=index)["count"]
    except TransportError as error:
        raise ValueError(f"index {index}: {error}; fill one by 07_opensearch with -p keep=true") from None


class LexicalThere:
    """BM25 of an index, by the analyzer of its text."""

    name = "BM25 in OpenSearch"

    def __init__(self, client: OpenSearch, index: str):
        self.client, self.index, self.mode = client, index, modes.bm25(index)

    def search(self, query: str, k: int) -> list[Hit]:
        """Find the k best documents.

        Raises:
            SearchError: the cluster gave no answer.
        """
        body = self.mode.request(query, {}, k) | {"explain": True}
        return [self._hit(row) for row in _hits(self.client, self.mode, body, [TEXT])]

    def _hit(self, row: dict[str, Any]) -> Hit:
        found = dict(_weights(row["_explanation"]))
        text = row["_source"].get(TEXT, "")
        return Hit(row["_id"], row["_score"], split(text, self._marked(text, found)), matched(found))

    def _marked(self, text: str, found: Mapping[str, float]) -> list[tuple[int, int, float]]:
        """Weigh the pieces that the analyzer of the field makes of a text; overlapping ones are joined."""
        body = {"field": TEXT, "text": text}
        pieces: list[tuple[int, int, float]] = []
        for token in self.client.indices.analyze(index=self.index, body=body)["tokens"] if found else []:
            start, stop, weight = token["start_offset"], token["end_offset"], found.get(token["token"], 0.0)
            if weight and pieces and start < pieces[-1][1]:
                first, end, before = pieces.pop()
                start, stop, weight = first, max(end, stop), max(before, weight)
            pieces += [(start, stop, weight)] if weight else []
        return pieces


class SparseThere:
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

    def search(self, query: str, k: int) -> list[Hit]:
        """Find the k best documents.

        Raises:
            SearchError: the cluster gave no answer.
        """
        system = self.system
        q_row = query_matrix([query], system.tokenizer, system.idf, system.query_length)
        (tokens,) = vectors(q_row, self.terms)
        if not tokens:
            return []
        body = self.mode.request(query, tokens, k)
        found = _hits(self.client, self.mode, body, [TEXT, VECTOR])
        return [self._hit(q_row, row) for row in found]

    def _hit(self, q_row: csr_matrix, row: dict[str, Any]) -> Hit:
        held = {self.ids[t]: w for t, w in row["_source"].get(VECTOR, {}).items() if t in self.ids}
        places = np.zeros(len(held), np.int32), np.fromiter(held, np.int32, len(held))
        d_row = csr_matrix((list(held.values()), places), shape=q_row.shape)
        text = row["_source"].get(TEXT, "")
        return sparse_hit(
            row["_id"], row["_score"], text, q_row, d_row, self.system.tokenizer, self.max_length
        )


def _hits(client: OpenSearch, mode: modes.Mode, body: dict[str, Any], fields: list[str]) -> list[dict]:
    try:
        return modes.ask(client, mode, body | {"_source": fields})["hits"]["hits"]
    except TransportError as error:
        raise modes.SearchError(f"{mode.index} was not searched: {error}") from error


def _weights(explanation: dict[str, Any]) -> list[tuple[str, float]]:
    """Find the terms of a BM25 score, and what each adds."""
    if found := WEIGHED.match(explanation["description"]):
        return [(found[1], explanation["value"])]
    return [pair for part in explanation.get("details", []) for pair in _weights(part)]
