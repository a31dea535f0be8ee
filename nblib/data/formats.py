"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, plain or .gz, checked line by line."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nblib.data.lines import (
    Checker,
    DataError,
    Problem,
    RowError,
    read_lines,
    read_objects,
    text_field,
    with_gz,
)
from nblib.files import atomic_folder, write_text

HEADER = ["query-id", "corpus-id", "score"]
Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade


@dataclass
class BeirSet:
    """A retrieval set.

    corpus: document id -> {"title", "text"}. queries: query id -> text. qrels: split -> query id -> document
    id -> grade (0 = judged and not relevant).
    """

    name: str
    corpus: dict[str, dict[str, str]]
    queries: dict[str, str]
    qrels: dict[str, Qrels]


def document_text(doc: Mapping[str, str]) -> str:
    """Give the text of a document as every system sees it: title and text."""
    return f"{doc['title']} {doc['text']}".strip()


def read_beir(
    folder: str | Path,
    *,
    strict: bool = True,
    problems: list[Problem] | None = None,
    split: str = "",
    keep_absent: bool = False,
) -> BeirSet:
    """Read and check a BEIR folder; its name becomes the name of the set.

    Args:
        folder: holds corpus.jsonl, queries.jsonl and at least one of qrels/*.tsv; each may end in .gz.
        strict: raise at the first bad row; else drop it.
        problems: takes a Problem for each dropped row, and for each row that only repeats another.
        split: read the judgements of this split only; "" reads all.
        keep_absent: keep judgements of documents that the corpus lacks, see gather_qrels.

    Returns:
        The set. Splits keep their file names; "validation" and "val" become "dev".

    Raises:
        DataError: a bad row (strict), or nothing usable in a file.
        FileNotFoundError: a file is missing.
    """
    folder = Path(folder)
    corpus = read_documents(with_gz(folder / "corpus.jsonl"), strict=strict, problems=problems)
    queries = read_queries(with_gz(folder / "queries.jsonl"), strict=strict, problems=problems)
    files, qrels = split_files(folder), {}
    for name in [split] if split else files:
        check = Checker(files[name], strict, problems)
        qrels[name] = gather_qrels(check, _judgements(check), corpus, queries, keep_absent)
    return BeirSet(folder.resolve().name, corpus, queries, qrels)


def split_files(folder: str | Path) -> dict[str, Path]:
    """Find the judgements of a BEIR folder: split -> file; "validation" and "val" are called "dev".

    Raises:
        FileNotFoundError: there is none.
    """
    files = [
        f for f in sorted((Path(folder) / "qrels").glob("*.tsv*")) if f.name.endswith((".tsv", ".tsv.gz"))
    ]
    if not files:
        raise FileNotFoundError(
            f"{Path(folder) / 'qrels'} holds no .tsv file; add qrels/test.tsv or another split"
        )
    return {split_name(file.name.split(".tsv")[0]): file for file in files}


def split_name(split: str) -> str:
    """Give a split our name: "validation" and "val" are "dev"."""
    return "dev" if split in ("val", "validation") else split


def read_documents(
    path: str | Path, *, strict: bool = True, problems: list[Problem] | None = None
) -> dict[str, dict[str, str]]:
    """Read corpus.jsonl[.gz] into id -> {"title", "text"}; a title may be missing, a text may not.

    Raises:
        DataError: a bad row (strict), or no usable row at all.
    """
    return _read_by_id(Checker(path, strict, problems), parse_document)


def read_queries(
    path: str | Path, *, strict: bool = True, problems: list[Problem] | None = None
) -> dict[str, str]:
    """Read queries.jsonl[.gz] into id -> text. Raises as read_documents."""
    return _read_by_id(Checker(path, strict, problems), lambda row: text_field(row, "text"))


def parse_document(row: dict[str, Any]) -> dict[str, str]:
    """Check one object of corpus.jsonl. Raises RowError that says what is wrong with it."""
    title = text_field(row, "title", may_be_empty=True) if row.get("title") is not None else ""
    text = text_field(row, "text", may_be_empty=bool(title.strip()))
    return {"title": title, "text": text}


def _read_by_id(check: Checker, parse: Callable[[dict], Any]) -> dict[str, Any]:
    return gather_by_id(check, read_objects(check), parse)


