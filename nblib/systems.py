"""Retrieval systems side by side: each turns documents and queries into reps; the search is shared.

N documents, Q queries, V terms (of a vocabulary or of an index), H dimensions of a dense vector.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_matrix, issparse

from nblib.backbones import load_tokenizer
from nblib.evaluate import sparse_cost
from nblib.files import at_root, atomic_file, sha256_paths
from nblib.idf import load_idf, query_matrix, query_weights_file, token_matrix
from nblib.run.progress import report
from nblib.search.bm25 import Bm25
from nblib.search.exact import top_k_dense
from nblib.search.inverted import InvertedIndex

Reps = csr_matrix | np.ndarray
EncodeQueries = Callable[[list[str]], Reps]
NEEDS = {  # system -> what it reads; "tokenizer" is that of either model
    "bm25": [],
    "bm25-tokens": ["tokenizer"],
    "dense": [],
    "idf-bag": ["idf_dir", "tokenizer"],
    "pretrained": ["idf_dir", "pretrain_dir"],
    "finetuned": ["idf_dir", "model_dir"],
}
FOUND_IN = {  # need -> (parameter, what its step writes there), the first that exists is taken
    "idf_dir": [("idf_dir", "artifacts/idf.json")],
    "pretrain_dir": [("pretrain_dir", "artifacts/final_model")],
    "model_dir": [("model_dir", "artifacts/final_model")],
    "tokenizer": [("model_dir", "artifacts/final_model"), ("pretrain_dir", "artifacts/final_model")],
}
STEP = {"idf_dir": "02_idf", "pretrain_dir": "03_pretrain", "model_dir": "04_finetune"}
TIMED_QUERIES = 200


@dataclass(frozen=True)
class System:
    """A way to search. `index` takes the texts of a corpus and gives three things: the documents' reps
    ([N, V] CSR, or [N, H] array for a dense system), the function that encodes queries into the same space,
    and the seconds that encoding the documents took (when it was done: a cache keeps the first figure).
    """

    name: str
    index: Callable[[list[str]], tuple[Reps, EncodeQueries, float]]
    tokenizer: Any = None  # names the V terms; None if they are not a tokenizer's


@dataclass(frozen=True)
class Result:
    """What a system found, and at what cost (columns `nblib.evaluate.COST`)."""

    index: np.ndarray  # [Q, k] document numbers, -1 = no hit
    scores: np.ndarray  # [Q, k]
    q_reps: Reps
    d_reps: Reps
    cost: dict[str, Any]

    @property
    def d_nnz(self) -> np.ndarray | None:
        """[N] non-zero terms of each document; None for a dense system."""
        return np.asarray((self.d_reps != 0).sum(axis=1)).ravel() if issparse(self.d_reps) else None


def run_system(
    system: System, texts: list[str], queries: list[str], k: int, timed_queries: int = TIMED_QUERIES
) -> Result:
    """Index a corpus, search all queries exactly, and measure the cost.

    query_ms_p50 and query_ms_p99 are the milliseconds from one query text to its k best documents, one query
    at a time in this process, over the first `timed_queries` queries (after three that are not counted).

    Raises:
        ValueError: no documents or no queries.
    """
    if not texts or not queries:
        raise ValueError(f"{system.name}: {len(texts)} documents and {len(queries)} queries; both are needed")
    d_reps, encode_queries, seconds = system.index(texts)
    search = _searcher(d_reps, k)
    q_reps = encode_queries(queries)
    index, scores = search(q_reps, lambda done, total: report(f"{system.name}: search", done, total))
    sample = queries[:timed_queries]
    for text in sample[:3]:
        search(encode_queries([text]))
    times = [_milliseconds(lambda t=text: search(encode_queries([t]))) for text in sample]
    cost = sparse_cost(q_reps, d_reps) if issparse(d_reps) else {}
    cost["encode_docs_per_s"] = len(texts) / max(seconds, 1e-9)
    cost["query_ms_p50"], cost["query_ms_p99"] = (float(p) for p in np.percentile(times, [50, 99]))
    return Result(index, scores, q_reps, d_reps, cost)


def _searcher(d_reps: Reps, k: int) -> Callable:
    if issparse(d_reps):
        lists = InvertedIndex.from_csr(d_reps)  # built once: a single query must not pay for it
        return lambda q_reps, progress=None: lists.search(q_reps, k, progress=progress)
    return lambda q_reps, progress=None: top_k_dense(q_reps, d_reps, k, progress=progress)


def _milliseconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def bm25(analyzer: str | Callable[[str], list[str]], name: str = "bm25") -> System:
    """BM25 over the full text; the document weights are BM25's, the query weights are term counts."""

    def index(texts: list[str]) -> tuple[Reps, EncodeQueries, float]:
        start = time.perf_counter()
        bm25_index = Bm25(texts, analyzer)
        d_reps = bm25_index.doc_matrix
        return d_reps, bm25_index.query_matrix, time.perf_counter() - start

    return System(name, index)


