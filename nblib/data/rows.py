"""Training rows in five forms, one JSON object per line, read as a stream.

triplet {query, positive, negative} · multi {query, positive or positives, negatives[]} ·
pair {anchor, positive, hard_negatives[]?} · kd {query, docs[], scores[]} ·
kd-ids {query_id, doc_ids[], scores[]}
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nblib.data.lines import Checker, Problem, RowError, checked_text, number_field, read_objects, text_field

FORMS = {  # form -> (fields that must stand, fields that may)
    "kd-ids": ({"query_id", "doc_ids", "scores"}, set()),
    "kd": ({"query", "docs", "scores"}, set()),
    "pair": ({"anchor", "positive"}, {"hard_negatives"}),
    "triplet": ({"query", "positive", "negative"}, set()),
    "multi": ({"query", "negatives"}, {"positive", "positives"}),
}
KNOWN = set().union(*(must | may for must, may in FORMS.values()))


@dataclass(frozen=True)
class Row:
    """One training row, whichever form it came in.

    Exactly one of query (a text) and query_id is not empty; with a query_id the positives and negatives are
    document ids, else texts. scores, where the row gives them, stand for positives + negatives in this order.
    """

    form: str
    line: int
    positives: list[str]
    negatives: list[str] = field(default_factory=list)
    query: str = ""
    query_id: str = ""
    scores: list[float] | None = None


def read_rows(
    path: str | Path, *, strict: bool = True, problems: list[Problem] | None = None
) -> Iterator[Row]:
    """Read training rows of any form, also mixed in one file, without holding the file in memory.

    Args:
        path: a .jsonl file, plain or .gz, UTF-8.
        strict: raise at the first bad row; else drop it.
        problems: takes a Problem for each dropped row; a row that repeats an earlier one is dropped always.

    Yields:
        Rows in the order of the file. Of a kd or kd-ids row the document with the highest score is the
        positive (the first of equals) and comes first; the others keep their order.

    Raises:
        DataError: a bad row (strict), naming file, line, reason and cure.
    """
    check = Checker(path, strict, problems)
    seen: dict[bytes, int] = {}
    for number, raw in read_objects(check):
        try:
            row = parse_row(raw, number)
        except RowError as reason:
            check.bad(number, str(reason))
            continue
        content = repr((row.query, row.query_id, row.positives, row.negatives, row.scores))
        first = seen.setdefault(hashlib.blake2b(content.encode(), digest_size=16).digest(), number)
        if first == number:
            yield row
        else:
            check.duplicate(number, first)


def parse_row(raw: dict[str, Any], line: int) -> Row:
    """Check one object and bring it into the common form; fields of no form are ignored.

    Raises:
        RowError: it fits no form, or a field cannot be used.
    """
    form = _form_of(raw)
    if form in ("kd", "kd-ids"):
        return _scored_row(raw, line, form)
    anchor = "anchor" if form == "pair" else "query"
    negatives = {"pair": "hard_negatives", "triplet": "negative", "multi": "negatives"}[form]
    row = Row(
        form, line, _positives(raw, form), _texts(raw, negatives, form != "triplet"), text_field(raw, anchor)
    )
    if shared := set(row.positives) & set(row.negatives):
        raise RowError(f'"{min(shared)[:40]}" is both positive and negative; leave it out of one of them')
    return row


def _form_of(raw: dict[str, Any]) -> str:
    """Name the form that the fields of a row make."""
    fields = KNOWN & raw.keys()
    fitting = {form: must for form, (must, may) in FORMS.items() if fields <= must | may}
    if not fitting or {"positive", "positives"} <= fields:
        raise RowError(
            f"mixes forms: {', '.join(sorted(fields))} do not stand in one row; keep the fields of one"
        )
    for form, must in fitting.items():
        if must <= fields:
            return form
    closest = max(fitting, key=lambda form: len(fitting[form] & fields) - len(fitting[form] - fields))
    missing = ", ".join(f'"{name}"' for name in sorted(fitting[closest] - fields))
    forms = "; ".join(f"{form}: {', '.join(sorted(must))}" for form, (must, _) in FORMS.items())
    raise RowError(f"field {missing} is missing for the form {closest}; the forms are {forms}")


def _positives(raw: dict[str, Any], form: str) -> list[str]:
    name = "positives" if "positives" in raw else "positive"
    texts = _texts(raw, name, form == "multi" and isinstance(raw.get(name), list))
    if not texts:
        raise RowError(f'field "{name}" is missing or empty; name at least one relevant text')
    return texts


def _texts(raw: dict[str, Any], name: str, many: bool) -> list[str]:
    """Take one text, or a list of texts, out of a row."""
    if name not in raw:
        return []
    if not many:
        return [text_field(raw, name)]
    if not isinstance(raw[name], list):
        raise RowError(f'field "{name}" is not a list; write ["..."]')
    return [checked_text(value, f"{name}[{i}]") for i, value in enumerate(raw[name])]


def _scored_row(raw: dict[str, Any], line: int, form: str) -> Row:
    who, what = ("query_id", "doc_ids") if form == "kd-ids" else ("query", "docs")
    docs = _texts(raw, what, many=True)
    if not docs:
        raise RowError(f'field "{what}" is empty; name at least one document')
    if len(set(docs)) < len(docs):
        raise RowError(f'field "{what}" names a document twice; keep one of them')
    if not isinstance(raw["scores"], list) or len(raw["scores"]) != len(docs):
        n = len(raw["scores"]) if isinstance(raw["scores"], list) else "no list of"
        raise RowError(f'{len(docs)} in "{what}" but {n} scores; give one score for each document')
    scores = [number_field(value, f"scores[{i}]") for i, value in enumerate(raw["scores"])]
    best = max(range(len(docs)), key=scores.__getitem__)
    order = [best, *(i for i in range(len(docs)) if i != best)]
    docs, scores = [docs[i] for i in order], [scores[i] for i in order]
    return Row(form, line, docs[:1], docs[1:], scores=scores, **{who: text_field(raw, who)})
