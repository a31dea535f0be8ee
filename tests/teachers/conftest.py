"""Tiny real models of every kind, saved as their libraries save them."""

import json
from pathlib import Path

import pytest
import torch

from nblib.idf import compute_idf_weights
from nblib.model.encoder import NeuralSparseEncoder

QUERIES = ["how to bake bread", "moons of jupiter", "oil for a chain"]
DOCUMENTS = [
    "flour, water and yeast make a loaf of bread",
    "jupiter has dozens of moons, and the largest of them are worlds of their own",
    "a bicycle chain needs oil",
    "bread",
    "the moons were seen in 1610",
]
LENGTH = 24


def lively(encoder: NeuralSparseEncoder) -> NeuralSparseEncoder:
    """Give an untrained head logits of both signs that depend on the text."""
    torch.manual_seed(7)
    with torch.no_grad():
        encoder.decoder.weight.mul_(8.0)
        encoder.decoder.bias.normal_().sub_(3.0)
        encoder.decoder.bias[sorted({i for ids in encoder.tokenize(QUERIES) for i in ids})] += 3.0
        encoder.decoder.bias[encoder.special_ids] = -50.0  # sentence-transformers does not mask them
    return encoder.eval()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A two-layer BERT of whole words: a trained vocabulary differs from run to run, and scores with it."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("backbone") / "bert"
    words = sorted({word.strip(",") for text in QUERIES + DOCUMENTS for word in text.split()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *words, *(f"word{i}" for i in range(200))]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=64)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    torch.manual_seed(13)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ours(tmp_path_factory, tiny_backbone) -> Path:
    """A folder as 04_finetune leaves it, with its idf.json beside it."""
    folder = tmp_path_factory.mktemp("ours") / "final_model"
    encoder = lively(NeuralSparseEncoder(str(tiny_backbone), LENGTH))
    encoder.save_pretrained(folder)
    compute_idf_weights(DOCUMENTS, encoder.tokenizer, folder.parent / "idf.json")
    return folder


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory, ours) -> Path:
    """The same weights as a plain masked-LM folder."""
    folder = tmp_path_factory.mktemp("mlm") / "mlm"
    encoder = NeuralSparseEncoder.load(ours)
    with encoder.plain_mlm() as mlm:
        mlm.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def headless(tmp_path_factory, tiny_backbone) -> Path:
    """The trap: a config that promises a masked LM over weights without its head."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("headless") / "model"
    AutoModel.from_pretrained(tiny_backbone).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    return folder


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory, tiny_backbone):
    """similarity -> SentenceTransformer folder with a prompt before its queries."""
    from sentence_transformers import SentenceTransformer

    def make(similarity: str) -> Path:
        folder = tmp_path_factory.mktemp("dense") / similarity
        model = SentenceTransformer(str(tiny_backbone), device="cpu", similarity_fn_name=similarity)
        model.prompts["query"] = "bread: "
        model.save(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def splade(tmp_path_factory, masked_lm) -> Path:
    """A SparseEncoder that encodes both sides by the masked LM."""
    from sentence_transformers import SparseEncoder

    folder = tmp_path_factory.mktemp("splade") / "model"
    SparseEncoder(str(masked_lm), device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def cross_folder(tmp_path_factory, tiny_backbone) -> Path:
    """A CrossEncoder with one label."""
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("cross") / "model"
    model = CrossEncoder(str(tiny_backbone), num_labels=1, device="cpu")
    torch.manual_seed(3)
    with torch.no_grad():  # scores that differ
        model.model.bert.pooler.dense.weight.normal_(std=0.3)
        model.model.classifier.weight.normal_()
    model.save(str(folder))
    return folder
