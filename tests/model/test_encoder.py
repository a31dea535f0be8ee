"""The encoder on a config-made BERT: values against plain transformers, batching, saving, refusals."""

import json

import numpy as np
import pytest
import torch

from nblib.backbones import EMBEDDED, make_tiny_bert
from nblib.model.encoder import NeuralSparseEncoder, _head_keys, usable_positions
from nblib.model.padding import pad, trim

TEXTS = ["a cat sat on a mat", "dogs chase cats", "the weather in seoul is fine today, bring no umbrella"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"), TEXTS * 3, vocab_size=120)


@pytest.fixture(scope="module")
def encoder(folder):
    return NeuralSparseEncoder(str(folder), max_length=16).eval()


def plain_reps(encoder, text):
    """The definition, by transformers alone: all logits, then max, relu, log1p, special tokens out."""
    with encoder.plain_mlm() as mlm, torch.no_grad():
        ids = torch.tensor(encoder.tokenize([text]))
        logits = mlm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]  # [L, V]
    reps = torch.log1p(torch.relu(logits.amax(dim=0)))
    reps[encoder.special_ids] = 0.0
    return reps


def test_reps_equal_the_definition(encoder):
    ids, mask = pad(encoder.tokenize(TEXTS), encoder.tokenizer.pad_token_id)
    with torch.no_grad():
        reps = encoder(ids, mask)
    want = torch.stack([plain_reps(encoder, text) for text in TEXTS])
    assert torch.allclose(reps, want, atol=1e-5)  # so padding leaks nowhere, and the order is kept
    assert (reps[:, encoder.special_ids] == 0).all() and reps.count_nonzero() > 10


def test_gradient_equals_the_definition(encoder):
    ids, mask = pad(encoder.tokenize(TEXTS), encoder.tokenizer.pad_token_id)
    upstream = torch.rand(len(TEXTS), encoder.vocab_size)
    encoder.zero_grad()
    (encoder(ids, mask) * upstream).sum().backward()
    ours = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    with encoder.plain_mlm() as mlm:
        logits = mlm(input_ids=ids, attention_mask=mask).logits.masked_fill(mask[..., None] == 0, -torch.inf)
        reps = torch.log1p(torch.relu(logits.amax(dim=1))) * encoder.term_mask
        (reps * upstream).sum().backward()
    theirs = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, grad in ours.items():
        assert torch.allclose(grad, theirs[name], atol=1e-5), name


def test_encode_documents_keeps_order_and_rows(encoder):
    texts = [TEXTS[i % 3] + " cat" * (i % 5) for i in range(11)]
    got = encoder.encode_documents(texts, batch_size=4)
    assert got.shape == (11, encoder.vocab_size) and got.dtype == np.float32
    for row, text in zip(got.toarray(), texts, strict=True):
        assert row == pytest.approx(plain_reps(encoder, text).numpy(), abs=1e-5)
    assert encoder.encode_documents([]).shape == (0, encoder.vocab_size)


def test_sparsity_stats_by_hand(encoder):
    stats = encoder.get_sparsity_stats(torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 4.0, 1e-9]]))
    assert stats == {
        "avg_nonzero_terms": 1.5,
        "avg_l1_norm": 3.5,
        "avg_max_value": 3.0,
        "sparsity_ratio": pytest.approx(1 - 3 / 8),
    }


def test_top_terms_leave_zeros_out(encoder):
    rep = torch.zeros(encoder.vocab_size)
    rep[7], rep[9] = 1.0, 3.0
    tokens = encoder.tokenizer.convert_ids_to_tokens([9, 7])
    assert encoder.get_top_k_terms(rep, 5) == [(tokens[0], 3.0), (tokens[1], 1.0)]


def test_save_and_load_is_exact(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = NeuralSparseEncoder.load(tmp_path).eval()
    assert again.max_length == 16
    assert (again.encode_documents(TEXTS) != encoder.encode_documents(TEXTS)).nnz == 0
    head = torch.load(tmp_path / "neural_sparse_head.pt", weights_only=True)
    assert any("transform.dense.weight" in name for name in head)
    assert not any("word_embeddings" in name or name.endswith("decoder.weight") for name in head)
    assert json.loads((tmp_path / "sparse_config.json").read_text())["max_length"] == 16


def test_a_folder_of_another_kind_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="03_pretrain"):
        NeuralSparseEncoder.load(folder)


def test_a_backbone_without_a_head_is_refused():
    with pytest.raises(ValueError, match="freshly initialised.*03_pretrain"):
        NeuralSparseEncoder(EMBEDDED)
    assert not NeuralSparseEncoder(EMBEDDED, fresh_head=True).has_trained_head


@pytest.mark.parametrize(
    ("change", "words"), [({"use_relu": False}, "relu"), ({"max_length": 9999}, "512 positions")]
)
def test_bad_settings_are_refused(folder, change, words):
    with pytest.raises(ValueError, match=words):
        NeuralSparseEncoder(str(folder), **change)


def test_an_empty_document_is_refused(encoder):
    with pytest.raises(ValueError, match="document 1 of the batch is empty"):
        encoder.encode_documents(["cat", "  "])


def test_a_batch_keeps_the_width_it_was_padded_to():
    ids = torch.ones(2, 16, dtype=torch.int64)
    mask = (torch.arange(16) < torch.tensor([[9], [5]])).long()
    assert trim(ids, mask)[0].shape == trim(ids, mask)[1].shape == (2, 9)
    assert trim(ids, mask, 4)[0].shape == (2, 12) and trim(ids, mask, 8)[1].shape == (2, 16)
    assert trim(ids[:, :10], mask[:, :10], 8)[0].shape == (2, 10)  # no wider than it came


def test_roberta_positions_begin_behind_the_padding(tmp_path):
    from transformers import RobertaConfig, RobertaForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=50, max_position_embeddings=18, pad_token_id=1, **sizes)
    model = RobertaForMaskedLM(config).eval()
    assert usable_positions(model) == 16
    ids = torch.full((1, 16), 7)
    assert torch.isfinite(model(input_ids=ids).logits).all()
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, 17), 7))


def test_any_missing_key_outside_the_backbone_belongs_to_the_head(encoder):
    assert encoder.mlm.base_model_prefix == "bert"
    missing = ["lm_predictions.dense.weight", "bert.embeddings.position_ids", "cls.predictions.bias"]
    assert _head_keys(encoder.mlm, missing) == ["cls.predictions.bias", "lm_predictions.dense.weight"]


def test_the_query_length_is_kept_with_the_model(folder, tmp_path):
    encoder = NeuralSparseEncoder(str(folder), max_length=16)
    encoder.query_max_length = 5
    encoder.save_pretrained(tmp_path)
    assert NeuralSparseEncoder.load(tmp_path).query_max_length == 5


def test_a_length_of_its_own_cuts_other_texts(encoder):
    short, whole = (encoder.encode_documents(TEXTS[2:], max_length=n) for n in (4, None))
    assert (short != whole).nnz and (short != encoder.encode_documents(TEXTS[2:], max_length=4)).nnz == 0
    assert (whole != encoder.encode_documents(TEXTS[2:], max_length=16)).nnz == 0
