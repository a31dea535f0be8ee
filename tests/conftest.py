"""Shared pieces: small real models and sets, made on the spot."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub fails at once, with words
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from nblib.backbones import load_tokenizer, make_tiny_bert  # noqa: E402
from nblib.data.formats import document_text, read_beir, write_beir  # noqa: E402
from nblib.data.negatives import mine_negatives  # noqa: E402
from nblib.files import ROOT  # noqa: E402
from nblib.idf import compute_idf_weights  # noqa: E402

ENGLISH = ROOT / "tests" / "data" / "english"
KOREAN = ROOT / "tests" / "data" / "korean"


@pytest.fixture(scope="session")
def english_texts() -> list[str]:
    """The hand-written English documents."""
    return [document_text(doc) for doc in read_beir(ENGLISH).corpus.values()]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory, english_texts):
    """Folder of a two-layer BERT with a vocabulary trained on the English documents."""
    return make_tiny_bert(tmp_path_factory.mktemp("backbone"), english_texts, vocab_size=600)


@pytest.fixture(scope="session")
def mined_set(tmp_path_factory):
    """Folder of the hand-written English set with mined negatives."""
    folder = tmp_path_factory.mktemp("set")
    beir = read_beir(ENGLISH)
    write_beir(folder, beir, mine_negatives(beir, 2, 10, "english", 13))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders as 02, 03 and 04 leave them, with a small random model."""
    from nblib.model.encoder import NeuralSparseEncoder
    from tests.steps import QUERIES, TEXTS

    base = tmp_path_factory.mktemp("steps")
    bert = make_tiny_bert(base / "bert", TEXTS + QUERIES, vocab_size=200)
    for step in ("03", "04"):
        folder = base / step / "artifacts" / "final_model"
        folder.mkdir(parents=True)
        NeuralSparseEncoder(str(bert), max_length=32).save_pretrained(folder)
    compute_idf_weights(TEXTS, load_tokenizer(str(bert)), base / "02" / "artifacts" / "idf.json")
    return {"idf_dir": str(base / "02"), "pretrain_dir": str(base / "03"), "model_dir": str(base / "04")}
