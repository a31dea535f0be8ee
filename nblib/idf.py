"""Inverse document frequency of every token: the query side of an inference-free retriever."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from unicodedata import category

import numpy as np
from scipy import sparse

from nblib.data.formats import document_text, parse_document
from nblib.data.lines import Checker, RowError, read_objects, with_gz
from nblib.files import at_root, sha256_file, write_json, write_text
from nblib.run.progress import report
from nblib.stems import stem_groups

PIECE = 2_000  # documents tokenized in one go; more fill memory and are no faster


def count_df(
    texts: Iterable[str],
    tokenizer,
    batch_size: int = 10_000,
    progress: Callable[[int], None] | None = None,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Count, for each token id, the documents that hold it, or another of its group, at least once.

    The tokenizer's own threads use all cores within a piece; memory follows the batch, not the corpus.

    Args:
        texts: documents, any iterable.
        tokenizer: fast tokenizer; whole documents are read, without special tokens.
        batch_size: documents in memory at most, in three pieces: counted, tokenized and read.
        progress: called with the number of documents seen so far.
        groups: [V] what `nblib.stems.stem_groups` gives; None leaves every token alone.

    Returns:
        df: [V] int64, documents that hold the id or its group; V = len(tokenizer).
        n_docs: N, documents seen.

    Raises:
        ValueError: no document at all.
    """
    df = np.zeros(len(tokenizer), dtype=np.int64)
    n_docs = 0
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    for encodings in _encoded(core, iter(texts), max(1, min(batch_size // 3, PIECE))):
        df += _piece_df(encodings, len(df), groups)
        n_docs += len(encodings)
        if progress:
            progress(n_docs)
    if n_docs == 0:
        raise ValueError("no documents to count; is the corpus empty?")
    return df if groups is None else df[groups], n_docs


def _encoded(core, texts: Iterator[str], size: int) -> Iterator[list]:
    """Tokenize piece by piece; the next one runs in a thread while the caller counts and reads on."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = None
        while piece := list(islice(texts, size)):
            running = thread.submit(core.encode_batch_fast, piece, add_special_tokens=False)
            if ahead:
                yield ahead.result()
            ahead = running
        if ahead:
            yield ahead.result()


def _piece_df(encodings: list, vocab_size: int, groups: np.ndarray | None) -> np.ndarray:
    """Count the documents of one piece per token id, or per first id of a group: [V] int64."""
    lengths = np.fromiter(map(len, encodings), np.int32, len(encodings))
    # One pass over all ids: a call of NumPy per document would cost more than the counting itself.
    ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, lengths.sum())
    ids = ids if groups is None else groups[ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = sparse.csr_matrix((np.ones(len(ids), bool), ids, starts), shape=(len(lengths), vocab_size))
    tokens = tokens.tocsc()  # a counting sort: the documents of a token side by side, in their order
    occurrences = np.diff(tokens.indptr)
    token = np.repeat(np.arange(vocab_size, dtype=np.int32), occurrences)
    again = (np.diff(token) == 0) & (np.diff(tokens.indices) == 0)  # the same token of the same document
    return occurrences - np.bincount(token[1:][again], minlength=vocab_size)


def bm25_idf(df: np.ndarray, n_docs: int) -> np.ndarray:
    """Turn document frequencies into BM25 idf weights (natural log, so nats; never negative).

    idf(t) = ln(1 + (N - df_t + 0.5) / (df_t + 0.5))

    Source: Lucene BM25Similarity.idf; the weights that OpenSearch ships are of this form.

    Args:
        df: [V] int, documents that hold each id.
        n_docs: N >= df.max().

    Returns:
        idf: [V] float64.

    Raises:
        ValueError: some df is larger than n_docs.
    """
    if df.size and df.max() > n_docs:
        raise ValueError(f"a document frequency of {df.max()} but only {n_docs} documents")
    return np.log1p((n_docs - df + 0.5) / (df + 0.5))


def invert_idf(idf: np.ndarray, n_docs: int) -> np.ndarray:
    """Recover the document frequencies (float, near integers) that bm25_idf turned into `idf`."""
    odds = np.expm1(np.asarray(idf, dtype=np.float64))
    return (n_docs + 0.5 - 0.5 * odds) / (1.0 + odds)


def compute_idf_weights(
    documents: Iterable[str],
    tokenizer,
    save_path: str | Path | None = None,
    default_idf: float = 1.0,
    batch_size: int = 10_000,
    progress: Callable[[int], None] | None = None,
    weigh_signs: bool = True,
    stemmer: str = "",
) -> dict[str, float]:
    """Weigh every token of the vocabulary by the documents that hold it.

    A token no document holds gets `default_idf`, the weight ML Commons gives to a token that is missing
    from idf.json: what the corpus does not know must not outweigh what it knows. Special tokens get 0.

    Args:
        documents: texts, any iterable.
        tokenizer: fast tokenizer of the backbone.
        save_path: where to write idf.json (atomically); None writes nothing.
        default_idf: weight of a token that no document holds.
        batch_size: documents per batch.
        progress: called with the number of documents seen so far.
        weigh_signs: False gives tokens without a letter or digit 0, see `sign_mask`.
        stemmer: language; words that share a stem are counted together and weigh the same, as in BM25 over
            stems. "" counts each token alone.

    Returns:
        {token: weight in nats}, V entries in the order of the ids.
    """
    df, n_docs = count_df(documents, tokenizer, batch_size, progress, stem_groups(tokenizer, stemmer))
    idf = np.where(df > 0, bm25_idf(df, n_docs), default_idf)
    idf[tokenizer.all_special_ids] = 0.0
    if not weigh_signs:
        idf[sign_mask(tokenizer)] = 0.0
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    weights = {token: round(float(w), 6) for token, w in zip(tokens, idf, strict=True)}
    if save_path is not None:
        write_json(save_path, weights)
    return weights


def adapt_idf(idf: np.ndarray, df: np.ndarray, n_docs: int, share: float = 1.0) -> np.ndarray:
    """Weigh query tokens by the collection that is searched, in part or in whole.

    (1 - share) idf + share idf of the collection; what it lacks, and what weighs 0, keeps its weight.

    Source: the paper's "per-dataset IDF" (arXiv 2411.04403, table 5) is share 1.

    Args:
        idf: [V] weights of the training corpus.
        df: [V] documents of the collection that hold each token. n_docs: N. Both of `count_df`.
        share: 0 to 1.

    Returns:
        [V] float32.
    """
    own = bm25_idf(df, n_docs)
    return np.where((df > 0) & (idf > 0), (1 - share) * idf + share * own, idf).astype(np.float32)


def sign_mask(tokenizer) -> np.ndarray:
    """Find the tokens that hold neither letter nor digit: [V] bool.

    Vowel signs and other combining marks count as letters, and so does a lone byte of a character, which
    may be one together with its neighbours.
    """
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return np.array([not any(c == "\ufffd" or category(c)[0] in "LMN" for c in text) for text in texts])


def corpus_files(corpus: str, data_dir: str, datasets: Sequence[str]) -> list[Path]:
    """Find the corpora to count together: one explicit file, or those of sets that 01_data_prep built.

    Raises:
        FileNotFoundError: one is not there; the message says how to get it.
    """
    built = at_root(data_dir) / "artifacts"
    return [_corpus_file(p, corpus) for p in ([at_root(corpus)] if corpus else [built / n for n in datasets])]


def _corpus_file(path: Path, corpus: str) -> Path:
    try:
        return with_gz(path if corpus and not path.is_dir() else path / "corpus.jsonl")
    except FileNotFoundError as error:
        cure = "give a corpus.jsonl or corpus.jsonl.gz" if corpus else "run notebook 01_data_prep first"
        raise FileNotFoundError(f"no corpus: {error}: {cure}") from error


def cached_idf(
    corpora: Sequence[Path],
    tokenizer,
    default_idf: float,
    batch_size: int,
    cache: Path,
    save_path: Path,
    weigh_signs: bool = True,
    stemmer: str = "",
) -> Path:
    """Compute the weights of all documents once per (corpora, tokenizer, options); copy them to save_path.

    Args:
        corpora: corpus.jsonl or corpus.jsonl.gz each; read as a stream, one after the other.
        tokenizer, default_idf, batch_size, weigh_signs, stemmer: see compute_idf_weights.
        cache: folder of earlier results; an entry's name holds the hashes of what it depends on.
        save_path: where idf.json is written.

    Returns:
        save_path.
    """
    vocabulary = tokenizer_rules(tokenizer)[:16]
    content = hashlib.sha256("".join(map(sha256_file, corpora)).encode()).hexdigest()[:16]
    kind = ("" if weigh_signs else "-words") + (f"-{stemmer}" if stemmer else "")
    entry = cache / f"idf-{content}-{vocabulary}-{default_idf:g}{kind}.json"
    if not entry.exists():
        compute_idf_weights(
            chain.from_iterable(map(_texts, corpora)),
            tokenizer,
            entry,
            default_idf,
            batch_size,
            lambda done: report("count documents", done, 0),
            weigh_signs,
            stemmer,
        )
    write_text(save_path, entry.read_text(encoding="utf-8"))
    return save_path


def tokenizer_rules(tokenizer) -> str:
    """Hash all that decides how a fast tokenizer cuts a text, its vocabulary included; the cut does not."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _texts(corpus: Path) -> Iterator[str]:
    """Read the documents' texts as a stream; DataError names file and line of a bad one."""
    check = Checker(corpus, strict=True, problems=None)
    for number, row in read_objects(check):
        try:
            yield document_text(parse_document(row))
        except RowError as reason:
            check.bad(number, str(reason))


def load_idf(path: str | Path, tokenizer, default_idf: float = 1.0) -> np.ndarray:
    """Read idf.json as a vector over the tokenizer's ids.

    Args:
        path: a JSON object {token: weight}.
        tokenizer: the tokens' owner; V = len(tokenizer).
        default_idf: weight of a token that the file lacks.

    Returns:
        idf: [V] float32; special tokens 0.

    Raises:
        ValueError: not an object of finite numbers; or the file belongs to another tokenizer, since it names
            a token that this one lacks, or under half of those that it has.
    """
    weights = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: want a JSON object of token: weight, got {type(weights).__name__}")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    known, foreign = sum(token in weights for token in tokens), sorted(weights.keys() - set(tokens))
    if foreign or known < len(tokens) / 2:
        more = f" and {len(foreign)} that it lacks, such as {foreign[0]!r}" if foreign else ""
        raise ValueError(
            f"{path} names {known} of the {len(tokens)} tokens of this tokenizer{more}; "
            "it was made for another one: run 02_idf with the backbone's tokenizer"
        )
    try:
        idf = np.array([weights.get(token, default_idf) for token in tokens], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a weight is not a number ({error})") from error
    if not np.isfinite(idf).all() or (idf < 0).any():
        token = tokens[int(np.flatnonzero(~np.isfinite(idf) | (idf < 0))[0])]
        raise ValueError(f"{path}: token {token!r} has weight {weights.get(token)}; want finite and >= 0")
    idf[tokenizer.all_special_ids] = 0.0
    return idf
