"""BM25 over bm25s: the lexical baseline, the miner of hard negatives and the sparse teacher.

N documents, Q queries, T distinct terms of the corpus.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property

import bm25s
import numpy as np
import Stemmer
from scipy import sparse

from nblib.search.exact import Progress
from nblib.search.inverted import InvertedIndex

Analyzer = str | Callable[[str], list[str]]
PIECE = 20_000  # documents whose texts and terms are in memory at once
# Nouns, verbs, adjectives, adverbs, roots, and words in other scripts: particles and endings carry no topic.
KOREAN_TAGS = ("N", "VV", "VA", "MA", "XR", "SL", "SH", "SN")


@cache
def _english_stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


@cache
def _kiwi():
    from kiwipiepy import Kiwi  # loading its model takes seconds: only for those who use it

    return Kiwi()


def _english(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(
        texts, stopwords="en", stemmer=_english_stemmer(), return_ids=False, show_progress=False
    )


def _korean(texts: list[str]) -> list[list[str]]:
    parses = _kiwi().tokenize(texts)  # a list goes through Kiwi's own threads
    return [[t.form.lower() for t in parse if t.tag.startswith(KOREAN_TAGS)] for parse in parses]


def _whitespace(texts: list[str]) -> list[list[str]]:
    return [text.lower().split() for text in texts]


ANALYZERS = {"english": _english, "korean": _korean, "whitespace": _whitespace}


def analyze(texts: list[str], analyzer: Analyzer) -> list[list[str]]:
    """Cut texts into index terms.

    Args:
        texts: any number of texts.
        analyzer: "english" (lower case, stop words out, Snowball stems), "korean" (content morphemes of
            kiwipiepy), "whitespace" (lower-cased words), or a function text -> terms, such as the
            tokenizer of a model with the model's cut.

    Returns:
        one list of terms per text, repeated as often as they are said.

    Raises:
        ValueError: an analyzer name that is not known.
    """
    if callable(analyzer):
        return [list(analyzer(text)) for text in texts]
    if analyzer not in ANALYZERS:
        raise ValueError(f"analyzer {analyzer!r} is not known; use one of {', '.join(sorted(ANALYZERS))}")
    return ANALYZERS[analyzer](list(texts)) if len(texts) else []


class Bm25:
    """A BM25 index that is built once, then searched or multiplied.

    score(q, d) = sum over terms t of q: idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|)), with
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)). This is Lucene's form: no factor k1 + 1, no negative idf.

    Source: Kamphuis et al. 2020, "Which BM25 do you mean?"; bm25s, arXiv:2407.03618.

    Args:
        texts: the documents; a sequence that reads them from a file will do.
        analyzer: see analyze().
        k1: saturation of the term frequency.
        b: strength of the length normalisation, 0 to 1.

    Raises:
        ValueError: no documents, no term in any document, or an analyzer name that is not known.
    """

    def __init__(self, texts: Sequence[str], analyzer: Analyzer, k1: float = 1.5, b: float = 0.75):
        self.analyzer, self.n_docs = analyzer, len(texts)
        # bm25s would number terms by Python's random hash, and sums would differ in the last bit per process
        vocabulary: dict[str, int] = {}
        ids: list[list[int]] = []
        for start in range(0, len(texts), PIECE):
            for doc in analyze(texts[start : start + PIECE], analyzer):
                ids.append([vocabulary.setdefault(term, len(vocabulary)) for term in doc])
        if not vocabulary:
            raise ValueError(
                f"no term left in {len(texts)} documents after analyzer {analyzer!r}; use another"
            )
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._index.index((ids, vocabulary), show_progress=False)
        self.vocabulary: dict[str, int] = self._index.vocab_dict

    @cached_property
    def _term_matrix(self) -> sparse.csr_matrix:
        """BM25 term weights [T, N]: bm25s keeps them by term, which is the side that search multiplies."""
        scores, n_terms = self._index.scores, max(self.vocabulary.values()) + 1
        indptr = np.asarray(scores["indptr"], dtype=np.int64)
        # bm25s appends an empty term after the index is built: give it an empty row
        indptr = np.concatenate([indptr, np.full(n_terms + 1 - len(indptr), indptr[-1])])
        arrays = (np.asarray(scores["data"], np.float32), np.asarray(scores["indices"]), indptr)
        return sparse.csr_matrix(arrays, shape=(n_terms, self.n_docs))

    @cached_property
    def _lists(self) -> InvertedIndex:
        return InvertedIndex.from_postings(self._term_matrix)

    @cached_property
    def doc_matrix(self) -> sparse.csr_matrix:
        """BM25 term weights of the documents: CSR [N, T] float32."""
        return self._term_matrix.T.tocsr()

    def query_matrix(self, queries: list[str]) -> sparse.csr_matrix:
        """Count the index terms of queries: CSR [Q, T] float32, so that scores = q @ doc_matrix.T [Q, N].

        Terms that no document holds are left out.
        """
        rows, cols = [], []
        for row, terms in enumerate(analyze(list(queries), self.analyzer)):
            ids = [self.vocabulary[t] for t in terms if t in self.vocabulary]
            rows += [row] * len(ids)
            cols += ids
        shape = (len(queries), max(self.vocabulary.values()) + 1)
        return sparse.csr_matrix((np.ones(len(cols), np.float32), (rows, cols)), shape=shape)  # sums repeats

    def search(
        self, queries: list[str], k: int, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best documents of each query.

        Args:
            queries: Q texts.
            k: how many documents per query.
            progress: called with (queries done, Q) from time to time.

        Returns:
            (indices [Q, k] int64, scores [Q, k] float32), best first, ties by the lower document index.
            Only documents that share a term with the query count; the rest is -1 with score 0.

        Raises:
            ValueError: k below 1.
        """
        return self._lists.search(self.query_matrix(queries), k, progress=progress)
