import gzip
import json
import pickle

import numpy as np
import pytest
import torch

from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.data.formats import BeirSet, write_beir
from nblib.data.lines import DataError
from nblib.train.collator import Collator
from nblib.train.data import TrainingSet, load_training_set
from nblib.train.plan import BatchPlan, PlannedLoader
from nblib.train.rows import Lists, Rows


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer(EMBEDDED)


@pytest.fixture
def folder(tmp_path):
    corpus = {f"d{i}": {"title": "", "text": f"document number {i}"} for i in range(5)}
    queries = {"q0": "first", "q1": "second", "q2": "third"}
    qrels = {"train": {"q0": {"d0": 1}, "q1": {"d1": 1, "d2": 1}, "q2": {"d3": 1}}}
    rows = [
        {"query_id": "q0", "doc_ids": ["d0", "d1", "d4"], "scores": [3.0, 2.0, 1.0]},
        {"query_id": "q1", "doc_ids": ["d1", "d2", "d3"], "scores": [3.0, 2.0, 1.0]},
        {"query_id": "q2", "doc_ids": ["d3"], "scores": [1.0]},
    ]
    write_beir(tmp_path, BeirSet("s", corpus, queries, qrels), rows)
    return tmp_path


def rewrite(folder, change):
    file = folder / "train_rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | change(row)) + "\n" for row in rows))


def test_rows_of_positions(folder):
    data = load_training_set(folder, num_hard_negatives=1)
    text = data.documents
    got = {(data.queries[q], text[p], tuple(text[n] for n in negs)) for q, p, negs in data.rows}
    assert got == {
        ("first", "document number 0", ("document number 1",)),
        ("second", "document number 1", ("document number 3",)),
        ("second", "document number 2", ("document number 3",)),
        ("third", "document number 3", ()),
    }


def test_max_docs_limits_what_the_teacher_reads(folder):
    data = load_training_set(folder, num_hard_negatives=2, max_docs=3)
    assert 0 < len(data.documents) <= 3
    for q, p, negatives in data.rows:
        assert p in data.positives_of[q] and not data.positives_of[q] & set(negatives)


def test_max_docs_by_hand(folder):
    """By the hashes of their ids the queries come as first, third, second."""

    def said(max_docs):
        data = load_training_set(folder, 2, max_docs)
        number = [int(text.split()[-1]) for text in data.documents]
        rows = [(data.queries[q], number[p], [number[n] for n in negatives]) for q, p, negatives in data]
        return (
            number,
            rows,
            {data.queries[q]: {number[d] for d in docs} for q, docs in data.positives_of.items()},
        )

    first, third = ("first", 0, [1, 4]), ("third", 3, [])
    assert said(3) == ([0, 1, 4], [first], {"first": {0}, "second": {1}}), "the second is a companion only"
    assert said(4) == (
        [0, 1, 4, 3],
        [first, third, ("second", 1, [3])],
        {"first": {0}, "third": {3}, "second": {1}},
    )


def test_positives_come_first_whatever_their_place(folder):
    rewrite(folder, lambda row: {"doc_ids": row["doc_ids"][::-1], "scores": row["scores"][::-1]})
    data = load_training_set(folder, 1)
    text = [
        (data.queries[q], data.documents[p][-1], [data.documents[n][-1] for n in negs]) for q, p, negs in data
    ]
    assert text == [("first", "0", ["4"]), ("third", "3", []), ("second", "2", ["3"]), ("second", "1", ["3"])]
    assert [d[-1] for d in data.documents] == ["0", "4", "3", "2", "1"]
    assert data.scores_of.scores([0], [0]).item() == 3.0


def test_missing_rows_name_the_step(tmp_path):
    with pytest.raises(FileNotFoundError, match="01_data_prep"):
        load_training_set(tmp_path, 1)


def test_rows_without_negatives_are_refused(folder):
    rows = [json.loads(line) for line in (folder / "train_rows.jsonl").read_text().splitlines()]
    (folder / "train_rows.jsonl").write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(ValueError, match="no negatives"):
        load_training_set(folder, 2)


def test_torn_rows_name_file_and_line(folder):
    with open(folder / "train_rows.jsonl", "a") as handle:
        handle.write('{"query_id": ')
    with pytest.raises(ValueError, match=r"train_rows.jsonl, line 4"):
        load_training_set(folder, 1)


