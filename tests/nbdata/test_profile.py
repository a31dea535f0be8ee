"""The tables about a set, and the difficulty rule by hand."""

import json

import numpy as np
import pytest

from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.data import profile
from nblib.data.difficulty import classify_difficulty, count_difficulty, overlap
from nblib.data.formats import document_text, read_beir, write_beir
from nblib.data.lines import Problem
from nblib.data.negatives import mine_negatives
from nblib.files import ROOT, sha256_file


@pytest.fixture(scope="module")
def english():
    return read_beir(ROOT / "tests" / "data" / "english")


@pytest.mark.parametrize(
    ("query", "positive", "share", "name"),
    [
        ("a b c d", "a b c x", 0.75, "easy"),
        ("a b c d", "a b x", 0.5, "medium"),  # above .5 is easy, .5 is not
        ("a b c d e", "e", 0.2, "hard"),  # likewise .2
        ("a a b", "a", 0.5, "medium"),  # distinct words
        ("Rain", "rain", 0.0, "hard"),  # case counts
        ("", "a", 0.0, "hard"),
        ("서울 날씨", "서울 기온 정보", 0.5, "medium"),
    ],
)
def test_difficulty_by_hand(query, positive, share, name):
    assert overlap(query, positive) == share
    assert classify_difficulty(query, positive) == name


def test_every_class_is_counted():
    assert count_difficulty([("a", "a"), ("b", "b"), ("c", "d")]) == {"easy": 2, "medium": 0, "hard": 1}


def test_token_lengths(english):
    texts = [document_text(doc) for doc in english.corpus.values()]
    tokenizer = load_tokenizer(EMBEDDED)
    lengths = profile.token_lengths(english, tokenizer)
    assert lengths.tolist() == [len(tokenizer(text)["input_ids"]) for text in texts]
    assert profile.token_lengths(english, tokenizer, most=10).tolist() == lengths[::4].tolist()


def test_set_rows(english):
    problems = [Problem("f", 1, "r"), Problem("f", 2, "r", "duplicate"), Problem("f", 1, "r", "bom")]
    rows = profile.set_rows([english], {"english": np.array([10, 20])}, problems)
    by_split = {row["split"]: row for row in rows}
    test = by_split["test"]
    assert (test["n_queries"], test["n_docs"], test["n_judgements"], test["mean_tokens"]) == (7, 40, 8, 15.0)
    assert (test["dropped"], test["duplicates"], test["bom"]) == (1, 1, 1)
    assert test["easy"] + test["medium"] + test["hard"] == 7  # the judgement of grade 0 is no pair


def test_problem_rows_name_no_machine():
    problems = [
        Problem(f"{ROOT}/a/rows.jsonl", 2, "the same row as line 1", "duplicate"),
        Problem("/elsewhere/rows.jsonl", 1, f"see {ROOT}/nblib"),
        Problem("numpy.sort", 0, "twice"),
    ]
    rows = profile.problem_rows(problems)
    assert [(r["file"], r["line"]) for r in rows] == [
        ("rows.jsonl", 1),
        ("numpy.sort", 0),
        ("a/rows.jsonl", 2),
    ]
    assert rows[0]["reason"] == "see nblib" and len(profile.problem_rows(problems, 1)) == 1


def test_examples(english):
    rows = mine_negatives(english, 2, 20, "english", 13)
    shown = profile.example_rows(english, rows, n=10, most_chars=20)
    assert len(shown) == 10
    assert shown[0]["query"] == english.queries[rows[0]["query_id"]]
    assert shown[0]["positive"] == document_text(english.corpus[rows[0]["doc_ids"][0]])[:20]
    assert shown[0]["negative"] == document_text(english.corpus[rows[0]["doc_ids"][1]])[:20]
    assert len(profile.example_rows(english, rows[:3])) == 3


def test_profile_holds_the_hash_of_each_file(english, tmp_path):
    write_beir(tmp_path / "english", english, [])
    written = profile.write_profile(tmp_path, [english], [], {"english": np.array([5, 7])}, 0)
    assert json.loads((tmp_path / "profile.json").read_text()) == written
    found = written["sets"]["english"]
    assert found["splits"] == {"dev": 6, "test": 7, "train": 18}
    assert sorted(found["sha256"]) == [
        "corpus.jsonl",
        "qrels/dev.tsv",
        "qrels/test.tsv",
        "qrels/train.tsv",
        "queries.jsonl",
        "train_rows.jsonl",
    ]
    assert found["sha256"]["corpus.jsonl"] == sha256_file(tmp_path / "english" / "corpus.jsonl")
