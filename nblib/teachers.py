"""Teachers whose scores the student learns: a dense encoder, BM25, and their ensemble.

Both kinds keep one representation per text, computed once, and score any (query, document) block of a batch
by a small product. So every in-batch pair has a teacher score, not only the mined ones.

Letters: Q queries, D documents of one batch; N texts of a whole set.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nblib.backbones import load, resolve
from nblib.files import atomic_file, sha256_paths
from nblib.losses import ensemble_scores
from nblib.precision import quick_fp32
from nblib.search.bm25 import Bm25

BM25_PREFIX = "bm25:"


def load_dense(name: str, max_length: int, device: str = "cpu"):
    """Load any SentenceTransformer and cut its inputs at max_length tokens."""
    from sentence_transformers import SentenceTransformer

    model = load(SentenceTransformer, name, device=device)
    model.max_seq_length = min(max_length, model.max_seq_length or max_length)
    return model


def texts_key(*parts: Sequence[str]) -> str:
    """Hash texts and settings into the key of a cache entry; 16 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            digest.update(text.encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()[:16]


def dense_embeddings(
    name: str,
    texts: Sequence[str],
    max_length: int,
    side: str,
    cache: Path | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Embed texts with a SentenceTransformer, once per (weights, texts, length).

    Args:
        name: model name, see nblib.backbones.resolve.
        texts: N texts.
        max_length: tokens kept per text.
        side: "query" or "document": some models put another prompt before each.
        cache: folder of the cached arrays; None computes anew. A changed model, text or length never meets
            an old entry, because all three are in its name (a model of the hub by its name only).
        batch_size: texts per batch.
        device: where the model runs.
        progress: called with the number of texts done.

    Returns:
        [N, H] float32, length 1 each, so that the dot product is the cosine.
    """
    folder = Path(resolve(name))
    identity = sha256_paths([folder]) if folder.is_dir() else name
    file = cache / f"dense-{texts_key([identity, str(max_length), side], texts)}.npy" if cache else None
    if file and file.exists():
        return np.load(file)
    model = load_dense(name, max_length, device)
    order = np.argsort([-len(t) for t in texts], kind="stable")
    encode = model.encode_query if side == "query" else model.encode_document
    out = np.empty((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    for start in range(0, len(order), 8 * batch_size):
        rows = order[start : start + 8 * batch_size]
        with quick_fp32():
            out[rows] = encode(
                [texts[i] for i in rows],
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        if progress:
            progress(min(start + 8 * batch_size, len(order)))
    if file:
        with atomic_file(file) as tmp, open(tmp, "wb") as handle:
            np.save(handle, out)
    return out


class DenseTeacher:
    """Cosine of sentence embeddings, computed once for all training texts."""

    def __init__(self, name: str, max_length: int, device: str = "cpu") -> None:
        self.name, self.max_length, self.device = name, max_length, device

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Embed all queries and documents, or read them from `cache`."""
        options = {"cache": cache, "device": self.device}
        after = len(documents)  # the progress counts both
        self.d_reps = dense_embeddings(
            self.name, documents, self.max_length, "document", progress=progress, **options
        )
        self.q_reps = dense_embeddings(
            self.name,
            queries,
            self.max_length,
            "query",
            progress=progress and (lambda done: progress(after + done)),
            **options,
        )

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score rows of the prepared queries against rows of the prepared documents: [Q, D] float32."""
        return torch.from_numpy(self.q_reps[q_rows] @ self.d_reps[d_rows].T)


class Bm25Teacher:
    """BM25 over the full training documents, scored for any block of pairs by a sparse product."""

    def __init__(self, analyzer: str = "english") -> None:
        self.analyzer = analyzer

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Index all documents; seconds for tens of thousands, so nothing is cached."""
        index = Bm25(list(documents), self.analyzer)
        self.q_counts = index.query_matrix(list(queries))
        self.d_weights = index.doc_matrix

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score rows of the prepared queries against rows of the prepared documents: [Q, D] float32."""
        product = self.q_counts[q_rows] @ self.d_weights[d_rows].T
        return torch.from_numpy(product.toarray().astype(np.float32))


def make_teacher(name: str, max_length: int, device: str):
    """Make the teacher that `name` stands for: "bm25:<analyzer>" or a SentenceTransformer."""
    if name.startswith(BM25_PREFIX):
        return Bm25Teacher(name.removeprefix(BM25_PREFIX))
    return DenseTeacher(name, max_length, device)


class EnsembleTeacher:
    """A dense and a sparse teacher on one scale: S * sum_j w_j * min_max(s_j), per query over its candidates.

    Source: arXiv:2411.04403, eqs. 8 and 9.

    Args:
        dense_teacher_name: SentenceTransformer name; "" leaves it out.
        sparse_teacher_name: "bm25:<analyzer>"; "" leaves it out.
        dense_weight, sparse_weight: w_j; a teacher of weight 0 is not loaded.
        scale_constant: S.
        device: where the dense teacher runs.
        max_length: tokens the dense teacher reads of each text.

    Raises:
        ValueError: no teacher is left.
    """

    def __init__(
        self,
        dense_teacher_name: str,
        sparse_teacher_name: str,
        dense_weight: float = 0.5,
        sparse_weight: float = 0.5,
        scale_constant: float = 30.0,
        device: str = "cpu",
        max_length: int = 256,
    ) -> None:
        pairs = [(dense_teacher_name, dense_weight), (sparse_teacher_name, sparse_weight)]
        pairs = [(name, weight) for name, weight in pairs if name and weight > 0]
        if not pairs:
            raise ValueError("no teacher left: name a dense or a sparse one and give it a weight above 0")
        self.teachers = [make_teacher(name, max_length, device) for name, _ in pairs]
        self.weights = [weight for _, weight in pairs]
        self.scale_constant = scale_constant

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> "EnsembleTeacher":
        """Let each teacher read all texts once. Rows of `scores` are positions in these two sequences."""
        for teacher in self.teachers:
            teacher.prepare(queries, documents, cache, progress)
        return self

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score all pairs of the given rows: [Q, D] float32, each row spanning 0 .. S * sum of weights."""
        parts = [teacher.scores(q_rows, d_rows) for teacher in self.teachers]
        return ensemble_scores(parts, self.weights, self.scale_constant)
