"""Training rows and batches: which queries meet which documents.

Letters: Q queries and D documents of one batch, K negatives per query, V vocabulary.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch.utils.data import Dataset

from nblib.data.formats import document_text, read_beir
from nblib.idf import token_matrix
from nblib.model.encoder import pad


@dataclass
class TrainingSet(Dataset):
    """Queries, documents and rows of one built set; an item is a row of positions in the two lists.

    queries: texts. documents: texts. rows: (query, positive, negatives) positions.
    positives_of: query -> all its positives. queries_of: document -> the queries it answers.
    """

    queries: list[str]
    documents: list[str]
    rows: list[tuple[int, int, list[int]]]
    positives_of: dict[int, set[int]]
    queries_of: dict[int, list[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, int, list[int]]:
        return self.rows[i]


def load_training_set(folder: str | Path, num_hard_negatives: int, max_docs: int = 0) -> TrainingSet:
    """Read a set that 01_data_prep built and keep what training touches.

    Args:
        folder: BEIR folder with train_rows.jsonl (kd-ids rows: positives first, then mined negatives).
        num_hard_negatives: K kept per row; the mined order is kept.
        max_docs: keep rows, in the order of their ids' hashes, until they hold this many documents; 0 keeps
            all. So runs of any seed share their documents, and with them the teacher's cache. Every query
            with a positive among them stays, as a companion where its negatives are not all there.

    Returns:
        The set, with only the queries and documents that its rows name.

    Raises:
        FileNotFoundError: 01_data_prep has not built the set or its rows.
        ValueError: no row, or rows without negatives where K is above 0.
    """
    folder = Path(folder)
    file = folder / "train_rows.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: run 01_data_prep on a source with a train split first")
    beir = read_beir(folder)
    qrels = beir.qrels["train"]
    raw = []  # (query id, positive ids, negative ids)
    for query_id, doc_ids in _read_kd_ids(file):
        relevant = {d for d in doc_ids if qrels.get(query_id, {}).get(d, 0) > 0}
        negatives = [d for d in doc_ids if d not in relevant][:num_hard_negatives]
        raw.append((query_id, [d for d in doc_ids if d in relevant], negatives))
    raw.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
    kept = _first_documents(raw, max_docs)
    d_pos = {d: i for i, d in enumerate(kept)}
    q_pos: dict[str, int] = {}
    rows, positives_of, queries_of = [], {}, {}
    for query_id, relevant, negatives in raw:
        found = [d_pos[d] for d in relevant if d in d_pos]
        if found:
            q = q_pos.setdefault(query_id, len(q_pos))
            positives_of[q] = set(found)
            if all(d in d_pos for d in negatives):
                rows.extend((q, p, [d_pos[d] for d in negatives]) for p in found)
    if not rows:
        raise ValueError(f"{file}: no row names a positive of qrels/train.tsv")
    if num_hard_negatives and not any(others for _, _, others in rows):
        raise ValueError(f"{file}: rows hold no negatives; set num_hard_negatives to 0 or mine some in 01")
    for q, positives in positives_of.items():
        for p in positives:
            queries_of.setdefault(p, []).append(q)
    documents = [document_text(beir.corpus[d]) for d in d_pos]
    return TrainingSet([beir.queries[q] for q in q_pos], documents, rows, positives_of, queries_of)


def _first_documents(raw: list[tuple[str, list[str], list[str]]], max_docs: int) -> list[str]:
    """List the documents of the first rows, up to max_docs (0 = all)."""
    kept: dict[str, None] = {}
    for _, relevant, negatives in raw:
        if max_docs and len(kept) + len({*relevant, *negatives} - kept.keys()) > max_docs:
            break
        kept.update(dict.fromkeys([*relevant, *negatives]))
    return list(kept)


def _read_kd_ids(file: Path):
    """Yield (query id, document ids) of each line of a file that 01_data_prep wrote."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield row["query_id"], row["doc_ids"]
            except (json.JSONDecodeError, KeyError) as error:
                raise ValueError(f"{file}, line {number}: {error}; rebuild it with 01_data_prep") from error