def bm25_tokens(tokenizer: Any, max_length: int) -> System:
    """BM25 over what the model sees: its own word pieces, cut at max_length, special tokens left out."""
    special = set(tokenizer.all_special_ids)

    def pieces(text: str) -> list[str]:
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        return tokenizer.convert_ids_to_tokens([i for i in ids if i not in special])

    return bm25(pieces, "bm25-tokens")


def idf_bag(tokenizer: Any, idf: np.ndarray, max_length: int) -> System:
    """No training at all: the sum of the IDF of the query's tokens that the document's first tokens hold."""

    def index(texts: list[str]) -> tuple[Reps, EncodeQueries, float]:
        start = time.perf_counter()
        d_reps = token_matrix(texts, tokenizer, max_length)
        return d_reps, lambda queries: query_matrix(queries, tokenizer, idf), time.perf_counter() - start

    return System("idf-bag", index, tokenizer)


def learned_sparse(
    name: str,
    folder: str | Path,
    idf_path: str | Path,
    max_length: int,
    batch_size: int,
    cache: Path,
    precision: str = "fp32",
) -> System:
    """A NeuralSparseEncoder folder of 03 or 04: documents through the encoder, queries as it was trained to.

    precision: "fp32", or "bf16", whose weights differ in the third digit.
    """
    tokenizer = load_tokenizer(str(folder))
    idf = load_idf(query_weights_file(idf_path, folder), tokenizer)
    model = functools.cache(lambda: _load_sparse(folder, max_length, precision))  # once, and late

    def encode(texts: list[str]) -> Reps:
        tick = lambda n: report(f"{name}: documents", n, len(texts))  # noqa: E731
        with _kernels(model(), precision):
            return model().encode_documents(texts, batch_size, tick)

    def encode_queries(queries: list[str]) -> Reps:
        with _kernels(model(), precision):
            return model().encode_queries(queries, idf, batch_size)

    def index(texts: list[str]) -> tuple[Reps, EncodeQueries, float]:
        version = [sha256_paths([folder]), str(max_length), precision]
        d_reps, seconds = cached(cache, version, texts, encode)
        return d_reps, encode_queries, seconds

    return System(name, index, tokenizer)


def _load_sparse(folder: str | Path, max_length: int, precision: str) -> Any:
    import torch

    from nblib.model.encoder import NeuralSparseEncoder
    from nblib.precision import choose_kernels

    encoder = NeuralSparseEncoder.load(folder, max_length)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(encoder, precision)
    return encoder


