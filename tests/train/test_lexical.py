"""Lexical targets by hand, and as the BM25 that they stand for."""

import numpy as np
import pytest
import Stemmer

from nblib.backbones import EMBEDDED, load_tokenizer
from nblib.data.formats import BeirSet, write_beir
from nblib.files import ROOT
from nblib.run.keys import cell_defaults
from nblib.run.params import PretrainParams
from nblib.search.bm25 import Bm25
from nblib.stems import stem_groups
from nblib.train.collator import Collator
from nblib.train.data import load_training_set
from nblib.train.lexical import lexical_targets

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat and a dog",
    "dog " * 9,
    "rain in spain stays in the plain",
    "dogs computing computers",
]


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer(EMBEDDED)


def ids_of(tok, *words):
    return tok.convert_tokens_to_ids(list(words))


def test_lexical_targets_search_as_bm25_does(tok):
    """With IDF on the query side, targets as document reps give BM25's own ranking and scores."""
    _searches_as_bm25(tok, ["cat dog", "the plain cat"], lambda t: tok.tokenize(t), None)


def test_stems_of_a_tokenizer_whose_file_pads():
    tok = load_tokenizer(EMBEDDED)
    tok.backend_tokenizer.enable_padding(length=8)
    groups = stem_groups(tok, "english")
    row, rows, sort, sorting = groups[ids_of(tok, "row", "rows", "sort", "sorting")]
    assert row == rows != sort == sorting
    assert stem_groups(tok, "") is None


def test_stemmed_targets_search_as_bm25_over_stems_does(tok):
    """As above: whole words by stem. The df of a stem is that of each of its tokens."""
    stem = Stemmer.Stemmer("english")

    def stems(text):
        return [stem.stemWord(t) if len(t) > 2 else t for t in tok.tokenize(text)]

    groups = stem_groups(tok, "english")
    _searches_as_bm25(tok, ["cats dog", "computed dogs", "the plain computer"], stems, groups)


def _searches_as_bm25(tok, queries, analyzer, groups):
    targets = lexical_targets(tok(TEXTS)["input_ids"], len(tok), tok.all_special_ids, groups)
    index = Bm25(TEXTS, analyzer)
    want = (index.query_matrix(queries) @ index.doc_matrix.T).toarray()
    assert (want > 0).any(axis=1).all()
    words = [set(tok(q, add_special_tokens=False)["input_ids"]) for q in queries]
    df = np.asarray((targets > 0).sum(axis=0)).ravel()
    idf = np.log(1 + (len(TEXTS) - df + 0.5) / (df + 0.5))
    got = [[sum(idf[t] * targets[d, t] for t in sorted(q)) for d in range(len(TEXTS))] for q in words]
    assert np.allclose(np.array(got) / 2.5, want, atol=1e-4)  # bm25s leaves the constant k1 + 1 out


def test_lexical_targets_by_hand(tmp_path, tok):
    corpus = {"d0": {"title": "", "text": "cat cat dog"}, "d1": {"title": "", "text": "rain"}}
    lexical = _batch(tmp_path, corpus, tok)
    cat, dog, rain = ids_of(tok, "cat", "dog", "rain")
    # mean length 2: the norms are 1.5 (0.25 + 0.75 * 3/2) = 2.0625 and 1.5 (0.25 + 0.75 / 2) = 0.9375
    assert lexical[0, cat] == pytest.approx(2 * 2.5 / (2 + 2.0625))
    assert lexical[0, dog] == pytest.approx(2.5 / 3.0625) and lexical[1, rain] == pytest.approx(2.5 / 1.9375)
    assert lexical.count_nonzero() == 3


def test_stemmed_targets_by_hand(tmp_path, tok):
    corpus = {"d0": {"title": "", "text": "cat cats dog"}, "d1": {"title": "", "text": "rain"}}
    lexical = _batch(tmp_path, corpus, tok, stemmer="english")
    cat, cats, dog, dogs = ids_of(tok, "cat", "cats", "dog", "dogs")
    assert lexical[0, cat] == lexical[0, cats] == pytest.approx(2 * 2.5 / (2 + 2.0625)), "two of one stem"
    assert lexical[0, dog] == lexical[0, dogs] == pytest.approx(2.5 / 3.0625), "one that is not there"
    sparse = _batch(tmp_path / "again", corpus, tok, stemmer="english", sparse=True)
    assert (sparse.to_dense() == lexical).all()
    row, token = sparse._indices().numpy()
    assert (np.diff(row * len(tok) + token) > 0).all(), "sorted, as a coalesced tensor is"


def _batch(folder, corpus, tok, **options):
    write_beir(
        folder,
        BeirSet("s", corpus, {"q": "cat"}, {"train": {"q": {"d0": 1}}}),
        [{"query_id": "q", "doc_ids": ["d0", "d1"], "scores": [1, 0]}],
    )
    data = load_training_set(folder, 1)
    return Collator(data, tok, 16, lexical=True, **options)(data.rows[:])["lexical"]


def test_groups_hold_whole_words_of_one_stem(tok):
    groups = stem_groups(tok, "english")
    same = groups[ids_of(tok, "compute", "computer", "computers", "computing")]
    assert len(set(same)) == 1
    alone = ids_of(tok, "##s", "##ing", "##er", "1990", "1991", "[CLS]", "[MASK]", "!", "the", "is")
    assert (groups[alone] == alone).all()
    assert (groups <= np.arange(len(tok))).all() and (groups[groups] == groups).all()
    words, stem = tok.convert_ids_to_tokens(range(len(tok))), Stemmer.Stemmer("english")
    joined = np.flatnonzero(groups != np.arange(len(tok)))
    assert len(joined) > 5000
    assert all(stem.stemWord(words[i]) == stem.stemWord(words[groups[i]]) for i in joined)


def test_a_language_without_a_stemmer_is_refused():
    good = cell_defaults(ROOT / "notebooks/03_pretrain.ipynb")
    assert PretrainParams(**good | {"lexical_stemmer": "german"}).lexical_stemmer == "german"
    with pytest.raises(ValueError, match=r"no stemmer 'klingon'; there are .*english"):
        PretrainParams(**good | {"lexical_stemmer": "klingon"})
