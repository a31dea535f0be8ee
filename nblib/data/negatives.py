"""Hard negatives: documents that BM25 ranks high for a query although nobody judged them relevant.

Q queries, K negatives per query.
"""

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from nblib.data.formats import BeirSet, document_text
from nblib.run.progress import report
from nblib.search.bm25 import Analyzer, Bm25
from nblib.search.exact import top_k_dense

Given = Mapping[str, Mapping[str, float | None]]  # query id -> document id -> score (None = a bare negative)
BLOCK = 2000  # queries searched and turned into rows at a time
DENSE_BATCH = 32  # texts


def mine_negatives(
    beir_set: BeirSet,
    num_negatives: int,
    depth: int,
    analyzer: Analyzer,
    seed: int,
    given: Given | None = None,
    dense: str = "",
    max_length: int = 256,
) -> list[dict[str, Any]]:
    """Make one kd-ids row per training query: its positives first, then K hard negatives.

    The negatives are drawn at random from the best `depth` documents of BM25, leaving out what is judged
    relevant or has the same text as a relevant document, and are listed best first. The draw depends on the
    seed and the query alone, so other queries do not change it. Where BM25 finds too few, random documents
    fill up. With a dense model the two rank in turn: words lead to the one half, meaning to the other.

    Args:
        beir_set: with a "train" split.
        num_negatives: K; a smaller corpus gives fewer.
        depth: ranks to draw from, positives counted.
        analyzer: of the BM25 index, see nblib.search.bm25.analyze.
        seed: of the draw.
        given: documents that the source names for a query. If all have scores (kd rows) the row is made of
            them alone; else they come before the mined ones.
        dense: a SentenceTransformer that ranks in turn with BM25; "" for BM25 alone.
        max_length: tokens that it reads of each text.

    Returns:
        rows {query_id, doc_ids, scores} in the order of the qrels; scores are BM25's (no unit, 0 or more) or
        those given.
    """
    qrels, given = beir_set.qrels["train"], given or {}
    relevant = {qid: judged for qid, judged in qrels.items() if max(judged.values(), default=0) > 0}
    rows = [_given_row(qid, judged, given[qid]) for qid, judged in relevant.items() if _scored(qid, given)]
    todo = [qid for qid in relevant if not _scored(qid, given)]
    if todo:
        rows += _Miner(beir_set, analyzer, num_negatives, depth, seed, dense, max_length).rows(todo, given)
    position = {qid: i for i, qid in enumerate(qrels)}
    return sorted(rows, key=lambda row: position[row["query_id"]])


def _scored(query_id: str, given: Given) -> bool:
    docs = given.get(query_id, {})
    return bool(docs) and None not in docs.values()


def _given_row(query_id: str, judged: Mapping[str, int], docs: Mapping[str, float | None]) -> dict[str, Any]:
    order = sorted(docs, key=lambda d: judged.get(d, 0) <= 0)  # stable: positives first
    return {"query_id": query_id, "doc_ids": order, "scores": [docs[d] for d in order]}


