"""BEIR folders: what is written is read again, and each kind of bad row is named with file, line and cure."""

import gzip
import json
from pathlib import Path

import pytest

from nblib.data.formats import BeirSet, document_text, read_beir, write_beir
from nblib.data.lines import DataError
from nblib.files import ROOT, sha256_paths

SCIFACT = ROOT.parent / "shared" / "data" / "scifact"
GOOD = {
    "corpus.jsonl": ['{"_id": "d1", "title": "T", "text": "one"}', '{"_id": "d2", "text": "두 번째"}'],
    "queries.jsonl": ['{"_id": "q1", "text": "first"}', '{"_id": "q2", "text": "second"}'],
    "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q2\td2\t0"],
}


def make(folder: Path, **changed: list[str] | bytes) -> Path:
    """Write GOOD with some files changed; corpus, queries or qrels name the file."""
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    files = GOOD | {names[key]: value for key, value in changed.items()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode() + b"\n")
    return folder


def test_good_folder(tmp_path):
    beir = read_beir(make(tmp_path / "tiny"))
    assert beir.name == "tiny"
    assert beir.corpus == {"d1": {"title": "T", "text": "one"}, "d2": {"title": "", "text": "두 번째"}}
    assert beir.qrels == {"test": {"q1": {"d1": 1}, "q2": {"d2": 0}}}
    assert [document_text(doc) for doc in beir.corpus.values()] == ["T one", "두 번째"]


def test_gz_equals_plain(tmp_path):
    plain = read_beir(make(tmp_path / "set"))
    for name in GOOD:
        path = tmp_path / "set" / name
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_beir(tmp_path / "set") == plain


def test_write_then_read(tmp_path):
    beir = read_beir(make(tmp_path / "set"))
    write_beir(tmp_path / "copy" / "set", beir, [{"query_id": "q1", "doc_ids": ["d1"], "scores": [1.5]}])
    assert read_beir(tmp_path / "copy" / "set") == beir
    rows = (tmp_path / "copy" / "set" / "train_rows.jsonl").read_text()
    assert json.loads(rows) == {"query_id": "q1", "doc_ids": ["d1"], "scores": [1.5]}
    before = sha256_paths([tmp_path / "copy"])
    write_beir(tmp_path / "copy" / "set", beir)  # a second write replaces the folder: no stale rows
    assert sha256_paths([tmp_path / "copy"]) != before
    assert not (tmp_path / "copy" / "set" / "train_rows.jsonl").exists()


D2 = GOOD["corpus.jsonl"][1]
HEAD = GOOD["qrels/test.tsv"][0]
BAD = {
    "broken JSON": ("corpus", ['{"_id": "d1", "text": "one"', D2], 1, r"broken JSON.*one whole JSON object"),
    "not an object": ("corpus", [D2, '["d1"]'], 2, "a JSON list, not an object"),
    "missing text": ("corpus", [D2, '{"_id": "d1"}'], 2, r'"text" is missing \(found: _id\); add it'),
    "missing id": ("queries", ['{"text": "first"}'], 1, '"_id" is missing'),
    "empty text": ("corpus", [D2, '{"_id": "d1", "text": " "}'], 2, '"text" is empty; give it a text'),
    "text is a number": ("queries", ['{"_id": "q1", "text": 3}'], 1, "is 3, not a text"),
    "half surrogate": ("queries", ['{"_id": "q1", "text": "a\\ud800"}'], 1, "half a surrogate pair"),
    "white space in id": ("corpus", ['{"_id": "d 1", "text": "x"}', D2], 1, "holds white space"),
    "duplicate id": ("corpus", [D2, D2], 2, 'duplicate _id "d2", first on line 1; make ids unique'),
    "not UTF-8": ("queries", '{"_id": "q1", "text": "서울"}\n'.encode("cp949"), 1, "not UTF-8; save.*iconv"),
    "UTF-16": ("queries", '{"_id": "q1", "text": "a"}\n'.encode("utf-16"), 1, "UTF-16"),
    "BOM": ("corpus", b"\xef\xbb\xbf" + "\n".join(GOOD["corpus.jsonl"]).encode(), 1, r"\(BOM\); save it"),
    "unknown query": ("qrels", [HEAD, "q1\td1\t1", "q9\td1\t1"], 3, 'unknown query id "q9"; add it'),
    "unknown document": ("qrels", [HEAD, "q1\td9\t1"], 2, 'unknown document id "d9"; add it'),
    "negative grade": ("qrels", [HEAD, "q1\td1\t-1"], 2, 'grade "-1" is not a whole number of 0 or more'),
    "fraction as grade": ("qrels", [HEAD, "q1\td1\t0.5"], 2, 'grade "0.5" is not a whole number'),
    "two grades": ("qrels", [HEAD, "q1\td1\t1", "q1\td1\t2"], 3, "another grade on line 2"),
    "spaces for tabs": ("qrels", [HEAD, "q1 d1 1"], 2, "1 fields between tabs, not 3"),
    "wrong header": ("qrels", ["qid\tdid\tgrade", "q1\td1\t1"], 1, "the first line must be query-id<tab>"),
}


