"""Retrieval systems: each turns documents and queries into reps, which `nblib.retrieval` searches.

N documents, Q queries, V terms (of a vocabulary or of an index), H dimensions of a dense vector.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nblib.backbones import load_tokenizer
from nblib.bags import query_matrix, token_matrix
from nblib.compatible import check_model, check_one_tokenizer, query_weights
from nblib.encoded import Blocks, Reps, cached, cached_blocks
from nblib.files import at_root, sha256_paths
from nblib.idf import load_idf, tokenizer_rules
from nblib.query_side import query_length
from nblib.run.progress import report
from nblib.search.bm25 import Bm25

EncodeQueries = Callable[[list[str]], Reps]
Documents = Blocks | np.ndarray  # of a sparse system [N, V], of a dense one [N, H]
NEEDS = {  # system -> what it reads; "tokenizer" is that of either model
    "bm25": [],
    "bm25-tokens": ["tokenizer"],
    "dense": [],
    "idf-bag": ["idf_dir", "tokenizer"],
    "pretrained": ["idf_dir", "pretrain_dir"],
    "finetuned": ["idf_dir", "model_dir"],
}
FOUND_IN = {  # need -> parameters, the first that leads to it is taken
    "idf_dir": ["idf_dir"],
    "pretrain_dir": ["pretrain_dir"],
    "model_dir": ["model_dir"],
    "tokenizer": ["model_dir", "pretrain_dir"],
}
STEP = {"idf_dir": "02_idf", "pretrain_dir": "03_pretrain", "model_dir": "04_finetune"}


@dataclass(frozen=True)
class System:
    """A way to search. `index` takes the texts of a corpus and gives three things: the documents' reps, the
    function that encodes queries into the same space, and the seconds that encoding the documents took (when
    it was done: a cache keeps the first figure).
    """

    name: str
    index: Callable[[Sequence[str]], tuple[Documents, EncodeQueries, float]]
    tokenizer: Any = None  # names the V terms; None if they are not a tokenizer's
    idf: np.ndarray | None = None  # [V] if its queries are bags of that tokenizer's tokens, so weighted
    query_length: int | None = None  # tokens kept of a query; None = all


def bm25(analyzer: str | Callable[[str], list[str]], name: str = "bm25") -> System:
    """BM25 over the full text; the document weights are BM25's, the query weights are term counts."""

    def index(texts: Sequence[str]) -> tuple[Documents, EncodeQueries, float]:
        start = time.perf_counter()
        bm25_index = Bm25(texts, analyzer)
        d_reps = Blocks.whole(bm25_index.doc_matrix)
        return d_reps, bm25_index.query_matrix, time.perf_counter() - start

    return System(name, index)


def bm25_tokens(tokenizer: Any, max_length: int) -> System:
    """BM25 over what the model sees: its own word pieces, cut at max_length, special tokens left out."""
    special = set(tokenizer.all_special_ids)

    def pieces(text: str) -> list[str]:
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        return tokenizer.convert_ids_to_tokens([i for i in ids if i not in special])

    return bm25(pieces, "bm25-tokens")