@contextmanager
def _kernels(encoder: Any, precision: str) -> Iterator[None]:
    """Multiply in this format, fp32 by the faster kernels of the machine, for the length of the block."""
    import torch

    from nblib.precision import quick_fp32

    with quick_fp32(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def dense(teacher: str, max_length: int, batch_size: int, cache: Path) -> System:
    """A sentence-transformers model, cosine similarity; the same cut as the sparse model.

    Raises:
        ValueError: the name leads to a sparse model, which would be pooled into meaningless dense vectors.
    """
    import torch

    from nblib.teachers.dense import encode_dense, load_dense
    from nblib.teachers.models import DENSE, find_model

    try:
        model = find_model(teacher, DENSE)
    except ValueError as error:
        raise ValueError(
            f"system 'dense': {error}; in 05 a sparse model is searched as 'finetuned', by model_dir"
        ) from error
    encoder = load_dense(teacher, max_length, "cuda" if torch.cuda.is_available() else "cpu")

    def encode(texts: list[str]) -> np.ndarray:
        tick = lambda n: report("dense: documents", n, len(texts))  # noqa: E731
        return encode_dense(encoder, texts, "document", True, batch_size, tick)  # [N, H]

    def encode_queries(queries: list[str]) -> np.ndarray:
        return encode_dense(encoder, queries, "query", True, batch_size)

    def index(texts: list[str]) -> tuple[Reps, EncodeQueries, float]:
        d_reps, seconds = cached(cache, model.key(str(max_length)), texts, encode)
        return d_reps, encode_queries, seconds

    return System("dense", index)


def cached(
    folder: Path, version: list[str], texts: list[str], encode: Callable[[list[str]], Reps]
) -> tuple[Reps, float]:
    """Encode a corpus, or read what an earlier, interrupted evaluation encoded.

    Args:
        folder: holds one npz for each pair of model and corpus.
        version: strings that decide the result besides the texts: hash of the model, length.
        texts: the corpus; every text enters the file's name by its hash.
        encode: texts -> reps.

    Returns:
        The reps, and the seconds that `encode` took when it ran.
    """
    digest = hashlib.sha256("\0".join(version).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    path = folder / f"{digest.hexdigest()[:20]}.npz"
    if path.exists():
        try:
            return _read_reps(path)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            print(f"{path.name} cannot be read ({error}); encoding again")
    start = time.perf_counter()
    reps = encode(texts)
    seconds = time.perf_counter() - start
    _write_reps(path, reps, seconds)
    return reps, seconds


def _write_reps(path: Path, reps: Reps, seconds: float) -> None:
    arrays = {"dense": reps}
    if issparse(reps):
        arrays = {name: getattr(reps, name) for name in ("data", "indices", "indptr")}
        arrays["shape"] = np.array(reps.shape)
    with atomic_file(path) as tmp, open(tmp, "wb") as handle:  # a handle: numpy would append .npz to a name
        np.savez(handle, seconds=seconds, **arrays)


def _read_reps(path: Path) -> tuple[Reps, float]:
    with np.load(path, allow_pickle=False) as held:
        if "dense" in held:
            return held["dense"], float(held["seconds"])
        parts = (held["data"], held["indices"], held["indptr"])
        return csr_matrix(parts, shape=tuple(held["shape"])), float(held["seconds"])


def check_inputs(systems: list[str], folders: dict[str, str]) -> dict[str, Path]:
    """Find what the chosen systems read, before anything is encoded.

    Args:
        systems: names, see NEEDS.
        folders: idf_dir, pretrain_dir, model_dir as the parameters give them.

    Returns:
        need -> path: "idf_dir" an idf.json; "pretrain_dir", "model_dir", "tokenizer" a model folder.

    Raises:
        FileNotFoundError: names the system, the path that lacks and the step that writes it.
    """
    return {need: _find(system, need, folders) for system in systems for need in NEEDS[system]}


def _find(system: str, need: str, folders: dict[str, str]) -> Path:
    places = [(parameter, at_root(folders[parameter]) / name) for parameter, name in FOUND_IN[need]]
    for _, path in places:
        if path.exists():
            return path
    parameter, path = places[0]
    raise FileNotFoundError(
        f"system {system!r} needs {path}, which is not there: run {STEP[parameter]} first "
        f"(`python -m nblib run --only {STEP[parameter]}`), set {parameter}, "
        f"or take {system!r} out of systems"
    )


def build_systems(systems: list[str], inputs: dict[str, Path], params: Any, cache: Path) -> list[System]:
    """Make the systems of 05_beir_eval in the order asked for.

    Args:
        systems: names.
        inputs: what `check_inputs` found.
        params: BeirEvalParams: bm25_analyzer, dense_teacher, max_length, batch_size, precision.
        cache: folder for encoded documents.
    """
    length, batch, idf = params.max_length, params.batch_size, inputs.get("idf_dir")
    tokenizer = load_tokenizer(str(inputs["tokenizer"])) if "tokenizer" in inputs else None
    sparse = (idf, length, batch, cache, params.precision)
    makers = {
        "bm25": lambda: bm25(params.bm25_analyzer),
        "bm25-tokens": lambda: bm25_tokens(tokenizer, length),
        "dense": lambda: dense(params.dense_teacher, length, batch, cache),
        "idf-bag": lambda: idf_bag(tokenizer, load_idf(idf, tokenizer), length),
        "pretrained": lambda: learned_sparse("pretrained", inputs["pretrain_dir"], *sparse),
        "finetuned": lambda: learned_sparse("finetuned", inputs["model_dir"], *sparse),
    }
    return [makers[name]() for name in systems]
