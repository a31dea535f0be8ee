"""Data sets of the Hugging Face hub, or a local folder of parquet files in the same layout.

Only data files are read: no loading script runs, and trust_remote_code is never given.
"""

import re
from collections.abc import Iterator
from typing import Any

from nblib.data.formats import BeirSet, Qrels
from nblib.data.lines import Checker, DataError, Problem, RowError, text_field
from nblib.data.rows import KNOWN, Row, parse_row
from nblib.data.sources import NO_DOWNLOAD, Source, from_rows, with_dev

NUMBERED = re.compile(r"negative_\d+")  # how sentence-transformers names the columns of mined negatives


def load_hub(source: str, name: str, split: str, strict: bool, problems: list[Problem]) -> Source:
    """Read a data set whose columns make one of the forms of training rows, or one in BEIR's layout.

    Columns: query or anchor, with positive(s), negative(s), negative_1.., hard_negatives, or docs and scores.
    BEIR's layout: configurations "corpus" and "queries", and "default" or "qrels" with a split per qrels.

    Args:
        source: "owner/name", "owner/name:config" or a folder.
        name: of the set it becomes.
        split: for rows, the split that is read.
        strict, problems: as in nblib.data.sources.load.

    Raises:
        DataError: not reachable, needs a script, or columns that make no form; the message names the cure.
    """
    path, _, config = source.partition(":")
    configs = [] if config else _ask(source, lambda hub: hub.get_dataset_config_names(path))
    if {"corpus", "queries"} <= set(configs):
        return Source([with_dev(_beir(path, name, configs, strict, problems))], problems)
    table = _ask(source, lambda hub: hub.load_dataset(path, config or None, split=split))
    check = Checker(f"{source} ({split})", strict, problems)
    return from_rows(name, _rows(table, check), check.path, strict=strict, problems=problems)


def _ask(source: str, question):
    """Call question(datasets) and put a failure into words."""
    import datasets

    try:
        return question(datasets)
    except Exception as error:  # the hub's clients raise a dozen unrelated types
        if "script" in str(error).lower():
            cure = "it needs a loading script, which is never run; convert it to parquet"
        else:
            cure = "check the id, split and network, set HF_TOKEN if it is gated, or give a BEIR folder"
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"cannot read data set {source!r}: {reason}. {cure}. {NO_DOWNLOAD}") from error


def _rows(table, check: Checker) -> Iterator[Row]:
    for number, raw in enumerate(table, 1):
        try:
            yield parse_row(as_form(raw), number)
        except RowError as reason:
            check.bad(number, str(reason))


def as_form(raw: dict[str, Any]) -> dict[str, Any]:
    """Rename the columns that data sets of the hub use into those of the five forms."""
    row = {key: value for key, value in raw.items() if key in KNOWN and value is not None}
    numbered = [raw[key] for key in sorted(raw, key=_natural) if NUMBERED.fullmatch(key) and raw[key]]
    if numbered:
        row["negatives"] = numbered
    if isinstance(row.get("negative"), list):
        row["negatives"] = row.pop("negative")
    has_negatives = {"negative", "negatives"} & row.keys()
    if "anchor" in row and has_negatives:
        row["query"] = row.pop("anchor")
    elif row.keys() == {"query", "positive"} and isinstance(row["positive"], str):
        row["anchor"] = row.pop("query")
    elif "query" in row and {"positive", "positives"} & row.keys() and not has_negatives:
        row["negatives"] = []
    return row


def _natural(key: str) -> tuple[int, str]:
    digits = key.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 0, key)


def _beir(path: str, name: str, configs: list[str], strict: bool, problems: list[Problem]) -> BeirSet:
    def read(config: str) -> Iterator[tuple[int, dict[str, Any]]]:
        parts = _ask(path, lambda hub: hub.load_dataset(path, config))
        return enumerate((row for part in parts.values() for row in part), 1)

    corpus, queries = {}, {}
    check = Checker(f"{path} (corpus)", strict, problems)
    for number, row in read("corpus"):
        try:
            key = text_field(row, "_id" if "_id" in row else "id")
            title = row.get("title") or ""
            corpus[key] = {"title": title, "text": text_field(row, "text", may_be_empty=bool(title))}
        except RowError as reason:
            check.bad(number, str(reason))
    check = Checker(f"{path} (queries)", strict, problems)
    for number, row in read("queries"):
        try:
            queries[text_field(row, "_id" if "_id" in row else "id")] = text_field(row, "text")
        except RowError as reason:
            check.bad(number, str(reason))
    qrels_config = next((c for c in ("qrels", "default") if c in configs), None)
    if qrels_config is None:
        raise DataError(f"{path} has corpus and queries but neither qrels nor default: use a BEIR folder")
    parts = _ask(path, lambda hub: hub.load_dataset(path, qrels_config))
    check = Checker(f"{path} ({qrels_config})", strict, problems)
    qrels = {"dev" if s in ("validation", "val") else s: _judged(part, check, corpus, queries)
             for s, part in parts.items()}  # fmt: skip
    return BeirSet(name, corpus, queries, qrels)


def _judged(part, check: Checker, corpus: dict, queries: dict) -> Qrels:
    qrels: Qrels = {}
    for number, row in enumerate(part, 1):
        query, doc, grade = row.get("query-id"), row.get("corpus-id"), row.get("score", 1)
        if query not in queries or doc not in corpus:
            check.bad(number, f'unknown query id "{query}" or document id "{doc}"; leave the row out')
        elif not float(grade).is_integer() or grade < 0:
            check.bad(number, f'grade "{grade}" is not a whole number of 0 or more')
        else:
            qrels.setdefault(query, {})[doc] = int(grade)
    return qrels
