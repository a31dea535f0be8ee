from dataclasses import replace

import pytest
import torch

from nblib.backbones import EMBEDDED
from nblib.model.encoder import NeuralSparseEncoder
from nblib.train.warmup import IGNORE, MaskAndKeep, shift_bias, start_as_identity, warm_up_head
from tests.train.small_run import CONFIG


@pytest.fixture
def encoder(tiny_backbone):
    return NeuralSparseEncoder(str(tiny_backbone), max_length=32)


def test_masked_and_kept_tokens(encoder):
    torch.manual_seed(0)
    tok = encoder.tokenizer
    ids = encoder.tokenize(["word " * 25] * 40)
    batch = MaskAndKeep(tok, 0.2, 0.3)(ids)
    asked = batch["labels"] != IGNORE
    hidden = batch["input_ids"] == tok.mask_token_id
    original = torch.tensor(ids)
    ordinary = ~torch.isin(original, torch.tensor(tok.all_special_ids))
    assert (hidden & ~asked).sum() == 0 and (asked & ~ordinary).sum() == 0
    assert (batch["labels"][asked] == original[asked]).all()
    assert (batch["input_ids"][~hidden] == original[~hidden]).all()
    assert hidden[ordinary].float().mean() == pytest.approx(0.2, abs=0.05)
    assert asked[ordinary].float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("mask", "keep"), [(0.0, 0.0), (0.7, 0.6)])
def test_bad_shares_are_refused(encoder, mask, keep):
    with pytest.raises(ValueError, match="mask_ratio"):
        MaskAndKeep(encoder.tokenizer, mask, keep)


def test_identity_start_hands_the_hidden_states_on():
    encoder = NeuralSparseEncoder(EMBEDDED, 32, fresh_head=True).eval()
    assert start_as_identity(encoder)
    transform = encoder.mlm.cls.predictions.transform
    x = torch.rand(3, 384)
    assert torch.equal(transform.dense(x), x)
    assert torch.equal(encoder.decoder.weight, encoder.mlm.get_input_embeddings().weight)


@pytest.mark.parametrize("target", [5, 40])
def test_shift_reaches_the_target(encoder, english_texts, target):
    shift_bias(encoder, english_texts, target)
    reps = encoder.eval().encode_documents(english_texts)
    assert reps.nnz / len(english_texts) == pytest.approx(target, abs=0.5)
    with pytest.raises(ValueError, match="target_active_terms"):
        shift_bias(encoder, english_texts, 10**6)


def test_warmup_trains_the_head_alone(encoder, english_texts, tmp_path):
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    config = replace(CONFIG, num_steps=4, batch_size=4)
    found = warm_up_head(encoder, english_texts, config, tmp_path, 0.15, 0.15, 20)
    changed = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("mlm.cls.") for name in changed)
    assert all(p.requires_grad for p in encoder.parameters()) and found["identity"]
