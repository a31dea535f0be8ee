"""Teachers whose scores the student learns: dense and sparse encoders, BM25, cross-encoders, given scores.

Every teacher has scores(q_rows, d_rows) -> [Q, D] float32, where NaN marks a pair that it has not scored, and
(but for given scores) prepare(queries, documents, ...), which computes once what it needs. Encoders and BM25
score any pair of texts; a cross-encoder and given scores know only the pairs they were told.

models: which weights a name stands for, and of what kind. once: results on disk, shared by processes.
dense, sparse, bm25, cross, given: the teachers. ensemble: all of them on one scale.

Letters: Q queries and D documents of one batch, N texts or P pairs of a whole set, H dimensions of a dense
vector, V terms of a sparse one.
"""

from nblib.teachers.bm25 import BM25_PREFIX, Bm25Teacher
from nblib.teachers.cross import CrossTeacher
from nblib.teachers.dense import DenseTeacher, dense_embeddings, load_dense
from nblib.teachers.ensemble import EnsembleTeacher, make_teacher
from nblib.teachers.given import GivenScores, training_pairs
from nblib.teachers.once import texts_key
from nblib.teachers.sparse import SparseTeacher

__all__ = [
    "BM25_PREFIX",
    "Bm25Teacher",
    "CrossTeacher",
    "DenseTeacher",
    "EnsembleTeacher",
    "GivenScores",
    "SparseTeacher",
    "dense_embeddings",
    "load_dense",
    "make_teacher",
    "texts_key",
    "training_pairs",
]