def idf_bag(tokenizer: Any, idf: np.ndarray, max_length: int, cache: Path) -> System:
    """No training at all: the sum of the IDF of the query's tokens that the document's first tokens hold."""

    def index(texts: Sequence[str]) -> tuple[Documents, EncodeQueries, float]:
        version = ["tokens", tokenizer_rules(tokenizer), str(max_length)]
        encode = lambda part: token_matrix(part, tokenizer, max_length)  # noqa: E731
        d_reps, seconds = cached_blocks(cache, version, texts, encode)
        return d_reps, lambda queries: query_matrix(queries, tokenizer, idf), seconds

    return System("idf-bag", index, tokenizer, idf)


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

    Raises:
        ValueError: another kind of model, or query weights that are not the model's.
    """
    check_model(name, folder)
    tokenizer = load_tokenizer(str(folder))
    idf = query_weights(idf_path, folder, tokenizer)
    model = functools.cache(lambda: _load_sparse(folder, max_length, precision))  # once, and late
    version = functools.cache(lambda: [sha256_paths([folder]), str(max_length), precision])  # of that model

    def encode(texts: Sequence[str]) -> Reps:
        tick = lambda n: report(f"{name}: documents", n, len(texts))  # noqa: E731
        with _kernels(model(), precision):
            return model().encode_documents(texts, batch_size, tick)

    def encode_queries(queries: list[str]) -> Reps:
        with _kernels(model(), precision):
            return model().encode_queries(queries, idf, batch_size)

    def index(texts: Sequence[str]) -> tuple[Documents, EncodeQueries, float]:
        d_reps, seconds = cached_blocks(cache, version(), texts, encode)
        return d_reps, encode_queries, seconds

    return System(name, index, tokenizer, idf, query_length(folder))


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

    def encode(texts: Sequence[str]) -> np.ndarray:
        tick = lambda n: report("dense: documents", n, len(texts))  # noqa: E731
        return encode_dense(encoder, texts, "document", True, batch_size, tick)  # [N, H]

    def encode_queries(queries: list[str]) -> np.ndarray:
        return encode_dense(encoder, queries, "query", True, batch_size)

    def index(texts: Sequence[str]) -> tuple[Documents, EncodeQueries, float]:
        d_reps, seconds = cached(cache, model.key(str(max_length)), texts, encode)
        return d_reps, encode_queries, seconds

    return System("dense", index)


def check_inputs(systems: list[str], folders: dict[str, str]) -> dict[str, Path]:
    """Find what the chosen systems read, before anything is encoded.

    Args:
        systems: names, see NEEDS.
        folders: idf_dir, pretrain_dir, model_dir as the parameters give them: the folder of a step's run, or
            that of a model, or an idf.json.

    Returns:
        need -> path: "idf_dir" an idf.json; "pretrain_dir", "model_dir", "tokenizer" a model folder.

    Raises:
        FileNotFoundError: names the system, the path that lacks and the step that writes it.
    """
    return {need: _find(system, need, folders) for system in systems for need in NEEDS[system]}


def _find(system: str, need: str, folders: dict[str, str]) -> Path:
    for parameter in FOUND_IN[need]:
        if folders[parameter] and (path := _held(parameter, at_root(folders[parameter]))):
            return path
    parameter = FOUND_IN[need][0]
    wanted = at_root(folders[parameter]) / "artifacts" / _artifact(parameter)
    raise FileNotFoundError(
        f"system {system!r} needs {wanted}, which is not there: run {STEP[parameter]} first "
        f"(`python -m nblib run --only {STEP[parameter]}`), set {parameter}, "
        f"or take {system!r} out of systems"
    )


def find_input(parameter: str, given: str) -> Path:
    """Find the model folder or the idf.json that a parameter leads to, as check_inputs does.

    Args:
        parameter: "idf_dir", "pretrain_dir" or "model_dir".
        given: its value: the folder of a step's run, or that of a model, or an idf.json.

    Raises:
        FileNotFoundError: neither; names the step that writes it.
    """
    if found := _held(parameter, at_root(given)):
        return found
    raise FileNotFoundError(
        f"{at_root(given)} holds no {_artifact(parameter)}: run {STEP[parameter]} first "
        f"(`python -m nblib run --only {STEP[parameter]}`), or set {parameter}"
    )


def _held(parameter: str, given: Path) -> Path | None:
    """Find what a step wrote into the folder of its run, or what was given in its place."""
    written = given / "artifacts" / _artifact(parameter)
    if written.exists():
        return written
    if parameter == "idf_dir":
        return next((file for file in (given / "idf.json", given) if file.is_file()), None)
    return given if (given / "config.json").is_file() else None


def _artifact(parameter: str) -> str:
    return "idf.json" if parameter == "idf_dir" else "final_model"


def build_systems(systems: list[str], inputs: dict[str, Path], params: Any, cache: Path) -> list[System]:
    """Make the systems of 05_beir_eval in the order asked for.

    Args:
        systems: names.
        inputs: what `check_inputs` found.
        params: BeirEvalParams: bm25_analyzer, dense_teacher, max_length, batch_size, precision.
        cache: folder for encoded documents.

    Raises:
        ValueError: parts that do not belong together, see nblib.compatible.
    """
    check_one_tokenizer({need: path for need, path in inputs.items() if need != "idf_dir"})
    length, batch, idf = params.max_length, params.batch_size, inputs.get("idf_dir")
    tokenizer = load_tokenizer(str(inputs["tokenizer"])) if "tokenizer" in inputs else None
    sparse = (idf, length, batch, cache, params.precision)
    makers = {
        "bm25": lambda: bm25(params.bm25_analyzer),
        "bm25-tokens": lambda: bm25_tokens(tokenizer, length),
        "dense": lambda: dense(params.dense_teacher, length, batch, cache),
        "idf-bag": lambda: idf_bag(tokenizer, load_idf(idf, tokenizer), length, cache),
        "pretrained": lambda: learned_sparse("pretrained", inputs["pretrain_dir"], *sparse),
        "finetuned": lambda: learned_sparse("finetuned", inputs["model_dir"], *sparse),
    }
    return [makers[name]() for name in systems]