def gather_by_id(
    check: Checker, rows: Iterable[tuple[int, dict[str, Any]]], parse: Callable[[dict], Any]
) -> dict[str, Any]:
    """Gather (line number, object) under their unique "_id"; of a repeated one the first stays.

    Raises:
        DataError: a bad row (strict), or no usable row at all.
    """
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        try:
            key = text_field({"_id": str(row["_id"])} if type(row.get("_id")) is int else row, "_id")
            if len(key.split()) != 1 or key != key.strip():
                raise RowError(f'_id "{key}" holds white space, which run files cannot; replace it')
            if key in found:
                raise RowError(f'duplicate _id "{key}", first on line {lines[key]}; make ids unique')
            found[key] = parse(row)
            lines[key] = number
        except RowError as reason:
            check.bad(number, str(reason))
    if not found:
        raise DataError(f"{check.path}: no usable row; expected one JSON object per line with _id and text")
    return found


def gather_qrels(
    check: Checker,
    rows: Iterable[tuple[int, list[str]]],
    corpus: Mapping,
    queries: Mapping,
    keep_absent: bool = False,
) -> Qrels:
    """Gather (line number, [query id, document id, grade]) into judgements.

    Args:
        check: of the file that the rows come from.
        rows: fields as they stand in the file.
        corpus, queries: what an id must be known to.
        keep_absent: a judgement of a document that the corpus lacks stays, and is a Problem of kind "absent":
            BEIR's evaluator counts such documents as relevant and not found, so published figures do.

    Raises:
        DataError: a bad row (strict).
    """
    qrels: Qrels = {}
    lines: dict[tuple[str, str], int] = {}
    for number, fields in rows:
        try:
            query, doc, grade = _judgement(fields, corpus, queries, keep_absent)
        except RowError as reason:
            check.bad(number, str(reason))
            continue
        first = lines.setdefault((query, doc), number)
        if first != number and qrels[query][doc] != grade:
            check.bad(number, f'"{query}" and "{doc}" have another grade on line {first}; keep one of them')
        elif first != number:
            check.duplicate(number, first)
        else:
            qrels.setdefault(query, {})[doc] = grade
            if doc not in corpus:
                check.absent(number, doc)
    return qrels


def _judgements(check: Checker) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line below the header."""
    rows = read_lines(check)
    number, header = next(rows, (1, ""))
    if header.split("\t") != HEADER:
        check.bad(number, f'header is "{header[:60]}"; the first line must be {"<tab>".join(HEADER)}')
    for number, line in rows:
        yield number, line.split("\t")


def _judgement(
    fields: list[str], corpus: Mapping, queries: Mapping, keep_absent: bool
) -> tuple[str, str, int]:
    if len(fields) != 3:
        raise RowError(
            f"{len(fields)} fields between tabs, not 3 ({', '.join(HEADER)}); separate them by one tab"
        )
    query, doc, grade = fields
    if query not in queries:
        raise RowError(f'unknown query id "{query}"; add it to queries.jsonl or leave the row out')
    if doc not in corpus and not keep_absent:
        raise RowError(f'unknown document id "{doc}"; add it to corpus.jsonl or leave the row out')
    if not (grade.isascii() and grade.isdigit()):
        raise RowError(f'grade "{grade}" is not a whole number of 0 or more; use 0 for not relevant')
    return query, doc, int(grade)


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically. Raises ValueError on NaN or infinity."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_beir(
    folder: str | Path, beir_set: BeirSet, train_rows: Iterable[Mapping[str, Any]] | None = None
) -> None:
    """Write a set as a BEIR folder, atomically: the old folder goes only when the new one is whole.

    Args:
        folder: is replaced with all that it holds.
        beir_set: ids and order are kept, so that equal sets give equal bytes.
        train_rows: kd-ids rows for train_rows.jsonl; None writes no such file.
    """
    with atomic_folder(folder) as tmp:
        write_jsonl(tmp / "corpus.jsonl", ({"_id": i, **doc} for i, doc in beir_set.corpus.items()))
        write_jsonl(tmp / "queries.jsonl", ({"_id": i, "text": t} for i, t in beir_set.queries.items()))
        for split, qrels in beir_set.qrels.items():
            rows = [f"{q}\t{d}\t{grade}\n" for q, docs in qrels.items() for d, grade in docs.items()]
            write_text(tmp / "qrels" / f"{split}.tsv", "\t".join(HEADER) + "\n" + "".join(rows))
        if train_rows is not None:
            write_jsonl(tmp / "train_rows.jsonl", train_rows)