class _Miner:
    """The index and the texts that all queries share."""

    def __init__(
        self,
        beir_set: BeirSet,
        analyzer: Analyzer,
        num_negatives: int,
        depth: int,
        seed: int,
        dense: str = "",
        max_length: int = 256,
    ):
        self.set, self.k, self.depth, self.seed = beir_set, num_negatives, depth, seed
        self.ids = list(beir_set.corpus)
        self.position = {doc_id: i for i, doc_id in enumerate(self.ids)}
        texts = [document_text(doc) for doc in beir_set.corpus.values()]
        self.keys = [" ".join(text.lower().split()) for text in texts]  # equal keys: the same text
        self.bm25 = Bm25(texts, analyzer)
        self.dense = _DenseRanks(dense, texts, max_length, beir_set.name) if dense else None

    def rows(self, query_ids: list[str], given: Given) -> list[dict[str, Any]]:
        """Make the rows of these queries, in their order."""
        out = []
        for start in range(0, len(query_ids), BLOCK):
            block = query_ids[start : start + BLOCK]
            texts = [self.set.queries[q] for q in block]
            hits, _ = self.bm25.search(texts, self.depth)  # [Q, depth]
            if self.dense:
                hits = in_turn(hits, self.dense.search(texts, self.depth), self.depth)
            chosen = [
                self._choose(qid, hits[i][hits[i] >= 0], given.get(qid, {})) for i, qid in enumerate(block)
            ]
            out += self._with_scores(block, chosen)
            report("mine negatives", start + len(block), len(query_ids))
        return out

    def _choose(self, query_id: str, ranked: np.ndarray, given: Mapping[str, float | None]) -> list[int]:
        """List the document positions of one row: positives, given negatives, mined negatives."""
        judged = self.set.qrels["train"][query_id]
        positives = [self.position[d] for d, grade in judged.items() if grade > 0]
        refused = {self.keys[p] for p in positives}
        chosen = positives + [p for p in map(self.position.get, given) if p not in positives]
        rng = random.Random(f"{self.seed}:{query_id}")
        hits = [int(p) for p in ranked if self.keys[p] not in refused and p not in chosen]
        wanted = max(0, self.k - (len(chosen) - len(positives)))
        mined = sorted(rng.sample(range(len(hits)), min(wanted, len(hits))))  # back in the order of ranks
        chosen += [hits[i] for i in mined]
        missing = wanted - len(mined)
        if missing:
            taken = set(chosen)
            free = [p for p in range(len(self.ids)) if self.keys[p] not in refused and p not in taken]
            chosen += rng.sample(free, min(missing, len(free)))
        return chosen

    def _with_scores(self, query_ids: list[str], chosen: list[list[int]]) -> list[dict[str, Any]]:
        q_matrix = self.bm25.query_matrix([self.set.queries[q] for q in query_ids])  # [Q, T]
        of_query = np.repeat(np.arange(len(chosen)), [len(docs) for docs in chosen])  # [pairs]
        docs = np.concatenate([np.asarray(docs, dtype=np.int64) for docs in chosen])
        products = q_matrix[of_query].multiply(self.bm25.doc_matrix[docs])  # [pairs, T]
        scores = iter(np.asarray(products.sum(axis=1)).ravel().tolist())
        return [
            {
                "query_id": qid,
                "doc_ids": [self.ids[p] for p in row],
                "scores": [round(next(scores), 4) for _ in row],
            }
            for qid, row in zip(query_ids, chosen, strict=True)
        ]


class _DenseRanks:
    """The documents of a set as embeddings of a SentenceTransformer."""

    def __init__(self, name: str, texts: list[str], max_length: int, label: str):
        from nblib.distributed import device  # torch takes seconds to import
        from nblib.teachers.dense import encode_dense, load_dense

        self.model = load_dense(name, max_length, str(device()))
        self.encode = encode_dense
        tick = partial(report, f"embed {label}", total=len(texts))
        self.d_reps = encode_dense(self.model, texts, "document", True, DENSE_BATCH, tick)  # [N, H]

    def search(self, queries: list[str], k: int) -> np.ndarray:
        """Rank the documents: [Q, k], -1 where there are fewer."""
        q_reps = self.encode(self.model, queries, "query", True, DENSE_BATCH)
        return top_k_dense(q_reps, self.d_reps, k)[0]


def in_turn(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    """Merge two rankings: the best of the one, the best of the other, and so on, each document once.

    Args:
        first, second: [Q, n] document numbers, best first; -1 = none.
        k: documents kept.

    Returns:
        [Q, k], -1 where both have fewer.
    """
    merged = np.full((len(first), k), -1, dtype=np.int64)
    for row, pairs in enumerate(np.stack([first, second], axis=2)):  # [n, 2]
        order = [d for d in dict.fromkeys(pairs.ravel().tolist()) if d >= 0][:k]
        merged[row, : len(order)] = order
    return merged
