"""A small encoder with a lively head, in English and in Korean, and its exports: made once for all tests."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from nblib.backbones import EMBEDDED, make_tiny_bert
from nblib.export.opensearch import export_opensearch
from nblib.export.sentence_transformers import export_sentence_transformers
from nblib.idf import compute_idf_weights, load_idf
from nblib.model.encoder import NeuralSparseEncoder

TEXTS = {
    "en": [
        "Return the first rows of the frame, five of them unless told otherwise.",
        "Plot a histogram of the values and mark the mean.",
        "Short.",
        "Read a comma-separated file into a table, skip the bad lines, name the columns and parse the dates.",
        "The inverse of a matrix, if it has one; otherwise an error is raised that names the matrix.",
        "Join two tables by a key that both of them have.",
    ],
    "ko": [
        "서울은 대한민국의 수도이며 한강이 도시를 가로질러 흐른다.",
        "검색 엔진은 문서를 단어와 가중치의 목록으로 바꾸어 색인한다.",
        "짧다.",
        "부산은 바다와 접한 도시로, 해마다 영화제가 열리고 많은 사람이 찾아온다.",
        "역색인은 단어마다 그 단어가 나온 문서의 목록을 가진다.",
        "열과 행을 가진 표를 읽어 날짜 열을 해석한다.",
    ],
}
QUERIES = {
    "en": ["first rows of a frame", "the mean of the histogram [CLS] the mean", "unseen zebra"],
    "ko": ["서울 한강", "검색 색인 [SEP] 검색", "없는 말"],
}
MAX_LENGTH = 24


@dataclass
class Tiny:
    encoder: NeuralSparseEncoder
    idf: np.ndarray  # [V]
    texts: list[str]
    queries: list[str]
    folder: Path  # sentence-transformers export
    zips: dict[str, Path]  # OpenSearch export


def lively(encoder: NeuralSparseEncoder, scale: float, shift: float) -> NeuralSparseEncoder:
    """Give an untrained head logits of both signs that depend on the text; special tokens get large ones."""
    torch.manual_seed(7)
    with torch.no_grad():
        encoder.decoder.weight.mul_(scale)
        encoder.decoder.bias.normal_().add_(shift)
        encoder.decoder.bias[encoder.special_ids] = 5.0
    return encoder.eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Language -> Tiny; each is made at its first use."""

    @cache
    def make(language: str) -> Tiny:
        folder, texts = tmp_path_factory.mktemp(f"tiny_{language}"), TEXTS[language]
        make_tiny_bert(folder / "bert", texts, vocab_size=300)
        encoder = NeuralSparseEncoder(str(folder / "bert"), MAX_LENGTH, fresh_head=True)
        encoder = lively(encoder, scale=8.0, shift=0.0)
        compute_idf_weights(texts, encoder.tokenizer, folder / "idf.json")
        idf = load_idf(folder / "idf.json", encoder.tokenizer)
        st = export_sentence_transformers(encoder, idf, folder / "st")
        zips = export_opensearch(encoder, idf, folder / "os", "tiny", "1.2.3")
        return Tiny(encoder, idf, texts, QUERIES[language], st, zips)

    return make


@pytest.fixture(params=["en", "ko"])
def tiny(request, exported) -> Tiny:
    return exported(request.param)


@pytest.fixture
def english(exported) -> Tiny:
    """For tests that no other language would make harder."""
    return exported("en")


@pytest.fixture
def minilm() -> NeuralSparseEncoder:
    """The embedded weights: 30,522 tokens, six layers, an untrained head."""
    return lively(NeuralSparseEncoder(EMBEDDED, max_length=64, fresh_head=True), scale=1.0, shift=-2.0)