def test_a_negative_brings_its_own_query(folder, tok):
    data = load_training_set(folder, num_hard_negatives=2)
    row = next(r for r in data.rows if data.queries[r[0]] == "first")
    batch = Collator(data, tok, max_length=16)([row])
    assert batch["input_ids"].shape[0] == 3  # d0, and d1, d4 as negatives
    assert batch["q_bags"].shape == (2, len(tok)), "d1 answers 'second'"
    assert batch["positives"].tolist() == [[True, False, False], [False, True, False]]
    first = batch["q_bags"][0].nonzero().flatten().tolist()
    assert tok.convert_ids_to_tokens(first) == ["first"]


def test_batch_with_teacher_and_lexical(folder, tok):
    class Constant:  # stands in for no model: it checks which pairs are asked for
        def scores(self, q_rows, d_rows):
            return torch.tensor([[100.0 * q + d for d in d_rows] for q in q_rows])

    data = load_training_set(folder, num_hard_negatives=2)
    collate = Collator(data, tok, 16, Constant(), lexical=True)
    batch = collate(data.rows[:2])
    assert batch["teacher"].shape == batch["positives"].shape
    assert batch["lexical"].shape == (batch["input_ids"].shape[0], len(tok))
    assert (batch["lexical"] > 0).sum(dim=1).min() >= 3


def test_flat_rows_are_the_rows():
    rows = [(0, 5, [1, 2]), (3, 4, []), (0, 6, [7])]
    flat = Rows.of(rows)
    assert list(flat) == rows == flat[:] and flat[-1] == rows[2] and flat[1:] == rows[1:]
    assert flat.longest(np.array([0, 9, 2, 0, 3, 4, 5, 8])).tolist() == [9, 3, 8]
    assert flat.longest(np.array([0, 9, 2, 0, 3, 4, 5, 8]), block=1).tolist() == [9, 3, 8]
    lists = Lists.from_mapping({2: [5, 3], 0: [1]}, 4)
    assert dict(lists) == {0: [1], 2: [5, 3]} and len(lists) == 2 and lists.get(1) is None
    with pytest.raises(KeyError):
        lists[4]


def test_a_set_made_by_hand():
    data = TrainingSet(["q"], ["d", "e"], [(0, 0, [1])], {0: {0}}, {0: [0]})
    assert data[0] == (0, 0, [1]) and data.positives_of[0] == {0} and data.queries_of.get(1, []) == []


def test_scores_of_the_rows(folder, tok):
    data = load_training_set(folder, num_hard_negatives=1)
    q = {text: i for i, text in enumerate(data.queries)}
    d = {text[-1]: i for i, text in enumerate(data.documents)}
    assert len(data.scores_of) == 6
    got = data.scores_of.scores([q["third"], q["first"]], [d["1"], d["3"], d["0"]])
    assert torch.equal(got.nan_to_num(-1), torch.tensor([[-1.0, 1.0, -1.0], [2.0, -1.0, 3.0]]))
    batch = Collator(data, tok, 16, data.scores_of)(data.rows[:4])
    assert batch["teacher"].shape == batch["positives"].shape
    assert not batch["teacher"][batch["positives"]].isnan().any() and batch["teacher"].isnan().any()


def test_two_scores_of_one_pair_are_refused(folder):
    file = folder / "train_rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows.append(rows[0] | {"scores": [score + 1 for score in rows[0]["scores"]]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"train_rows.jsonl: pair \(\d, \d\) has scores"):
        load_training_set(folder, 1)


