"""What the search page asks: BM25 and the sparse model over one corpus, each hit with what made it one.

N documents, V terms.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from nblib.bags import token_matrix
from nblib.explain import Match, matched_terms
from nblib.retrieval import enter
from nblib.search.bm25 import Bm25, analyze
from nblib.systems import System

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Part:
    """A piece of a document's text. weight: its share of the score, 0 to 1 of the strongest; 0 = no match."""

    text: str
    weight: float = 0.0


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    parts: its whole text, in order. terms: what matched, the strongest first; those that the model added
    stand in no part.
    """

    doc_id: str
    score: float
    parts: list[Part]
    terms: list[Match]


class Engine(ABC):
    """A way to search; finding is apart from explaining, so that only the search is timed."""

    name = ""

    @abstractmethod
    def find(self, query: str, k: int) -> Any:
        """Find the k best documents, as `show` takes them."""

    @abstractmethod
    def show(self, query: str, found: Any) -> list[Hit]:
        """Say of what `find` found why it was found, the best first."""

    def search(self, query: str, k: int) -> list[Hit]:
        """Find the k best documents, and say why."""
        return self.show(query, self.find(query, k))


class Lexical(Engine):
    """BM25 in this process.

    Args:
        doc_ids, texts: the corpus.
        analyzer: "english", "korean" or "whitespace".
    """

    name = "BM25"

    def __init__(self, doc_ids: Sequence[str], texts: Sequence[str], analyzer: str):
        self.doc_ids, self.texts, self.analyzer = doc_ids, texts, analyzer
        self.index = Bm25(texts, analyzer)
        self.terms = {number: term for term, number in self.index.vocabulary.items()}

    def find(self, query: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best documents: places in the corpus, and scores."""
        places, scores = self.index.search([query], k)
        return places[0], scores[0]

    def show(self, query: str, found: tuple[np.ndarray, np.ndarray]) -> list[Hit]:
        """Say which words were found."""
        return [self._hit(query, int(i), float(s)) for i, s in zip(*found, strict=True) if i >= 0]

    def _hit(self, query: str, place: int, score: float) -> Hit:
        row = self.index.query_matrix([query]).multiply(self.index.doc_matrix[[place]]).tocoo()
        found = {self.terms[i]: float(w) for i, w in zip(row.col, row.data, strict=True)}
        return Hit(self.doc_ids[place], score, self._parts(self.texts[place], found), matched(found))

    def _parts(self, text: str, found: dict[str, float]) -> list[Part]:
        """Mark the words whose terms matched."""
        words = list(WORD.finditer(text))
        stems = analyze([word.group() for word in words], self.analyzer) if words else []
        marked = [
            (*word.span(), max((found.get(s, 0.0) for s in own), default=0.0))
            for word, own in zip(words, stems, strict=True)
        ]
        return split(text, marked)


class Sparse(Engine):
    """A learned sparse model in this process.

    Args:
        doc_ids, texts: the corpus.
        system: of nblib.systems; encodes what its cache lacks.
        max_length: tokens that the model sees of a document.
        scratch: folder for a large corpus's index.
    """

    name = "Learned sparse"

    def __init__(
        self, doc_ids: Sequence[str], texts: Sequence[str], system: System, max_length: int, scratch: Path
    ):
        self.doc_ids, self.texts = doc_ids, texts
        self.tokenizer, self.max_length = system.tokenizer, max_length
        self.entry = enter(system, texts, scratch)

    def find(self, query: str, k: int) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
        """Find the k best documents: the query's weights [1, V], places in the corpus, and scores."""
        q_row = self.entry.encode_queries([query])
        places, scores = self.entry.search(q_row, k)
        return q_row, places[0], scores[0]

    def show(self, query: str, found: tuple[csr_matrix, np.ndarray, np.ndarray]) -> list[Hit]:
        """Say which terms were found."""
        q_row, places, scores = found
        return [self._hit(q_row, int(i), float(s)) for i, s in zip(places, scores, strict=True) if i >= 0]

    def _hit(self, q_row: csr_matrix, place: int, score: float) -> Hit:
        d_row, text = self.entry.d_reps.row(place), self.texts[place]
        return sparse_hit(self.doc_ids[place], score, text, q_row, d_row, self.tokenizer, self.max_length)


def sparse_hit(
    doc_id: str,
    score: float,
    text: str,
    q_row: csr_matrix,
    d_row: csr_matrix,
    tokenizer: Any,
    max_length: int,
) -> Hit:
    """Say which terms of a document a query found, and mark those that its text holds.

    Args:
        doc_id, score, text: of the document.
        q_row, d_row: [1, V] weights of query and document.
        tokenizer: of the model.
        max_length: tokens that the model saw of the text.
    """
    own = token_matrix([text], tokenizer, max_length, q_row.shape[1])
    matches = matched_terms(q_row, d_row, tokenizer, own)
    weights = {match.token: match.contribution for match in matches}
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    spans = zip(encoded["offset_mapping"], tokens, strict=True)
    return Hit(
        doc_id, score, split(text, [(*span, weights.get(token, 0.0)) for span, token in spans]), matches
    )


def matched(found: Mapping[str, float]) -> list[Match]:
    """List what each term adds to a BM25 score, the most first."""
    return [Match(term, 1.0, w, w, False) for term, w in sorted(found.items(), key=lambda pair: -pair[1])]


def split(text: str, marked: Sequence[tuple[int, int, float]]) -> list[Part]:
    """Cut a text into parts that matched and parts that did not.

    Args:
        text: any.
        marked: start, stop and weight of pieces, in order and apart; weight 0 = no match.
    """
    strongest = max((weight for *_, weight in marked), default=0.0) or 1.0
    parts, at = [], 0
    for start, stop, weight in marked:
        if weight <= 0 or stop <= start:
            continue
        if start > at:
            parts.append(Part(text[at:start]))
        parts.append(Part(text[start:stop], weight / strongest))
        at = stop
    return [*parts, Part(text[at:])] if at < len(text) or not parts else parts
