"""Hard negatives: documents that BM25 ranks high for a query although nobody judged them relevant.

Q queries, K negatives per query.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from nblib.data.formats import BeirSet, document_text
from nblib.run.progress import report
from nblib.search.bm25 import Analyzer, Bm25

Given = Mapping[str, Mapping[str, float | None]]  # query id -> document id -> score (None = a bare negative)
BLOCK = 2000  # queries searched and turned into rows at a time


def mine_negatives(
    beir_set: BeirSet,
    num_negatives: int,
    depth: int,
    analyzer: Analyzer,
    seed: int,
    given: Given | None = None,
) -> list[dict[str, Any]]:
    """Make one kd-ids row per training query: its positives first, then K hard negatives.

    The negatives are drawn at random from the best `depth` documents of BM25, leaving out what is judged
    relevant or has the same text as a relevant document, and are listed best first. The draw depends on the
    seed and the query alone, so other queries do not change it. Where BM25 finds too few, random documents
    fill up.

    Args:
        beir_set: with a "train" split.
        num_negatives: K; a smaller corpus gives fewer.
        depth: BM25 ranks to draw from, positives counted.
        analyzer: of the BM25 index, see nblib.search.bm25.analyze.
        seed: of the draw.
        given: documents that the source names for a query. If all have scores (kd rows) the row is made of
            them alone; else they come before the mined ones.

    Returns:
        rows {query_id, doc_ids, scores} in the order of the qrels; scores are BM25's (no unit, 0 or more) or
        those given.
    """
    qrels, given = beir_set.qrels["train"], given or {}
    relevant = {qid: judged for qid, judged in qrels.items() if max(judged.values(), default=0) > 0}
    rows = [_given_row(qid, judged, given[qid]) for qid, judged in relevant.items() if _scored(qid, given)]
    todo = [qid for qid in relevant if not _scored(qid, given)]
    if todo:
        rows += _Miner(beir_set, analyzer, num_negatives, depth, seed).rows(todo, given)
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

    def __init__(self, beir_set: BeirSet, analyzer: Analyzer, num_negatives: int, depth: int, seed: int):
        self.set, self.k, self.depth, self.seed = beir_set, num_negatives, depth, seed
        self.ids = list(beir_set.corpus)
        self.position = {doc_id: i for i, doc_id in enumerate(self.ids)}
        texts = [document_text(doc) for doc in beir_set.corpus.values()]
        self.keys = [" ".join(text.lower().split()) for text in texts]  # equal keys: the same text
        self.bm25 = Bm25(texts, analyzer)

    def rows(self, query_ids: list[str], given: Given) -> list[dict[str, Any]]:
        """Make the rows of these queries, in their order."""
        out = []
        for start in range(0, len(query_ids), BLOCK):
            block = query_ids[start : start + BLOCK]
            hits, _ = self.bm25.search([self.set.queries[q] for q in block], self.depth)  # [Q, depth]
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