def test_rows_without_scores(folder):
    rewrite(folder, lambda row: {"scores": None})
    assert load_training_set(folder, 1).scores_of is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [1.0]}, "line 1: 3 doc_ids but 1 scores"),
        ({"doc_ids": ["d0", "zz", "d1"]}, "line 1: an id that is not in the set"),
        ({"query_id": "zz"}, "line 1: an id that is not in the set"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_rows_that_do_not_fit_name_file_and_line(folder, change, words, lazy):
    rewrite(folder, lambda row: change if row["query_id"] == "q0" else {})
    with pytest.raises(ValueError, match=f"train_rows.jsonl, {words}"):
        load_training_set(folder, 1, lazy=lazy)


@pytest.fixture
def large(tmp_path):
    """60 documents; 20 queries with two hard negatives each, which answer other queries."""
    corpus = {f"d{i}": {"title": f"t{i}", "text": "word " * (i % 7) + f"document {i}"} for i in range(60)}
    queries = {f"q{i}": f"query {i} t{i} word" for i in range(20)}
    qrels = {"train": {f"q{i}": {f"d{i}": 1, f"d{i + 20}": i % 2, f"d{(i + 1) % 20}": 0} for i in range(20)}}
    rows = [
        {
            "query_id": f"q{i}",
            "doc_ids": [f"d{i}", f"d{(i + 1) % 20}", f"d{i + 40 - 20 * (i % 2)}"],
            "scores": [3, 2, 1],
        }
        for i in range(20)
    ]
    write_beir(tmp_path / "large", BeirSet("s", corpus, queries, qrels), rows)
    return tmp_path / "large"


@pytest.mark.parametrize("max_docs", [0, 25])
def test_a_set_read_from_its_files_is_the_same(large, tok, tmp_path, max_docs):
    held = load_training_set(large, 2, max_docs, difficulty=True)
    lazy = load_training_set(large, 2, max_docs, difficulty=True, lazy=True)
    assert isinstance(held.documents, list) and not isinstance(lazy.documents, list)
    assert list(lazy.documents) == held.documents and list(lazy.queries) == held.queries
    assert list(lazy.rows) == list(held.rows) and dict(lazy.positives_of) == dict(held.positives_of)
    assert lazy.difficulty.tolist() == held.difficulty.tolist() and len(lazy.scores_of) == len(held.scores_of)
    batches = [Collator(held, tok, 16)(held.rows[:8]), Collator(lazy, tok, 16, cache=tmp_path)(lazy.rows[:8])]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_a_packed_file_has_no_places(large):
    (large / "corpus.jsonl.gz").write_bytes(gzip.compress((large / "corpus.jsonl").read_bytes()))
    (large / "corpus.jsonl").unlink()
    assert load_training_set(large, 2)
    with pytest.raises(ValueError, match="gunzip"):
        load_training_set(large, 2, lazy=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [("q0\tzz\t1", "names an id"), ("q0 d1 1", "between tabs"), ("q0\td1\tx", "between tabs")],
)
def test_wrong_judgements_of_a_lazy_set(large, line, words):
    with open(large / "qrels" / "train.tsv", "a") as handle:
        handle.write(line + "\n")
    with pytest.raises(DataError, match=f"train.tsv.*{words}"):
        load_training_set(large, 2, lazy=True)


def test_share_of_hard_negatives(large):
    mined = load_training_set(large, 2)
    half = load_training_set(large, 4, hard_negative_ratio=0.5)
    text = half.documents
    pools = set()
    for (q, p, all_mined), (q2, p2, negatives) in zip(mined.rows, half.rows, strict=True):
        assert half.queries[q2] == mined.queries[q] and text[p2] == mined.documents[p]
        hard = [mined.documents[n] for n in all_mined]  # two, or one where there is a second positive
        assert [text[n] for n in negatives[: len(hard)]] == hard and len(negatives) == len(hard) + 2
        assert len(set(negatives)) == len(negatives) and not half.positives_of[q2] & set(negatives)
        pools.add(tuple(negatives[-2:]))
    assert len(pools) > 15, "other random negatives for each query"
    again = load_training_set(large, 4, hard_negative_ratio=0.5)
    assert list(again.rows) == list(half.rows) and again.documents == half.documents
    other = load_training_set(large, 4, hard_negative_ratio=0.5, negative_seed=1)
    assert [other.documents[n] for n in other.rows[0][2]] != [text[n] for n in half.rows[0][2]]
    with pytest.raises(ValueError, match="hard_negative_ratio is 1.5"):
        load_training_set(large, 2, hard_negative_ratio=1.5)


def test_random_negatives_are_never_judged_relevant(folder):
    data = load_training_set(folder, 9, hard_negative_ratio=0.0)
    for q, _, negatives in data.rows:
        assert set(negatives) == set(range(5)) - data.positives_of[q], "all that five documents have"
    rewrite(folder, lambda row: {"doc_ids": ["d1"], "scores": [1]} if row["query_id"] == "q1" else {})
    data = load_training_set(folder, 9, hard_negative_ratio=0.0)  # its row no longer names d2
    (negatives,) = [negatives for q, _, negatives in data if data.queries[q] == "second"]
    assert sorted(data.documents[n][-1] for n in negatives) == ["0", "3", "4"]


def test_difficulty_of_each_row(tmp_path):
    corpus = {
        "d0": {"title": "", "text": "a b c x"},
        "d1": {"title": "", "text": "a y"},
        "d2": {"title": "z", "text": "z"},
    }
    qrels = {"train": {"q": {"d0": 1, "d1": 1, "d2": 1}}}
    rows = [{"query_id": "q", "doc_ids": ["d0", "d1", "d2"], "scores": [1, 1, 1]}]
    write_beir(tmp_path, BeirSet("s", corpus, {"q": "a b c d"}, qrels), rows)
    data = load_training_set(tmp_path, 0, difficulty=True)  # 3 of 4 words, 1 of 4, none
    assert data.difficulty.tolist() == [0, 1, 2]
    assert load_training_set(tmp_path, 0).difficulty is None


@pytest.mark.parametrize("lazy", [False, True])
def test_several_sets_stay_apart(folder, large, tok, lazy):
    one, two = load_training_set(folder, 1), load_training_set(large, 1, lazy=lazy)
    data = load_training_set({"small": folder, "large": large}, 1, lazy=lazy, difficulty=True)
    assert data.source_names == ["small", "large"]
    assert data.source.tolist() == [0] * len(one) + [1] * len(two)
    assert list(data.documents) == [*one.documents, *two.documents]
    assert data.queries[len(one.queries)] == two.queries[0]

    def said(s, row):
        q, p, negatives = row
        own = {s.documents[d] for d in s.positives_of[q]}
        return s.queries[q], s.documents[p], [s.documents[n] for n in negatives], own

    assert [said(data, row) for row in data] == [said(one, row) for row in one] + [
        said(two, row) for row in two
    ]
    asked = [[data.queries[q] for q in data.queries_of.get(d, [])] for d in range(len(data.documents))]
    assert asked == [
        [s.queries[q] for q in s.queries_of.get(d, [])] for s in (one, two) for d in range(len(s.documents))
    ]
    assert len(data.scores_of) == len(one.scores_of) + len(two.scores_of)
    q, p, _ = data[-1]
    assert data.scores_of.scores([q], [p]).item() == 3.0
    assert len(Collator(data, tok, 16)(data.rows[:2])["positives"]) >= 1


def batches_of(loader):
    return [{name: value.clone() for name, value in batch.items()} for batch in loader]


@pytest.mark.filterwarnings("error:Sparse invariant")
@pytest.mark.parametrize("compact", [False, True])
def test_workers_give_the_same_batches(large, tok, tmp_path, compact):
    data = load_training_set(large, 2, lazy=True)
    options = {"siamese": True, "sparse": compact, "cache": tmp_path / "cache"}
    collate = Collator(data, tok, 16, data.scores_of, lexical=True, **options)
    collate = pickle.loads(pickle.dumps(collate))  # as a worker that is not forked gets it
    plan = BatchPlan(len(data), 4, seed=1).sort_by(collate.row_lengths(data.rows), 2)
    here, there = (
        batches_of(PlannedLoader(data, batch_sampler=plan, collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == len(there) == len(plan) > 4
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys() and len(a) == 8 and b["lexical"].is_sparse is compact
        a, b = ({name: x.to_dense() for name, x in batch.items()} for batch in (a, b))
        assert all(torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)) for name in a)


def test_sparse_matrices_are_the_dense_ones(large, tok):
    data = load_training_set(large, 2)
    dense = Collator(data, tok, 16, lexical=True)(data.rows[:8])
    compact = Collator(data, tok, 16, lexical=True, sparse=True)(data.rows[:8])
    for name in ("q_bags", "lexical"):
        assert compact[name].is_sparse and compact[name].is_coalesced()
        assert torch.equal(compact[name].to_dense(), dense[name]) and dense[name].any()
        again = compact[name].detach().coalesce()
        assert again._nnz() == dense[name].count_nonzero(), "no entry twice"


def test_queries_as_encoder_input(large, tok):
    data = load_training_set(large, 2)
    bags, both = Collator(data, tok, 16)(data.rows[:3]), Collator(data, tok, 16, siamese=True)(data.rows[:3])
    asked = list(dict.fromkeys(q for q, _, _ in data.rows[:3]))
    want = tok([data.queries[q] for q in asked], padding=True, return_tensors="pt")
    assert torch.equal(both["q_input_ids"], want["input_ids"])
    assert torch.equal(both["q_attention_mask"], want["attention_mask"])
    assert len(bags["q_bags"]) > len(both["q_bags"]) == len(both["positives"]) == len(asked)
    assert torch.equal(bags["input_ids"], both["input_ids"])


def test_lengths_of_queries_and_documents_differ(large, tok):
    data = load_training_set(large, 2)
    q, p, _ = row = data.rows[0]
    batch = Collator(data, tok, 6, query_max_length=4, pad_to_multiple_of=8, siamese=True)([row])
    assert batch["input_ids"].shape[1] == 8 and batch["attention_mask"].sum(dim=1).max() == 6
    assert batch["q_input_ids"].shape[1] == 8 and batch["q_attention_mask"].sum() == 4
    words = tok.convert_ids_to_tokens(batch["q_bags"][0].nonzero().flatten().tolist())
    assert sorted(words) == sorted(data.queries[q].split()[:2]), "two words and two special tokens"
    uncut = Collator(data, tok, 6)([row])["q_bags"][0]
    assert uncut.sum() > 2 and Collator(data, tok, 6)([row])["input_ids"].shape[1] == 6
