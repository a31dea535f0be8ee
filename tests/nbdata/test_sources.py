"""Sources: BEIR folders with and without splits, rows of every form, parquet folders, what is missing."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from nblib.data.formats import BeirSet, read_beir, write_beir
from nblib.data.hub import as_form
from nblib.data.lines import DataError
from nblib.data.sources import (
    bucket,
    load,
    load_all,
    sample_documents,
    sample_queries,
    text_id,
    without_shared_queries,
)
from nblib.files import ROOT

ENGLISH = ROOT / "tests" / "data" / "english"


def write_rows(path: Path, rows: list[dict]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def pairs(n: int) -> list[dict]:
    return [{"anchor": f"query {i}", "positive": f"document {i}"} for i in range(n)]


def test_beir_folder_relative_to_the_root():
    data = load("tests/data/english", "mine")
    (beir,) = data.sets
    assert beir.name == "mine" and beir.qrels == read_beir(ENGLISH).qrels and not data.problems


def test_train_without_dev_gives_a_tenth(tmp_path):
    beir = load(str(write_rows(tmp_path / "rows.jsonl", pairs(400))), "x").sets[0]
    whole = {q: docs for judged in beir.qrels.values() for q, docs in judged.items()}
    beir.qrels = {"train": whole}
    write_beir(tmp_path / "set", beir)
    qrels = load(str(tmp_path / "set"), "x").sets[0].qrels
    assert list(qrels) == ["train", "dev"] and 20 <= len(qrels["dev"]) <= 60
    assert qrels["train"] | qrels["dev"] == whole and not qrels["train"].keys() & qrels["dev"].keys()


def test_without_train_it_is_for_evaluation(tmp_path):
    beir = read_beir(ENGLISH)
    del beir.qrels["train"], beir.qrels["dev"]
    write_beir(tmp_path / "set", beir)
    assert list(load(str(tmp_path / "set"), "x").sets[0].qrels) == ["test"]


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_rows_become_a_set(tmp_path, end):
    data = load(str(write_rows(tmp_path / f"rows{end}", pairs(300))), "mine")
    (beir,) = data.sets
    sizes = {split: len(judged) for split, judged in beir.qrels.items()}
    assert sum(sizes.values()) == 300 == len(beir.corpus) and 210 <= sizes["train"] <= 270
    assert beir.qrels["train"].keys().isdisjoint(beir.qrels["test"])
    query_id, judged = next(iter(beir.qrels["test"].items()))
    text = beir.queries[query_id]
    assert query_id == text_id(text) and bucket(text) == 0
    assert [beir.corpus[d]["text"] for d in judged] == [text.replace("query", "document")]


def test_bucket_ignores_case_and_spacing():
    assert bucket("A  Query ") == bucket("a query")


def test_rows_of_one_query_are_joined(tmp_path):
    rows = [
        {"query": "q", "positive": "a", "negative": "b"},
        {"query": "q", "positive": "b", "negative": "c"},
        {"query": "s", "docs": ["a", "c"], "scores": [1, 4]},
    ]
    data = load(str(write_rows(tmp_path / "rows.jsonl", rows)), "x")
    a, b, c = map(text_id, "abc")
    judged = {q: docs for split in data.sets[0].qrels.values() for q, docs in split.items()}
    assert judged == {text_id("q"): {a: 1, b: 1}, text_id("s"): {c: 1}}
    # b is a positive of q in the second row, so it is no negative; kd scores are kept
    assert data.given == {"x": {text_id("q"): {c: None}, text_id("s"): {c: 4.0, a: 1.0}}}
    assert len(data.sets[0].corpus) == 3


def test_kd_ids_rows_need_their_corpus(tmp_path):
    row = {"query_id": "q01", "doc_ids": ["cook-eggs", "cook-bread-crust"], "scores": [1, 2]}
    file = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"line 1: a kd-ids row needs its corpus beside it: .*corpus.jsonl"):
        load(str(file), "x")
    beir = read_beir(ENGLISH)
    write_beir(tmp_path / "set", beir)
    file = write_rows(tmp_path / "set" / "rows.jsonl", [row])
    data = load(str(file), "x")
    assert data.given == {"x": {"q01": {"cook-bread-crust": 2.0, "cook-eggs": 1.0}}}
    assert data.sets[0].corpus == beir.corpus
    write_rows(file, [row, row | {"doc_ids": ["cook-eggs", "none"]}, row | {"query_id": "none"}])
    with pytest.raises(DataError, match=r'line 2: unknown document id "none"'):
        load(str(file), "x")
    assert [p.line for p in load(str(file), "x", strict=False).problems] == [2, 3]


def test_nothing_usable(tmp_path):
    with pytest.raises(DataError, match="no usable row"):
        load(str(write_rows(tmp_path / "rows.jsonl", [{"a": 1}])), "x", strict=False)


@pytest.mark.parametrize("source", ["./none/here", "none.jsonl", "data/none.jsonl.gz", "/none/here"])
def test_missing_path_names_the_cure(source):
    with pytest.raises(DataError, match="no such file or folder.*--profile quick"):
        load(source, "x")


def test_hub_id_offline_names_the_cure(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot read data set 'nobody/nothing'.*--profile quick"):
        load("nobody/nothing", "x")


def test_parquet_folder_of_triplets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    table = pd.DataFrame(pairs(40)).assign(negative_1="n one", negative_2="n two")
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    data = load(str(folder), "parquet")
    assert sum(map(len, data.sets[0].qrels.values())) == 40 and len(data.sets[0].corpus) == 42
    assert all(
        docs == {text_id("n one"): None, text_id("n two"): None} for docs in data.given["parquet"].values()
    )


def test_parquet_folder_in_beir_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    beir, folder = read_beir(ENGLISH), tmp_path / "hub"
    corpus = pd.DataFrame([{"_id": i, **doc} for i, doc in beir.corpus.items()])
    queries = pd.DataFrame([{"_id": i, "text": text} for i, text in beir.queries.items()])
    judged = [
        {"query-id": q, "corpus-id": d, "score": grade}
        for q, docs in beir.qrels["test"].items()
        for d, grade in docs.items()
    ]
    head = ["---", "configs:"]
    for name, table in (("corpus", corpus), ("queries", queries), ("default", pd.DataFrame(judged))):
        (folder / name).mkdir(parents=True)
        table.to_parquet(folder / name / "part.parquet")
        split = "test" if name == "default" else name
        head += [f"- config_name: {name}", "  data_files:", f"  - split: {split}"]
        head += [f"    path: {name}/*.parquet"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]))
    (read,) = load(str(folder), "english").sets
    assert (read.corpus, read.queries) == (beir.corpus, beir.queries)
    assert read.qrels == {"test": beir.qrels["test"]}


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ({"query": "q", "positive": "p", "id": 3}, {"anchor": "q", "positive": "p"}),
        (
            {"anchor": "q", "positive": "p", "negative": "n"},
            {"query": "q", "positive": "p", "negative": "n"},
        ),
        (
            {"anchor": "q", "positive": "p", "negative_10": "b", "negative_2": "a"},
            {"query": "q", "positive": "p", "negatives": ["a", "b"]},
        ),
        (
            {"query": "q", "positive": ["p"], "negative": ["n"]},
            {"query": "q", "positive": ["p"], "negatives": ["n"]},
        ),
        (
            {"query": "q", "positive": ["p"], "negative": None},
            {"query": "q", "positive": ["p"], "negatives": []},
        ),
    ],
)
def test_columns_of_the_hub(columns, form):
    assert as_form(columns) == form


def test_sample_keeps_the_corpus_and_is_nested():
    beir = read_beir(ENGLISH)
    five, ten = (sample_queries(beir, {"train": n, "dev": 0, "test": 3}, 13) for n in (5, 10))
    assert five.corpus == beir.corpus
    assert {s: len(q) for s, q in five.qrels.items()} == {"train": 5, "dev": 6, "test": 3}
    assert five.qrels["train"].items() <= ten.qrels["train"].items()
    assert len(five.queries) == 14 and len(beir.queries) == 31
    assert sample_queries(beir, {"train": 5}, 13).qrels["train"] == five.qrels["train"]
    assert sample_queries(beir, {"train": 5}, 14).qrels["train"] != five.qrels["train"]


def test_sampled_corpus_keeps_what_is_judged():
    beir = read_beir(ENGLISH)
    beir.qrels = {"test": beir.qrels["test"]}
    judged = {d for docs in beir.qrels["test"].values() for d in docs}
    small, large = (sample_documents(beir, n, 13) for n in (12, 20))
    assert len(small.corpus) == 12 and len(large.corpus) == 20
    assert judged <= small.corpus.keys() <= large.corpus.keys()
    assert list(large.corpus) == [d for d in beir.corpus if d in large.corpus]
    assert sample_documents(beir, 1, 13).corpus.keys() == judged
    assert sample_documents(beir, 0, 13).corpus == beir.corpus
    assert sample_documents(read_beir(ENGLISH), 1, 13).corpus == beir.corpus, "a set that trains stays whole"


def test_a_query_in_two_splits_stays_in_the_measured_one():
    docs = {"d": {"title": "", "text": "text"}}
    queries = {"a": "same", "b": "same", "c": "other", "e": "alone"}
    judged = {"d": 1}
    qrels = {"train": {"a": judged, "c": judged}, "dev": {"e": judged}, "test": {"b": judged}}
    problems = []
    (found,) = without_shared_queries([BeirSet("s", docs, queries, qrels)], problems)
    assert found.qrels == {"train": {"c": judged}, "dev": {"e": judged}, "test": {"b": judged}}
    assert [(p.kind, "query a" in p.file) for p in problems] == [("duplicate", True)]
    assert list(qrels["train"]) == ["a", "c"], "the input is not changed"


def test_several_sources_become_sets_of_their_own(tmp_path):
    write_beir(tmp_path / "sets" / "second", read_beir(ENGLISH))
    rows = [{"query": "q", "positive": "a", "negative": "b"}]
    write_rows(tmp_path / "third.rows.jsonl", rows)
    found = load_all(
        str(ENGLISH), "first", ["second", f"{tmp_path}/third.rows.jsonl"], str(tmp_path / "sets")
    )
    assert [s.name for s in found.sets] == ["first", "second", "third"]
    assert found.sets[0].corpus == found.sets[1].corpus
    assert found.given == {"third": {text_id("q"): {text_id("b"): None}}}
    with pytest.raises(DataError, match="two sources make a set called second"):
        load_all(str(ENGLISH), "second", ["second"], str(tmp_path / "sets"))


def test_what_lies_in_sets_dir_comes_first(tmp_path):
    (tmp_path / "sets").mkdir()
    write_rows(tmp_path / "sets" / "rows.jsonl", [{"query": "q", "positive": "a", "negative": "b"}])
    assert len(load_all("rows.jsonl", "x", sets_dir=str(tmp_path / "sets")).sets[0].corpus) == 2
    with pytest.raises(DataError, match="no such file or folder"):
        load_all("rows.jsonl", "x")
