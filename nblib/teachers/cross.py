"""A cross-encoder: reads query and document together, and scores only the pairs it is told."""

from collections.abc import Callable, Sequence
from functools import cache as once_only
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from nblib.backbones import load
from nblib.files import read_json
from nblib.precision import quick_fp32
from nblib.teachers.given import GivenScores, checked_pairs
from nblib.teachers.models import CROSS, TeacherModel, cut_inputs, find_model, refuse_untrained
from nblib.teachers.once import ARRAY, Tick, compute_once, own_device, texts_key

CROSS_PREFIX = "cross:"
BLOCKS = 8  # batches between two signs of progress


def check_labels(model: TeacherModel) -> None:
    """Refuse a classifier of several labels, or one whose head is not in its weights. Raises ValueError."""
    from transformers import AutoModelForSequenceClassification

    file = model.folder / "config.json"
    config = read_json(file) if file.exists() else {}
    if not (config.get("architectures") or [""])[0].endswith("ForSequenceClassification"):
        return  # a reranker that reads its score from the head of a language model
    labels = len(config.get("id2label", "01"))  # transformers writes none where there are two
    if labels != 1:
        raise ValueError(
            f"{model.name!r} gives {labels} labels per pair: name a cross-encoder that gives one score"
        )
    cure = "Name a cross-encoder that was trained to rank"
    refuse_untrained(model.name, model.folder, AutoModelForSequenceClassification, cure)


def _open(model: TeacherModel, max_length: int, device: str):
    from sentence_transformers import CrossEncoder

    encoder = load(CrossEncoder, str(model.folder), device=own_device(device))
    cut_inputs(encoder, max_length)
    return encoder


def cross_scores(encoder, texts: Sequence[tuple[str, str]], batch_size: int, tick: Tick) -> np.ndarray:
    """Score (query, document) texts, long ones first: [P] float32 raw logits, no sigmoid.

    Raises:
        ValueError: a score is not one finite number.
    """
    order = np.argsort([-len(query) - len(document) for query, document in texts], kind="stable")
    values = np.empty(len(order), dtype=np.float32)
    for start in range(0, len(order), BLOCKS * batch_size):
        rows = order[start : start + BLOCKS * batch_size]
        with quick_fp32():
            found = encoder.predict(
                [texts[i] for i in rows],
                batch_size=batch_size,
                activation_fn=nn.Identity(),  # a sigmoid would press the best scores together
                show_progress_bar=False,
            )
        if found.ndim != 1 or not np.isfinite(found).all():
            raise ValueError("the cross-encoder does not give one finite score per pair; name another")
        values[rows] = found
        tick(start + len(rows))
    return values


class CrossTeacher:
    """Logits of a cross-encoder for the pairs that training rows name; every other pair is NaN.

    Args:
        name: folder or Hugging Face id of a CrossEncoder with one label.
        max_length: tokens it reads of a pair, the query included.
        device: where it runs.
        batch_size: pairs per batch.

    Raises:
        OSError, ValueError: no such model, another kind of model, several labels, or an untrained head.
    """

    def __init__(self, name: str, max_length: int, device: str = "cpu", batch_size: int = 32) -> None:
        self.model = find_model(name, CROSS)
        check_labels(self.model)
        self.max_length, self.device, self.batch_size = max_length, device, batch_size

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
        pairs: np.ndarray | None = None,
    ) -> None:
        """Score the pairs, or read their scores from `cache`.

        Args:
            queries, documents: the texts.
            cache: folder.
            progress: called with the share of pairs done, times the number of texts: what the other
                teachers count.
            pairs: [P, 2] (query row, document row), see training_pairs.

        Raises:
            ValueError: no pairs, or a row that does not exist.
        """
        progress = progress or (lambda done: None)
        pairs = checked_pairs(pairs, len(queries), len(documents))
        loaded = once_only(lambda: _open(self.model, self.max_length, self.device))

        def compute(rows: slice, tick: Tick) -> np.ndarray:
            texts = [(queries[q], documents[d]) for q, d in pairs[rows].tolist()]
            return cross_scores(loaded(), texts, self.batch_size, tick)

        def count(done: int) -> None:
            progress((len(queries) + len(documents)) * done // len(pairs))

        values = compute_once(self._file(cache, queries, documents, pairs), len(pairs), ARRAY, compute, count)
        self.table = GivenScores(pairs, values)

    def _file(self, cache: Path | None, queries, documents, pairs: np.ndarray) -> Path | None:
        if not cache:
            return None
        settings = self.model.key(str(self.max_length), pairs.tobytes().hex())
        return Path(cache) / f"cross-{texts_key(settings, queries, documents)}"

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Look up all pairs of the given rows: [Q, D] float32, NaN where the pair was not named."""
        return self.table.scores(q_rows, d_rows)
