"""Training data of the Hugging Face hub, or of a local folder of parquet files in the same layout.

Only data files are read: no loading script runs, and trust_remote_code is never given.
"""

import re
from collections.abc import Iterator
from typing import Any

from nblib.data.hub_sets import Layout, ask, judgements, read_hub_set
from nblib.data.lines import Checker, DataError, Problem, RowError
from nblib.data.rows import KNOWN, Row, parse_row
from nblib.data.sources import Source, from_rows, with_dev

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
    configs = [] if config else ask(source, lambda hub: hub.get_dataset_config_names(path))
    if {"corpus", "queries"} <= set(configs):
        qrels = next((c for c in ("qrels", "default") if c in configs), None)
        if qrels is None:
            raise DataError(f"{path} has corpus and queries but neither qrels nor default: use a BEIR folder")
        where = Layout(path, qrels=qrels)
        beir = read_hub_set(where, name, judgements(where), strict=strict, problems=problems)
        return Source([with_dev(beir)], problems)
    table = ask(source, lambda hub: hub.load_dataset(path, config or None, split=split))
    check = Checker(f"{source} ({split})", strict, problems)
    return from_rows(name, _rows(table, check), check.path, strict=strict, problems=problems)


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