def lexical_targets(
    ids: Sequence[Sequence[int]],
    vocab_size: int,
    special_ids: Sequence[int],
    k1: float = 1.5,
    b: float = 0.75,
) -> sparse.csr_matrix:
    """Give each document its own tokens with the weight that BM25 gives them, less the IDF.

    tf (k1 + 1) / (tf + k1 (1 - b + b dl / avgdl)): the IDF sits on the query side already, so an encoder
    that returns exactly these weights searches exactly as BM25 over the same tokens does.

    Args:
        ids: token ids of each document, cut as the encoder cuts them.
        vocab_size: V.
        special_ids: tokens that get no weight.
        k1, b: saturation and length normalisation.

    Returns:
        [N, V] float32 CSR.
    """
    special = np.array(sorted(special_ids))
    kept = [np.setdiff1d(np.asarray(x), special, assume_unique=True) for x in ids]  # in order, with repeats
    lengths = np.array([len(x) for x in kept], dtype=np.float64)
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0))
    parts = [np.unique(x, return_counts=True) for x in kept]
    indptr = np.concatenate([[0], np.cumsum([len(tokens) for tokens, _ in parts])])
    counts = np.concatenate([c for _, c in parts]).astype(np.float64)
    weights = counts * (k1 + 1) / (counts + np.repeat(norm, np.diff(indptr)))
    tokens = np.concatenate([t for t, _ in parts])
    return sparse.csr_matrix((weights.astype(np.float32), tokens, indptr), shape=(len(kept), vocab_size))


class Collator:
    """Turn rows into one batch in which every query is scored against every document.

    The documents are the distinct positives and negatives of the rows. A query costs no encoder pass, so
    each document also brings the other training queries that it answers: more scores for the same work.

    Args:
        data: the training set.
        tokenizer: of the encoder.
        max_length: tokens per document.
        teacher: prepared on data.queries and data.documents, or None.
        lexical: also give the lexical targets of the documents.
    """

    def __init__(
        self, data: TrainingSet, tokenizer, max_length: int, teacher=None, lexical: bool = False
    ) -> None:
        self.data, self.teacher = data, teacher
        self.pad_id = tokenizer.pad_token_id
        self.ids = tokenizer(data.documents, truncation=True, max_length=max_length)["input_ids"]
        self.bags = token_matrix(data.queries, tokenizer)  # [queries, V] CSR
        special = tokenizer.all_special_ids
        self.lexical = lexical_targets(self.ids, len(tokenizer), special) if lexical else None

    def __call__(self, rows: Sequence[tuple[int, int, list[int]]]) -> dict[str, torch.Tensor]:
        """Build a batch.

        Returns:
            input_ids, attention_mask: [D, L] int64. q_bags: [Q, V] float 0/1. positives: [Q, D] bool.
            teacher: [Q, D] float, only with a teacher. lexical: [D, V] float, 0 = no target, if asked for.
        """
        docs = list(dict.fromkeys([p for _, p, _ in rows] + [n for _, _, negs in rows for n in negs]))
        queries = list(dict.fromkeys([q for q, _, _ in rows] + [q for d in docs for q in self.companions(d)]))
        positives = [[d in self.data.positives_of[q] for d in docs] for q in queries]
        input_ids, mask = pad([self.ids[d] for d in docs], self.pad_id)
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "q_bags": torch.from_numpy(self.bags[queries].toarray()),
            "positives": torch.tensor(positives),
        }
        if self.teacher is not None:
            batch["teacher"] = self.teacher.scores(np.array(queries), np.array(docs))
        if self.lexical is not None:
            batch["lexical"] = torch.from_numpy(self.lexical[docs].toarray())
        return batch

    def companions(self, document: int) -> list[int]:
        """List the training queries that a document answers."""
        return self.data.queries_of.get(document, [])
