import gzip
import json
import math

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from nblib import idf
from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.data.lines import DataError
from nblib.files import ROOT

SHARED = ROOT.parent / "shared" / "data" / "tokenizers" / "bert-uncased" / "idf.json.gz"
MS_MARCO = 8_841_823  # passages


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer(EMBEDDED)


def test_idf_by_hand():
    got = idf.bm25_idf(np.array([1, 3]), n_docs=3)
    assert got == pytest.approx([math.log(1 + 2.5 / 1.5), math.log(1 + 0.5 / 3.5)])  # 0.9808, 0.1335


def test_idf_is_never_negative_and_falls_with_df():
    got = idf.bm25_idf(np.arange(101), n_docs=100)
    assert (got >= 0).all() and (np.diff(got) < 0).all()


def test_df_above_n_is_refused():
    with pytest.raises(ValueError, match="frequency of 5"):
        idf.bm25_idf(np.array([5]), n_docs=4)


def test_df_counts_a_document_once(tok):
    df, n_docs = idf.count_df(["cat cat dog", "dog", "bird"], tok, batch_size=2)
    ids = tok.convert_tokens_to_ids(["cat", "dog", "bird"])
    assert n_docs == 3 and df[ids].tolist() == [1, 2, 1] and df.sum() == 4


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_df_is_the_plain_definition(tok, batch_size):
    words = np.random.default_rng(0).choice(["the", "cat", "unhappily", "2,5", "naïve", "서울", "zzyzx"], 80)
    texts = [" ".join(part) for part in np.split(words, 16)] + ["", "  ", "cat cat cat", ""]
    want = np.zeros(len(tok), dtype=np.int64)
    for text in texts:
        want[list(set(tok(text, add_special_tokens=False)["input_ids"]))] += 1
    df, n_docs = idf.count_df(texts, tok, batch_size)
    assert n_docs == 20 and df.dtype == np.int64 and (df == want).all() and want.max() > 3


def test_documents_without_tokens_are_documents(tok):
    df, n_docs = idf.count_df(["", " "], tok)
    assert n_docs == 2 and df.sum() == 0


def test_a_token_of_very_many_documents(tok):
    df, _ = idf.count_df(["cat dog cat"] * 3000 + ["dog"] * 10, tok)  # 2,000 are a piece
    assert df[tok.convert_tokens_to_ids(["cat", "dog"])].tolist() == [3000, 3010]


def test_the_corpus_is_read_as_it_is_counted(tok):
    read, ahead = 0, []

    def texts():
        nonlocal read
        for _ in range(100):
            read += 1
            yield "cat"

    df, _ = idf.count_df(texts(), tok, 30, progress=lambda done: ahead.append(read - done))
    assert df.sum() == 100 and len(ahead) == 10 and max(ahead) == 10, (
        "10 documents are counted, 10 are being tokenized"
    )


def test_long_documents_are_counted_to_the_end(tok):
    df, _ = idf.count_df(["cat " * 600 + "dog"], tok)
    assert df[tok.convert_tokens_to_ids("dog")] == 1, "the tokenizer's truncation must be off"


def test_every_token_is_weighted(tok, tmp_path):
    weights = idf.compute_idf_weights(["cat dog", "dog"], tok, tmp_path / "idf.json")
    assert len(weights) == len(tok) and weights == json.loads((tmp_path / "idf.json").read_text())
    assert weights["cat"] == pytest.approx(math.log(1 + 1.5 / 1.5), abs=1e-6)
    assert weights["[CLS]"] == weights["[SEP]"] == weights["[PAD]"] == 0.0
    assert weights["zebra"] == 1.0, "unseen"


def test_empty_corpus_is_refused(tok):
    with pytest.raises(ValueError, match="no documents"):
        idf.compute_idf_weights([], tok)


def test_signs_weigh_nothing_if_asked(tok):
    weights = idf.compute_idf_weights(["cat, dog.", "C3-po"], tok, weigh_signs=False)
    usual = idf.compute_idf_weights(["cat, dog.", "C3-po"], tok)
    assert all(usual[token] > weights[token] == 0.0 for token in (",", ".", "-", "##-", "。", "$"))
    assert all(usual[token] == weights[token] > 0.0 for token in ("cat", "3", "##o", "c", "un"))


def test_words_of_one_stem_weigh_the_same(tok):
    texts = ["computers", "computing a computer", "the cat", "cats"]
    weights = idf.compute_idf_weights(texts, tok, stemmer="english")
    two = pytest.approx(math.log(1 + 2.5 / 2.5), abs=1e-6)
    assert all(weights[t] == two for t in ("computer", "computers", "computing", "cat", "cats"))
    assert weights["computed"] == two, "a word of the stem that no document holds"
    assert weights["the"] == idf.compute_idf_weights(texts, tok)["the"] and weights["dog"] == 1.0
    df, _ = idf.count_df(texts, tok, groups=np.arange(len(tok)))
    np.testing.assert_array_equal(df, idf.count_df(texts, tok)[0])


