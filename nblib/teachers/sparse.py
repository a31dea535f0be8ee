"""A sparse teacher: any SparseEncoder, an OpenSearch or SPLADE masked LM, or a model of this repository."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache as once_only
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nblib.backbones import load
from nblib.bags import query_matrix
from nblib.files import at_root, read_json, sha256_file
from nblib.idf import load_idf
from nblib.model.encoder import CONFIG, NeuralSparseEncoder
from nblib.precision import quick_fp32
from nblib.teachers.models import OURS, SPARSE, TeacherModel, cut_inputs, find_model, refuse_untrained
from nblib.teachers.once import CSR, Tick, compute_once, own_device, texts_key

SPARSE_PREFIX = "sparse:"
IDF_FILES = ("idf.json", "query_token_weights.txt")  # as OpenSearch names them
BLOCKS = 4  # batches between two signs of progress; [n, V] of them is in memory
MAX_ACTIVE = 0.5  # share of non-zero terms above which CSR is larger than an array
Encode = Callable[[list[str], str], sparse.csr_matrix]  # (texts, side) -> reps


def find_idf(model: TeacherModel, given: str | Path | None) -> Path | None:
    """Find the query weights of a masked LM: given, in its folder, or beside it.

    Returns:
        The file; None if the model encodes queries itself.

    Raises:
        FileNotFoundError: the given file is not there.
        ValueError: one of our models without any, or weights for a SparseEncoder.
    """
    if model.kind == SPARSE:
        if given:
            raise ValueError(f"{model.name!r} is a SparseEncoder with a query side of its own; drop idf_path")
        return None
    if given:
        if not at_root(given).is_file():
            raise FileNotFoundError(f"no query weights at {at_root(given)}; name the idf.json of 02_idf")
        return at_root(given)
    folders = [model.folder] + ([model.folder.parent] if model.kind == OURS else [])
    found = [folder / name for folder in folders for name in IDF_FILES if (folder / name).exists()]
    if model.kind == OURS and read_json(model.folder / CONFIG).get("query_side") == "siamese":
        return None
    if not found and model.kind == OURS:
        raise ValueError(
            f"{model.name!r} encodes documents only and has no idf.json in it or beside it: copy the "
            "one of 02_idf, or name a folder of 06_export"
        )
    return found[0] if found else None


def read_query_weights(file: Path, tokenizer) -> np.ndarray:
    """Read idf.json, or OpenSearch's text file of token, tab, weight: [V] float32. Raises as load_idf."""
    if file.suffix == ".json":
        return load_idf(file, tokenizer)
    lines = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    try:
        weights = {token: float(weight) for token, weight in lines}
    except ValueError as error:
        raise ValueError(f"{file}: want a token, a tab and a weight on each line ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file.name).write_text(json.dumps(weights), encoding="utf-8")
        return load_idf(Path(folder) / file.name, tokenizer)


def check_heads(model: TeacherModel) -> None:
    """Refuse a sparse model whose masked-LM head is not in its weights. Raises ValueError."""
    from transformers import AutoModelForMaskedLM

    cure = "Name a trained sparse encoder; a backbone becomes one in 03_pretrain and 04_finetune"
    for folder in masked_lm_folders(model):
        refuse_untrained(model.name, folder, AutoModelForMaskedLM, cure)


def masked_lm_folders(model: TeacherModel) -> list[Path]:
    """List the folders of a model that are loaded as masked LMs."""
    if model.kind != SPARSE:
        return [model.folder]
    files = [model.folder / name for name in ("modules.json", "router_config.json")]
    if not any("SpladePooling" in file.read_text(encoding="utf-8") for file in files if file.exists()):
        return []  # terms of an autoencoder over a dense model
    configs = sorted(model.folder.rglob("config.json"))
    folders = [file.parent for file in configs if "model_type" in read_json(file)]
    weights = ("*.safetensors", "*.bin")
    return [f for f in folders if any(path for pattern in weights for path in f.glob(pattern))]


def open_sparse(
    model: TeacherModel, idf: Path | None, max_length: int, device: str, batch_size: int
) -> Encode:
    """Load a sparse model as one function of texts and side."""
    opener = _open_sparse_encoder if model.kind == SPARSE else _open_masked_lm
    return opener(model, idf, max_length, own_device(device), batch_size)


def _open_sparse_encoder(model: TeacherModel, idf: None, max_length: int, device: str, batch_size: int):
    from sentence_transformers import SparseEncoder

    encoder = load(SparseEncoder, str(model.folder), device=device)
    cut_inputs(encoder, max_length)
    options = {"batch_size": batch_size, "convert_to_sparse_tensor": False, "save_to_cpu": True}

    def encode(texts: list[str], side: str) -> sparse.csr_matrix:
        method = encoder.encode_query if side == "query" else encoder.encode_document
        return sparse.csr_matrix(method(texts, show_progress_bar=False, **options).float().numpy())

    return encode


def _open_masked_lm(model: TeacherModel, idf: Path | None, max_length: int, device: str, batch_size: int):
    # The folder of one of ours also says how it pools.
    opener = NeuralSparseEncoder.load if model.kind == OURS else NeuralSparseEncoder
    encoder = opener(str(model.folder), 1).to(device)
    encoder.max_length = min(max_length, encoder.positions or max_length)
    query_length = encoder.query_max_length or encoder.max_length
    weights = read_query_weights(idf, encoder.tokenizer) if idf else None

    def encode(texts: list[str], side: str) -> sparse.csr_matrix:
        if side == "query" and weights is not None:
            return query_matrix(texts, encoder.tokenizer, weights, query_length)
        return encoder.encode_documents(
            texts, batch_size, max_length=query_length if side == "query" else None
        )

    return encode


class SparseTeacher:
    """Inner product of learned sparse vectors, computed once for all training texts.

    Args:
        name: folder or Hugging Face id. modules.json: a SparseEncoder, with its query and document routes.
            sparse_config.json: a model of 03 or 04, with the idf.json in its folder or beside it. Else a
            masked LM: queries are bags of weighted tokens if the folder holds idf.json or
            query_token_weights.txt (OpenSearch's document encoders), and pass the model if not.
        max_length: tokens it reads of each text; a query route of static weights keeps its own cut.
        device: where it runs.
        batch_size: texts per batch.
        idf_path: query weights, if they lie elsewhere.

    Raises:
        OSError, ValueError: no such model, another kind of model, a head that was never trained, no query
            weights, or a similarity other than dot and cosine.
    """

    def __init__(
        self,
        name: str,
        max_length: int,
        device: str = "cpu",
        batch_size: int = 32,
        idf_path: str | Path | None = None,
    ) -> None:
        self.model = find_model(name, SPARSE)
        self.idf = find_idf(self.model, idf_path)
        self.similarity = self.model.settings.get("similarity_fn_name") or "dot"
        if self.similarity not in ("dot", "cosine"):
            raise ValueError(
                f"{name!r} compares by {self.similarity}; name a sparse model that uses dot or cosine"
            )
        check_heads(self.model)
        self.max_length, self.device, self.batch_size = max_length, device, batch_size

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Encode all queries and documents, or read them from `cache`; progress counts both.

        Raises:
            ValueError: no document or no query has a term, or most terms of most texts are active.
        """
        progress = progress or (lambda done: None)
        loaded = once_only(
            lambda: open_sparse(self.model, self.idf, self.max_length, self.device, self.batch_size)
        )
        self.d_reps = self._encode(loaded, documents, "document", cache, progress)
        after = len(documents)
        self.q_reps = self._encode(loaded, queries, "query", cache, lambda done: progress(after + done))

    def _encode(self, loaded: Callable[[], Encode], texts: Sequence[str], side: str, cache, progress):
        idf = sha256_file(self.idf) if self.idf else ""
        key = texts_key(self.model.key(str(self.max_length), side, idf), texts) if cache else ""
        file = Path(cache) / f"sparse-{key}" if cache else None

        def compute(rows: slice, tick: Tick) -> sparse.csr_matrix:
            reps = encode_sparse(loaded(), texts[rows], side, BLOCKS * self.batch_size, tick)
            self._check(reps)
            return reps

        reps = compute_once(file, len(texts), CSR, compute, progress)
        if not reps.nnz:
            raise ValueError(f"{self.model.name!r} gives no {side} any term: it cannot teach; name another")
        return unit_rows(reps) if self.similarity == "cosine" else reps

    def _check(self, reps: sparse.csr_matrix) -> None:
        if not np.isfinite(reps.data).all():
            raise ValueError(f"{self.model.name!r} gives weights that are not finite; name another model")
        if reps.nnz > MAX_ACTIVE * np.prod(reps.shape):
            raise ValueError(
                f"{self.model.name!r} activates {reps.nnz / np.prod(reps.shape):.0%} of its "
                f"{reps.shape[1]:,} terms in each text: it was not trained to be sparse; name another model"
            )

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score rows of the prepared queries against rows of the prepared documents: [Q, D] float32."""
        product = self.q_reps[q_rows] @ self.d_reps[d_rows].T
        return torch.from_numpy(product.toarray().astype(np.float32))


def encode_sparse(
    encode: Encode, texts: Sequence[str], side: str, block: int, tick: Tick
) -> sparse.csr_matrix:
    """Encode texts in blocks, long ones first: [n, V] float32 CSR in the order of the texts."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = []
    for start in range(0, len(order), block):
        with quick_fp32():
            parts.append(encode([texts[i] for i in order[start : start + block]], side))
        tick(min(start + block, len(order)))
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = np.arange(len(order))
    return sparse.vstack(parts, format="csr")[inverse].astype(np.float32)


def unit_rows(reps: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale each row to length 1; a row without terms stays empty."""
    lengths = np.sqrt(np.asarray(reps.multiply(reps).sum(axis=1)).ravel())
    scale = np.repeat(1 / np.maximum(lengths, np.finfo(np.float32).tiny), np.diff(reps.indptr))
    return sparse.csr_matrix((reps.data * scale.astype(reps.dtype), reps.indices, reps.indptr), reps.shape)
