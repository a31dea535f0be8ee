import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from nblib.backbones import load_tokenizer
from nblib.data.lines import DataError, text_field
from nblib.data.texts import JoinedTexts, index_jsonl, spans
from nblib.model.padding import pad
from nblib.train.tokens import TokenStore


@pytest.fixture(scope="module")
def tok(tiny_backbone):
    return load_tokenizer(str(tiny_backbone))


@pytest.fixture(scope="module")
def texts(english_texts):
    return english_texts[:11]


def test_spans_by_hand():
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spans(np.array([], int), np.array([], int)).tolist() == []


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("max_length", [0, 7])
def test_ids_are_the_tokenizers_own(tok, texts, tmp_path, cached, max_length):
    store = TokenStore.build(texts, tok, max_length, tmp_path if cached else None, batch_size=4)
    cut = {"truncation": True, "max_length": max_length} if max_length else {}
    want = tok(texts, **cut)["input_ids"]
    assert [ids.tolist() for ids in store] == want and len(store) == 11
    assert store.lengths.tolist() == [len(ids) for ids in want]
    assert store[3].dtype == np.int32 and np.shares_memory(store[3], store.ids)
    assert isinstance(store.ids, np.memmap) is cached


def test_the_tokenizer_stays_as_it_was(tok, texts):
    core = tok.backend_tokenizer
    for before in (None, 5):
        core.no_truncation() if before is None else core.enable_truncation(before)
        was = core.truncation
        TokenStore.build(texts, tok, 7)
        assert core.truncation == was
    core.no_truncation()


def test_padding(tok, texts):
    store = TokenStore.build(texts, tok, 30)
    rows = [4, 0, 4]
    want = pad([store[i].tolist() for i in rows], tok.pad_token_id)
    got = store.pad(rows, tok.pad_token_id)
    assert all(torch.equal(a, b) and a.dtype == torch.int64 for a, b in zip(got, want, strict=True))
    store = TokenStore(np.arange(1, 12, dtype=np.int32), np.array([0, 3, 8, 11]))  # of 3, 5 and 3 tokens
    ids, mask = store.pad(np.array([0, 2]), 99, pad_to_multiple_of=4)
    assert ids.tolist() == [[1, 2, 3, 99], [9, 10, 11, 99]] and mask.tolist() == [[1, 1, 1, 0]] * 2
    assert store.pad([1, 0], 0, pad_to_multiple_of=4)[0].shape == (2, 8)
    assert store.pad([1, 0], 0, pad_to_multiple_of=5)[0].shape == (2, 5)


def test_a_cache_serves_the_same_question_only(tok, texts, tmp_path, tiny_backbone):
    def build(texts=texts, tok=tok, max_length=9):
        store = TokenStore.build(texts, tok, max_length, tmp_path)
        return store.files[0], store.files[0].stat().st_mtime_ns

    first = build()
    assert build() == build(list(texts)) == build(tok=load_tokenizer(str(tiny_backbone))) == first
    other = load_tokenizer(str(tiny_backbone))
    other.add_tokens(["zzz"])
    names = {first[0], build(texts[::-1])[0], build(max_length=8)[0], build(tok=other)[0]}
    assert len(names) == 4
    assert not list(tmp_path.glob(".*")), "no file is left over"


def test_a_torn_build_leaves_nothing(tok, texts, tmp_path):
    class Torn(list):
        identity = "torn"

        def __iter__(self):
            yield from self[:5]
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        TokenStore.build(Torn(texts), tok, 9, tmp_path, batch_size=2)
    assert not list(tmp_path.iterdir())


def test_a_text_without_tokens_is_named(tok):
    bare = load_tokenizer(tok.name_or_path)
    bare.backend_tokenizer.post_processor = None  # no special tokens
    with pytest.raises(ValueError, match="text 2 has no token"):
        TokenStore.build(["one", "two", ""], bare, batch_size=2)
    with pytest.raises(ValueError, match="no text"):
        TokenStore.build([], tok)


def test_a_worker_gets_the_place_of_the_files(tok, texts, tmp_path):
    stored, held = TokenStore.build(texts, tok, 9, tmp_path), TokenStore.build(texts, tok, 9)
    raw = pickle.dumps(stored)
    assert len(raw) < 1000 and b"tokens-" in raw
    for store in (pickle.loads(raw), pickle.loads(pickle.dumps(held))):
        assert [ids.tolist() for ids in store] == [ids.tolist() for ids in held]


class Many:
    """More texts than are ever held at once."""

    identity = "many"

    def __iter__(self):
        for i in range(30_000):
            yield f"{i} a dog and a cat and a dog and a rain of dogs and cats"


def test_building_a_file_does_not_hold_it(tok, tmp_path):
    tracemalloc.start()
    store = TokenStore.build(Many(), tok, 0, tmp_path, batch_size=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.ids.nbytes > 2_000_000 > 4 * peak
    assert (
        store[29_999].tolist()
        == tok("29999 a dog and a cat and a dog and a rain of dogs and cats")["input_ids"]
    )


def plain_text(row):
    return text_field(row, "text")


LINES = [
    '{"_id": "a", "text": "one"}',
    "",
    '{"_id": 7, "text": "두 번째 \\u00e9"}',
    '{"text": "three", "_id": "c"}',
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    return tmp_path / "t.jsonl"


def test_texts_of_a_file_in_any_order(file):
    keys, texts = index_jsonl(file, plain_text)
    assert len(set(keys.tolist())) == len(texts) == 3
    assert (texts[2], texts[1], texts[-3], texts[1:]) == ("three", "두 번째 é", "one", ["두 번째 é", "three"])
    with pytest.raises(IndexError):
        texts[3]
    some = texts.select(np.array([2, 0]))
    assert list(some) == ["three", "one"]
    again = pickle.loads(pickle.dumps(some))
    assert list(again) == ["three", "one"] and again.identity == some.identity != texts.identity
    both = JoinedTexts([some, ["x"], texts])
    assert list(both) == ["three", "one", "x", "one", "두 번째 é", "three"] == both[:]
    assert both[2] == "x" and both[-1] == "three" and both[np.int64(3)] == "one"
    with pytest.raises(IndexError):
        both[6]


def test_texts_of_a_file_that_changed_are_refused(file):
    texts = index_jsonl(file, plain_text)[1]
    file.write_text(file.read_text() + "\n" + json.dumps({"_id": "d", "text": "four"}))
    with pytest.raises(ValueError, match="has changed"):
        texts[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"_id": "a", "text": "again"}', "line 5: its _id stands on an earlier line"),
        ('{"_id": "d"', "line 5: .*repair"),
        ('{"_id": "d", "text": 3}', 'line 5: field "text" is 3'),
        ('{"text": "four"}', 'line 5: field "_id" is missing'),
        ("[1]", "line 5"),
    ],
)
def test_a_bad_line_is_named(file, line, words):
    file.write_text(file.read_text() + "\n" + line)
    with pytest.raises(DataError, match=words):
        index_jsonl(file, plain_text)
    file.write_text("\n")
    with pytest.raises(DataError, match="no usable row"):
        index_jsonl(file, plain_text)