def test_a_byte_of_a_letter_is_no_sign():
    """Byte-level vocabularies cut a Hangul syllable into bytes, none of which is a letter alone."""
    tokens = ["Ġ", "ì", "Ķ", "¸", "a", ",", "Ġ,"]
    core = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, []))
    core.decoder = ByteLevel()
    found = idf.sign_mask(PreTrainedTokenizerFast(tokenizer_object=core))
    assert dict(zip(tokens, found.tolist(), strict=True)) == dict.fromkeys(tokens, False) | dict.fromkeys(
        ["Ġ", ",", "Ġ,"], True
    )


def test_weights_adapted_to_a_collection(tok):
    weights = np.full(len(tok), 2.0, np.float32)
    weights[tok.convert_tokens_to_ids([",", "[CLS]"])] = 0.0
    half, whole = (
        idf.adapt_idf(weights, *idf.count_df(["cat, dog", "dog,"], tok), share) for share in (0.5, 1.0)
    )
    cat, dog, zebra, comma = tok.convert_tokens_to_ids(["cat", "dog", "zebra", ","])
    own = {cat: math.log(1 + 1.5 / 1.5), dog: math.log(1 + 0.5 / 2.5)}
    for token, value in own.items():
        assert whole[token] == pytest.approx(value) and half[token] == pytest.approx((value + 2) / 2)
    assert whole[zebra] == half[zebra] == 2.0, "what the collection lacks keeps its weight"
    assert whole[comma] == half[comma] == 0.0, "and what weighs nothing stays so"


def test_load_refuses_another_tokenizers_file(tok, tmp_path):
    (tmp_path / "idf.json").write_text(json.dumps({"서울": 3.0}))
    with pytest.raises(ValueError, match="another one"):
        idf.load_idf(tmp_path / "idf.json", tok)


@pytest.mark.parametrize(("value", "words"), [(-1.0, "want finite"), ("x", "not a number")])
def test_load_refuses_bad_weights(tok, tmp_path, value, words):
    weights = dict.fromkeys(tok.get_vocab(), 1.0) | {"dog": value}
    (tmp_path / "idf.json").write_text(json.dumps(weights))
    with pytest.raises(ValueError, match=words):
        idf.load_idf(tmp_path / "idf.json", tok)


def test_cache_follows_the_corpus(tok, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "1", "title": "", "text": "cat"}\n')
    first = idf.cached_idf([corpus], tok, 1.0, 10, tmp_path / "cache", tmp_path / "a.json").read_text()
    corpus.write_text('{"_id": "1", "title": "cat", "text": "dog"}\n')
    second = idf.cached_idf([corpus], tok, 1.0, 10, tmp_path / "cache", tmp_path / "b.json").read_text()
    assert json.loads(first)["dog"] == 1.0 != json.loads(second)["dog"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [('{"_id": "2", "title": "t"}', "text"), ('{"_id": "2", "text": 5}', "text"), ("{", "JSON")],
)
def test_a_bad_row_of_a_counted_corpus_is_named(tok, tmp_path, row, reason):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "1", "title": null, "text": "cat"}\n' + row + "\n")
    with pytest.raises(DataError, match=f"corpus.jsonl, line 2: .*{reason}"):
        idf.cached_idf([corpus], tok, 1.0, 10, tmp_path / "cache", tmp_path / "a.json")
    assert not list((tmp_path / "cache").glob("idf-*"))


def test_a_packed_corpus_of_a_folder_is_found(tmp_path):
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"")
    assert idf.corpus_files(str(tmp_path), "", []) == [tmp_path / "corpus.jsonl.gz"]


def test_several_corpora_are_counted_as_one(tok, tmp_path):
    texts = {"one": ["cat", "cat dog"], "two": ["dog"]}
    for name, found in texts.items():
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        lines = (json.dumps({"_id": str(i), "title": "", "text": t}) + "\n" for i, t in enumerate(found))
        (tmp_path / "artifacts" / name / "corpus.jsonl").write_text("".join(lines))
    files = idf.corpus_files("", str(tmp_path), ["one", "two"])
    both = idf.cached_idf(files, tok, 1.0, 10, tmp_path / "cache", tmp_path / "idf.json")
    assert json.loads(both.read_text()) == idf.compute_idf_weights(["cat", "cat dog", "dog"], tok)
    with pytest.raises(FileNotFoundError, match="three.*run notebook 01_data_prep first"):
        idf.corpus_files("", str(tmp_path), ["one", "three"])


@pytest.mark.skipif(
    not SHARED.exists(), reason="the IDF file that OpenSearch ships is not beside the project"
)
def test_opensearch_weights_are_of_this_form():
    """Each weight inverts to a whole document frequency, so formula and N are the published model's."""
    weights = json.loads(gzip.decompress(SHARED.read_bytes()))
    assert weights["the"] == pytest.approx(0.1353, abs=5e-5)
    assert weights["ny"] == pytest.approx(5.7729, abs=5e-5)
    values = np.array([w for w in weights.values() if w != 1.0])  # 1.0 is the default of unseen tokens
    df = idf.invert_idf(values, MS_MARCO)
    whole = np.rint(df)
    assert whole.min() >= 1 and whole.max() <= MS_MARCO and len(values) > 28_000
    assert np.abs(idf.bm25_idf(whole, MS_MARCO) - values).max() < 1e-6
    assert np.abs(df - whole)[df < 50_000].max() < 0.02, "float32 blurs the larger ones"