@pytest.mark.parametrize(("which", "content", "line", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_row(tmp_path, which, content, line, reason):
    folder = make(tmp_path, **{which: content})
    with pytest.raises(DataError, match=rf"{which}|test.tsv") as error:
        read_beir(folder)
    assert f"line {line}: " in str(error.value)
    error.match(reason)

    problems = []
    try:
        read_beir(folder, strict=False, problems=problems)
    except DataError as nothing_left:  # the bad row was the only one of its file
        assert "no usable row" in str(nothing_left)
    assert problems[0].line == line and problems[0].kind == ("bom" if "BOM" in reason else "bad")


def test_not_strict_keeps_the_rest(tmp_path):
    rows = GOOD["corpus.jsonl"] + ["{broken", '{"_id": "d3", "text": ""}']
    problems = []
    beir = read_beir(make(tmp_path, corpus=rows), strict=False, problems=problems)
    assert list(beir.corpus) == ["d1", "d2"]
    assert [p.line for p in problems] == [3, 4]
    assert str(problems[0]).startswith(f"{tmp_path / 'corpus.jsonl'}, line 3: broken JSON")


def test_bom_is_stripped_and_counted(tmp_path):
    content = b"\xef\xbb\xbf" + "\n".join(GOOD["corpus.jsonl"]).encode()
    problems = []
    beir = read_beir(make(tmp_path, corpus=content), strict=False, problems=problems)
    assert list(beir.corpus) == ["d1", "d2"] and [p.kind for p in problems] == ["bom"]


def test_repeated_judgement_is_dropped_and_counted(tmp_path):
    problems = []
    beir = read_beir(make(tmp_path, qrels=[HEAD, "q1\td1\t1", "q1\td1\t1"]), problems=problems)
    assert beir.qrels["test"] == {"q1": {"d1": 1}}
    assert [(p.kind, p.line, p.reason) for p in problems] == [("duplicate", 3, "the same row as line 2")]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus.jsonl is missing, and so is corpus.jsonl.gz"):
        read_beir(tmp_path)
    (make(tmp_path) / "qrels/test.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="add qrels/test.tsv"):
        read_beir(tmp_path)


def test_cut_off_gz_is_named(tmp_path):
    make(tmp_path)
    whole = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"corpus.jsonl.gz, after line \d: not a whole .gz file"):
        read_beir(tmp_path, strict=False)


@pytest.mark.parametrize("name", ["english", "korean"])
def test_hand_written_sets(name):
    beir = read_beir(ROOT / "tests" / "data" / name)
    assert len(beir.corpus) == 40 and {s: len(q) for s, q in beir.qrels.items()} == {
        "train": 18,
        "dev": 6,
        "test": 7,
    }


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="../shared/data/scifact is not on this machine")
def test_real_set():
    beir = read_beir(SCIFACT)
    assert (len(beir.corpus), len(beir.qrels["train"]), len(beir.qrels["test"])) == (5183, 809, 300)
    assert isinstance(beir, BeirSet) and sum(map(len, beir.qrels["test"].values())) == 339
