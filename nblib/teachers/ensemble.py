"""Unlike teachers on one scale."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from nblib.losses import ensemble_scores
from nblib.teachers.bm25 import BM25_PREFIX, Bm25Teacher
from nblib.teachers.cross import CROSS_PREFIX, CrossTeacher
from nblib.teachers.dense import DenseTeacher
from nblib.teachers.given import GivenScores, check_rows, checked_pairs
from nblib.teachers.sparse import SPARSE_PREFIX, SparseTeacher

Teacher = DenseTeacher | SparseTeacher | Bm25Teacher | CrossTeacher


def make_teacher(name: str, max_length: int, device: str) -> Teacher:
    """Make the teacher that `name` stands for, and check that its model can teach.

    Args:
        name: "bm25:<analyzer>", "sparse:<model>", "cross:<model>", or a SentenceTransformer.
        max_length: tokens read of each text (of each pair, for a cross-encoder).
        device: where a model runs.

    Raises:
        OSError, ValueError: no such model, or one that cannot teach; the message names the cure.
    """
    if name.startswith(BM25_PREFIX):
        return Bm25Teacher(name.removeprefix(BM25_PREFIX))
    for prefix, kind in ((SPARSE_PREFIX, SparseTeacher), (CROSS_PREFIX, CrossTeacher)):
        if name.startswith(prefix):
            return kind(name.removeprefix(prefix), max_length, device)
    return DenseTeacher(name, max_length, device)


def _with_prefix(name: str, prefix: str) -> str:
    """Put the slot's prefix before a plain model name; "" stays ""."""
    return name if not name or name.startswith((prefix, BM25_PREFIX)) else prefix + name


class EnsembleTeacher:
    """Teachers on one scale: S * sum_j w_j * min_max(s_j), per query over its candidates.

    A pair that one of the teachers has not scored is NaN. Ablations: a weight of 0 leaves a teacher out and
    its model unloaded; normalise=False adds the raw scores.

    Source: arXiv:2411.04403, eqs. 8 and 9; without normalisation: its table 6.

    Args:
        dense_teacher_name: SentenceTransformer name; "" leaves it out.
        sparse_teacher_name: "bm25:<analyzer>" or the name of a sparse model, see SparseTeacher; "" leaves it
            out.
        dense_weight, sparse_weight: w_j.
        scale_constant: S.
        device: where the models run.
        max_length: tokens they read of each text.
        cross_teacher_name: CrossEncoder name; "" leaves it out. It scores only the pairs given to prepare().
        cross_weight: its w_j.
        more: further teachers, name as make_teacher reads it -> w_j.
        normalise: min-max each teacher's scores per query.
        given: scores that came with the training rows; None leaves them out.
        given_weight: their w_j.

    Raises:
        OSError, ValueError: no teacher is left, a weight is negative, or a model cannot teach.
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
        cross_teacher_name: str = "",
        cross_weight: float = 0.0,
        normalise: bool = True,
        given: GivenScores | None = None,
        given_weight: float = 0.0,
        more: Mapping[str, float] | None = None,
    ) -> None:
        slots = [
            (dense_teacher_name, dense_weight),
            (_with_prefix(sparse_teacher_name, SPARSE_PREFIX), sparse_weight),
            (_with_prefix(cross_teacher_name, CROSS_PREFIX), cross_weight),
            *(more or {}).items(),
        ]
        if min(weights := [*(weight for _, weight in slots), given_weight]) < 0:
            raise ValueError(f"weights {weights}: want 0 or more; 0 leaves a teacher out")
        slots = [(name, weight) for name, weight in slots if name and weight > 0]
        self.teachers: list[Teacher | GivenScores] = [
            make_teacher(name, max_length, device) for name, _ in slots
        ]
        self.weights = [weight for _, weight in slots]
        if given is not None and given_weight > 0:
            self.teachers.append(given)
            self.weights.append(given_weight)
        if not self.teachers:
            raise ValueError("no teacher left: name a dense or a sparse one and give it a weight above 0")
        self.scale_constant, self.normalise = scale_constant, normalise

    @property
    def wants_pairs(self) -> bool:
        """Whether prepare() must be told which pairs to score."""
        return any(isinstance(teacher, CrossTeacher) for teacher in self.teachers)

    def prepare(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
        pairs: ArrayLike | None = None,
    ) -> "EnsembleTeacher":
        """Let each teacher read all texts once. Rows of `scores` are positions in these two sequences.

        Args:
            queries, documents: the texts.
            cache: folder where encoded texts and scores are kept, see nblib.teachers.once.
            progress: called with how much is done, from 0 to len(queries) + len(documents) over all teachers.
            pairs: [P, 2] (query row, document row) for the cross-encoder, see training_pairs.

        Raises:
            ValueError: a cross-encoder without pairs, or rows that do not exist.
        """
        if self.wants_pairs:
            pairs = checked_pairs(pairs, len(queries), len(documents))  # before hours of encoding
        slow = [t for t in self.teachers if isinstance(t, DenseTeacher | SparseTeacher | CrossTeacher)]
        for teacher in self.teachers:
            if isinstance(teacher, Bm25Teacher):
                teacher.prepare(queries, documents)
            elif isinstance(teacher, GivenScores):
                check_rows(teacher.pairs, len(queries), len(documents))
        for i, teacher in enumerate(slow):
            before = i * (len(queries) + len(documents))
            tick = progress and (lambda done, before=before: progress((before + done) // len(slow)))
            named = {"pairs": pairs} if isinstance(teacher, CrossTeacher) else {}
            teacher.prepare(queries, documents, cache, tick, **named)
        return self

    def scores(self, q_rows: np.ndarray, d_rows: np.ndarray) -> Tensor:
        """Score all pairs of the given rows: [Q, D] float32, NaN where a teacher has no score.

        With normalisation each row spans 0 .. S * sum of weights.
        """
        parts = [teacher.scores(q_rows, d_rows) for teacher in self.teachers]
        return ensemble_scores(parts, self.weights, self.scale_constant, normalise=self.normalise)
