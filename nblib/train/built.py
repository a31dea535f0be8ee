"""A set that 01_data_prep built, by position: texts, ids, judgements and the lines of train_rows.jsonl.

Ids become 64-bit keys (nblib.data.texts.id_key), so that a set of millions fits in arrays.

Letters: R lines of train_rows.jsonl, T documents that they name, one line after the other.
"""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nblib.data.formats import HEADER, document_text, parse_document, read_beir
from nblib.data.lines import Checker, DataError, read_lines, text_field, with_gz
from nblib.data.texts import id_key, index_jsonl


class Ids:
    """Positions of ids by their keys."""

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys)
        self.sorted = keys[self.order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Give the position of each key; -1 where it is unknown."""
        place = np.searchsorted(self.sorted, keys).clip(max=len(self.sorted) - 1)
        return np.where(self.sorted[place] == keys, self.order[place], -1)


@dataclass
class BuiltSet:
    """A BEIR folder by position. positives: sorted query * D + document of each relevant pair."""

    documents: Sequence[str]
    queries: Sequence[str]
    doc_ids: Ids
    query_ids: Ids
    positives: np.ndarray

    def relevant(self, queries: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """Tell which pairs are judged relevant: [n] bool."""
        if not len(self.positives):
            return np.zeros(len(docs), dtype=bool)
        pairs = queries * len(self.documents) + docs
        place = np.searchsorted(self.positives, pairs).clip(max=len(self.positives) - 1)
        return self.positives[place] == pairs


def open_folder(folder: Path, lazy: bool) -> BuiltSet:
    """Read a BEIR folder with a train split; `lazy` leaves the texts in their files.

    Raises:
        FileNotFoundError: no train split. DataError, ValueError: a line or an id that cannot be used, or a
            compressed file where `lazy` needs a plain one.
    """
    if lazy:
        doc_keys, documents = index_jsonl(_plain(folder / "corpus.jsonl"), _document)
        query_keys, queries = index_jsonl(_plain(folder / "queries.jsonl"), _query)
        judged = _stream_qrels(with_gz(folder / "qrels" / "train.tsv"))
    else:
        beir = read_beir(folder)
        if "train" not in beir.qrels:
            raise FileNotFoundError(f"{folder} has no qrels/train.tsv: choose a set with a train split")
        documents, queries = [document_text(d) for d in beir.corpus.values()], list(beir.queries.values())
        doc_keys, query_keys = _keys(beir.corpus), _keys(beir.queries)
        pairs = [(q, d) for q, docs in beir.qrels["train"].items() for d, grade in docs.items() if grade > 0]
        judged = _keys(q for q, _ in pairs), _keys(d for _, d in pairs)
    doc_ids, query_ids = Ids(doc_keys), Ids(query_keys)
    q, d = query_ids.find(judged[0]), doc_ids.find(judged[1])
    if min(q.min(initial=0), d.min(initial=0)) < 0:
        raise DataError(f"{folder}/qrels/train.tsv names an id that the set does not have; build it anew")
    return BuiltSet(documents, queries, doc_ids, query_ids, np.sort(q * len(documents) + d))


def _keys(ids) -> np.ndarray:
    return np.fromiter(map(id_key, ids), np.uint64)


def _document(row: dict[str, Any]) -> str:
    return document_text(parse_document(row))


def _query(row: dict[str, Any]) -> str:
    return text_field(row, "text")


def _plain(file: Path) -> Path:
    if not file.exists() and with_gz(file) != file:
        raise ValueError(
            f"{with_gz(file)} cannot be read in any order: gunzip it, or set stream_texts to false"
        )
    return with_gz(file)


def _stream_qrels(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the keys of the relevant pairs line by line."""
    queries, docs = array("Q"), array("Q")
    for number, line in read_lines(Checker(file, strict=True, problems=None)):
        parts = line.split("\t")
        if parts == HEADER:
            continue
        if len(parts) != 3 or not parts[2].isdigit():
            raise DataError(
                f'{file}, line {number}: "{line[:60]}" is not query, document and grade between tabs'
            )
        if int(parts[2]) > 0:
            queries.append(id_key(parts[0]))
            docs.append(id_key(parts[1]))
    return np.array(queries, dtype=np.uint64), np.array(docs, dtype=np.uint64)


def read_kd_ids(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read a file that 01_data_prep wrote: ([R] query keys, [T] document keys, [R] lengths, [T] scores)."""
    queries, docs, lengths, scores = array("Q"), array("Q"), array("q"), array("f")
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                given = row.get("scores") or [np.nan] * len(row["doc_ids"])
                if len(given) != len(row["doc_ids"]):
                    raise ValueError(f"{len(row['doc_ids'])} doc_ids but {len(given)} scores")
                queries.append(id_key(row["query_id"]))
                docs.extend(map(id_key, row["doc_ids"]))
                scores.extend(given)
                lengths.append(len(given))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}: {error}; rebuild it with 01_data_prep") from error
    return tuple(np.array(a) for a in (queries, docs, lengths, scores))
