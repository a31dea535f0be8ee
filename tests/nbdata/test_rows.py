"""Training rows: the five forms meet in one Row; bad rows are named with file, line, reason and cure."""

import gzip
import json
from pathlib import Path

import pytest

from nblib.data.lines import DataError
from nblib.data.rows import Row, read_rows

FORMS = {
    "triplet": (
        {"query": "질문", "positive": "p", "negative": "n"},
        Row("triplet", 1, ["p"], ["n"], query="질문"),
    ),
    "multi": (
        {"query": "q", "positive": "p", "negatives": ["n1", "n2"]},
        Row("multi", 1, ["p"], ["n1", "n2"], query="q"),
    ),
    "multi, several positives": (
        {"query": "q", "positives": ["p1", "p2"], "negatives": []},
        Row("multi", 1, ["p1", "p2"], [], query="q"),
    ),
    "pair": ({"anchor": "q", "positive": "p"}, Row("pair", 1, ["p"], [], query="q")),
    "pair, with negatives": (
        {"anchor": "q", "positive": "p", "hard_negatives": ["n"]},
        Row("pair", 1, ["p"], ["n"], query="q"),
    ),
    "kd": (
        {"query": "q", "docs": ["a", "b", "c"], "scores": [1, 3.5, -2]},
        Row("kd", 1, ["b"], ["a", "c"], query="q", scores=[3.5, 1.0, -2.0]),
    ),
    "kd-ids": (
        {"query_id": "q1", "doc_ids": ["d1", "d2"], "scores": [2, 2]},
        Row("kd-ids", 1, ["d1"], ["d2"], query_id="q1", scores=[2.0, 2.0]),
    ),
}


def write(path: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("raw", "expected"), FORMS.values(), ids=FORMS.keys())
def test_forms(tmp_path, raw, expected, end):
    assert list(read_rows(write(tmp_path / f"rows.jsonl{end}", raw))) == [expected]


def test_forms_may_be_mixed_in_one_file(tmp_path):
    file = write(tmp_path / "rows.jsonl", *(raw for raw, _ in FORMS.values()))
    assert [row.form for row in read_rows(file)] == [name.split(",")[0] for name in FORMS]


KD = {"query": "q", "docs": ["a", "b"], "scores": [1, 2]}
BAD = {
    "broken JSON": ('{"query": "q"', "broken JSON"),
    "missing negative": ({"query": "q", "positive": "p"}, 'field "negative" is missing for the form triplet'),
    "missing positive": ({"query": "q", "negatives": ["n"]}, '"positive" is missing or empty'),
    "missing query": ({"docs": ["a"], "scores": [1]}, 'field "query" is missing for the form kd'),
    "no known field": ({"text": "a"}, "is missing for the form .*; the forms are"),
    "empty query": ({"query": "", "positive": "p", "negative": "n"}, '"query" is empty; give it a text'),
    "empty negative": (
        {"query": "q", "positive": "p", "negatives": ["n", " "]},
        r'"negatives\[1\]" is empty',
    ),
    "number as text": ({"query": "q", "positive": 3, "negative": "n"}, '"positive" is 3, not a text'),
    "text for list": ({"query": "q", "positive": "p", "negatives": "n"}, '"negatives" is not a list'),
    "no documents": ({"query": "q", "docs": [], "scores": []}, '"docs" is empty'),
    "lengths differ": (KD | {"scores": [1]}, '2 in "docs" but 1 scores; give one score for each'),
    "NaN": ('{"query": "q", "docs": ["a", "b"], "scores": [1, NaN]}', r'"scores\[1\]" holds nan.*finite'),
    "infinite": ('{"query": "q", "docs": ["a"], "scores": [Infinity]}', r'"scores\[0\]" holds inf'),
    "text as score": (KD | {"scores": [1, "2"]}, r'"scores\[1\]" holds "2", not a number'),
    "truth value as score": (KD | {"scores": [1, True]}, "not a number"),
    "document twice": (KD | {"docs": ["a", "a"]}, "names a document twice"),
    "mixed forms": (KD | {"positive": "p"}, "mixes forms: docs, positive, query, scores"),
    "text and id": (KD | {"query_id": "q1"}, "mixes forms"),
    "both positives": ({"query": "q", "positive": "p", "positives": ["p"], "negatives": []}, "mixes forms"),
    "positive is negative": ({"query": "q", "positive": "p", "negative": "p"}, "both positive and negative"),
}


@pytest.mark.parametrize(("raw", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_row(tmp_path, raw, reason):
    good = FORMS["pair"][0]
    file = write(tmp_path / "rows.jsonl", good, raw, FORMS["triplet"][0])
    with pytest.raises(DataError, match=reason) as error:
        list(read_rows(file))
    assert str(error.value).startswith(f"{file}, line 2: ")

    problems = []
    kept = list(read_rows(file, strict=False, problems=problems))
    assert [row.line for row in kept] == [1, 3]
    assert [(p.line, p.kind) for p in problems] == [(2, "bad")]


def test_encoding(tmp_path):
    file = tmp_path / "rows.jsonl"
    good = json.dumps(FORMS["pair"][0]).encode()
    file.write_bytes(good + b"\n" + '{"anchor": "서울", "positive": "p"}'.encode("cp949") + b"\n")
    with pytest.raises(DataError, match=r"line 2: wrong encoding: byte 0xbc at position 13"):
        list(read_rows(file))
    file.write_bytes(b"\xef\xbb\xbf" + good)
    with pytest.raises(DataError, match=r"line 1: .*BOM"):
        list(read_rows(file))
    problems = []
    assert len(list(read_rows(file, strict=False, problems=problems))) == 1
    assert [p.kind for p in problems] == ["bom"]


def test_duplicates_are_dropped_and_counted(tmp_path):
    pair, same = {"anchor": "q", "positive": "p"}, {"positive": "p", "anchor": "q", "source": "elsewhere"}
    problems = []
    file = write(tmp_path / "rows.jsonl", pair, "", same, pair | {"positive": "other"})
    assert [row.line for row in read_rows(file, problems=problems)] == [1, 4]
    assert [(p.kind, p.line, p.reason) for p in problems] == [("duplicate", 3, "the same row as line 1")]


def test_reading_is_a_stream(tmp_path):
    """The first row comes out before the broken second one is looked at."""
    rows = read_rows(write(tmp_path / "rows.jsonl", FORMS["pair"][0], "{broken"))
    assert next(rows).positives == ["p"]
    with pytest.raises(DataError, match="line 2"):
        next(rows)
