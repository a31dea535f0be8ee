"""Retrieval sets of the Hugging Face hub in BEIR's layout, or of a local folder that holds the same files.

Only data files are read: no loading script runs, and trust_remote_code is never given.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nblib.data.formats import BeirSet, gather_by_id, gather_qrels, parse_document, split_name
from nblib.data.lines import NO_DOWNLOAD, Checker, DataError, Problem, text_field

TEXT_COLUMNS = {"_id", "id", "title", "text"}
JUDGEMENT_COLUMNS = ("query-id", "corpus-id", "score")


@dataclass(frozen=True)
class Layout:
    """Where a set in BEIR's layout lies on the hub, or in a local folder of the same layout.

    repo: "owner/name" or a folder. corpus, queries, qrels: configurations. judged: the repository of the
    judgements, "" = the same. splits: our name of a split -> its name there.
    """

    repo: str
    corpus: str = "corpus"
    queries: str = "queries"
    qrels: str = "default"
    judged: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)


def judgements(where: Layout) -> dict[str, Any]:
    """Open the judgements of a set: split -> table. Raises DataError that names the cure."""
    options = {}
    if where.judged:  # tab-separated there; left to itself, the reader takes the id 007 for the number 7
        from datasets import Features, Value

        kinds = dict(zip(JUDGEMENT_COLUMNS, ("string", "string", "float64"), strict=True))
        options["features"] = Features({name: Value(kind) for name, kind in kinds.items()})
    path = where.judged or where.repo
    parts = ask(path, lambda hub: hub.load_dataset(path, where.qrels, **options))
    names = {theirs: ours for ours, theirs in where.splits.items()}
    return {names.get(split, split_name(split)): part for split, part in parts.items()}


def read_hub_set(
    where: Layout,
    name: str,
    qrels: Mapping[str, Any],
    *,
    strict: bool = True,
    problems: list[Problem] | None = None,
    keep_absent: bool = False,
) -> BeirSet:
    """Read corpus and queries of a set of the hub; the tables stay in files, row by row they become texts.

    Args:
        where: its place and configurations.
        name: of the set.
        qrels: split -> table of judgements, of `judgements`.
        strict, problems: as in nblib.data.sources.load.
        keep_absent: as in nblib.data.formats.read_beir.

    Returns:
        The set with these splits. A corpus or queries configuration that itself has one of them gives only
        that one; other splits there belong to other corpora.

    Raises:
        DataError: not reachable, needs a script, a bad row (strict); the message names the cure.
    """
    found = []
    for config, parse in (
        (where.corpus, parse_document),
        (where.queries, lambda row: text_field(row, "text")),
    ):
        check = Checker(f"{where.repo} ({config})", strict, problems)
        found.append(gather_by_id(check, _rows_with_id(where, config, qrels), parse))
    corpus, queries = found
    check = Checker(f"{where.judged or where.repo} ({where.qrels})", strict, problems)
    judged = {
        split: gather_qrels(check, _fields(part), corpus, queries, keep_absent)
        for split, part in qrels.items()
    }
    return BeirSet(name, corpus, queries, judged)


def _rows_with_id(where: Layout, config: str, splits: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a table of texts, its id under "_id"; columns without use are not decoded."""
    parts = ask(where.repo, lambda hub: hub.load_dataset(where.repo, config))
    asked = {where.splits.get(split, split) for split in splits}
    parts = [part for split, part in parts.items() if split_name(split) in asked] or list(parts.values())
    parts = [part.select_columns([c for c in part.column_names if c in TEXT_COLUMNS]) for part in parts]
    for number, row in enumerate((row for part in parts for row in part), 1):
        if "_id" not in row and "id" in row:
            row["_id"] = row.pop("id")
        yield number, row


def _fields(part: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, [query id, document id, grade]) as a qrels file would hold them."""
    for number, row in enumerate(part, 1):
        grade = row.get("score", 1)
        whole = isinstance(grade, float) and grade.is_integer()
        yield (
            number,
            [str(row.get("query-id")), str(row.get("corpus-id")), str(int(grade) if whole else grade)],
        )


def ask(source: str, question: Callable[[Any], Any]) -> Any:
    """Call question(datasets) about a data set. Raises DataError that says what failed and names the cure."""
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
