"""A dense teacher: any SentenceTransformer, by its own similarity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nblib.backbones import load
from nblib.precision import quick_fp32
from nblib.teachers.models import DENSE, TeacherModel, cut_inputs, find_model
from nblib.teachers.once import ARRAY, Tick, compute_once, own_device, texts_key

BLOCKS = 8  # batches between two signs of progress


def load_dense(name: str, max_length: int, device: str = "cpu"):
    """Load any SentenceTransformer and cut its inputs at max_length tokens.

    Raises:
        OSError, ValueError: no such model, or another kind of model.
    """
    return _open(find_model(name, DENSE), max_length, device)


def _open(model: TeacherModel, max_length: int, device: str):
    from sentence_transformers import SentenceTransformer

    encoder = load(SentenceTransformer, str(model.folder), device=own_device(device))
    cut_inputs(encoder, max_length)
    return encoder


def similarity(model: TeacherModel) -> str:
    """Name the similarity that a SentenceTransformer was saved with: cosine unless it says otherwise."""
    return model.settings.get("similarity_fn_name") or "cosine"


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
    """Embed texts with a SentenceTransformer, once per (weights, prompts, texts, length, side).

    Args:
        name: see nblib.teachers.models.find_model.
        texts: N texts.
        max_length: tokens kept per text.
        side: "query" or "document": some models put another prompt before each.
        cache: folder of the cached arrays; None computes anew. A changed input never meets an old entry.
        batch_size: texts per batch.
        device: where the model runs.
        progress: called with the number of texts done.

    Returns:
        [N, H] float32, mapped from disk if there is a cache; of length 1 if the similarity is the cosine,
        so that the dot product is the cosine.

    Raises:
        OSError, ValueError: no such model, another kind of model, no text, or an embedding is not finite.
    """
    model = find_model(name, DENSE)
    encoder = None

    def compute(rows: slice, tick: Tick) -> np.ndarray:
        nonlocal encoder
        encoder = encoder or _open(model, max_length, device)
        return encode_dense(encoder, texts[rows], side, similarity(model) == "cosine", batch_size, tick)

    key = texts_key(model.key(str(max_length), side), texts) if cache else ""
    file = Path(cache) / f"dense-{key}" if cache else None
    return compute_once(file, len(texts), ARRAY, compute, progress)


def encode_dense(
    encoder,
    texts: Sequence[str],
    side: str,
    normalise: bool,
    batch_size: int,
    tick: Tick = lambda done: None,
) -> np.ndarray:
    """Embed texts, long ones first: [n, H] float32. Raises ValueError if an embedding is not finite."""
    encode = encoder.encode_query if side == "query" else encoder.encode_document
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = []
    for start in range(0, len(order), BLOCKS * batch_size):
        block = [texts[i] for i in order[start : start + BLOCKS * batch_size]]
        with quick_fp32():
            found = encode(
                block, batch_size=batch_size, normalize_embeddings=normalise, show_progress_bar=False
            )
        parts.append(np.asarray(found, dtype=np.float32))
        tick(start + len(block))
    reps = np.empty_like(shuffled := np.concatenate(parts))
    reps[order] = shuffled
    if not np.isfinite(reps).all():
        i = int(np.flatnonzero(~np.isfinite(reps).all(axis=1))[0])
        raise ValueError(f"the dense model's embedding of {texts[i][:60]!r} is not finite; use another")
    return reps


class DenseTeacher:
    """Similarity of sentence embeddings, computed once for all training texts.

    Args:
        name: see nblib.teachers.models.find_model.
        max_length: tokens it reads of each text.
        device: where it runs.
        batch_size: texts per batch.

    Raises:
        OSError, ValueError: no such model, or another kind of model.
    """

    def __init__(self, name: str, max_length: int, device: str = "cpu", batch_size: int = 32) -> None:
        self.similarity = similarity(find_model(name, DENSE))
        self.name, self.max_length, self.device, self.batch_size = name, max_length, device, batch_size

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Embed all queries and documents, or read them from `cache`; progress counts both."""
        progress = progress or (lambda done: None)
        options = {"cache": cache, "batch_size": self.batch_size, "device": self.device}
        self.d_reps = dense_embeddings(
            self.name, documents, self.max_length, "document", progress=progress, **options
        )
        self.q_reps = dense_embeddings(
            self.name,
            queries,
            self.max_length,
            "query",
            progress=lambda done: progress(len(documents) + done),
            **options,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Let a process get the places of mapped embeddings, not the embeddings."""
        places = {n: Path(v.filename) for n, v in vars(self).items() if isinstance(v, np.memmap)}
        return vars(self) | places

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({n: ARRAY.read(v) if isinstance(v, Path) else v for n, v in state.items()})

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score rows of the prepared queries against rows of the prepared documents: [Q, D] float32."""
        q_reps, d_reps = np.asarray(self.q_reps[q_rows]), np.asarray(self.d_reps[d_rows])
        if self.similarity in ("cosine", "dot"):
            return torch.from_numpy(q_reps @ d_reps.T)
        from sentence_transformers import SimilarityFunction

        score = SimilarityFunction.to_similarity_fn(self.similarity)  # minus a distance
        return score(torch.from_numpy(q_reps), torch.from_numpy(d_reps))
