"""Pooling and activation of the encoder against the definition over [B, L, V], and through both exports."""

import pytest
import torch

from nblib.export.opensearch import export_opensearch
from nblib.export.sentence_transformers import export_sentence_transformers
from nblib.export.verify import verify_opensearch, verify_sentence_transformers
from nblib.idf import compute_idf_weights, load_idf
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.padding import pad
from nblib.model.pooling import Pooling
from nblib.model.retriever import SparseRetriever

KINDS = [Pooling("max", "log1p_relu"), Pooling("sum", "relu"), Pooling("sum", "log1p_relu", 0.1)]


@pytest.mark.parametrize("pooling", KINDS, ids=str)
def test_reps_equal_the_definition(tiny_backbone, english_texts, pooling, tmp_path):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32, pooling=pooling).eval()
    ids, mask = pad(encoder.tokenize(english_texts[:7]), encoder.tokenizer.pad_token_id)
    with torch.inference_mode():
        got = encoder(ids, mask)
        with encoder.plain_mlm() as mlm:
            logits = mlm(input_ids=ids, attention_mask=mask).logits[..., : encoder.vocab_size]  # [B, L, V]
    each = torch.log1p(torch.relu(logits))
    each = torch.log1p(each) if pooling.activation == "log1p_relu" else each
    each = each * mask.unsqueeze(-1)
    want = each.amax(dim=1) if pooling.strategy == "max" else each.sum(dim=1)
    want = want * (want >= pooling.activation_threshold) * encoder.term_mask
    assert torch.allclose(got, want, atol=1e-5) and got.count_nonzero() > 0
    encoder.save_pretrained(tmp_path)
    assert NeuralSparseEncoder.load(tmp_path).pooling == pooling


@pytest.mark.parametrize("pooling", KINDS[:2], ids=str)
def test_both_exports_keep_the_pooling(tiny_backbone, english_texts, pooling, tmp_path):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32, pooling=pooling).eval()
    compute_idf_weights(english_texts, encoder.tokenizer, tmp_path / "idf.json")
    idf = load_idf(tmp_path / "idf.json", encoder.tokenizer)
    documents, queries = english_texts[:6], [text[:40] for text in english_texts[6:10]]
    folder = export_sentence_transformers(encoder, idf, tmp_path / "st")
    zips = export_opensearch(encoder, idf, tmp_path / "os", "pooled", "1.0.0")
    rows = verify_sentence_transformers(folder, encoder, idf, documents, queries)
    rows += verify_opensearch(zips, encoder, idf, documents, queries)
    assert all(row["ok"] for row in rows), rows


def test_what_an_export_cannot_carry_is_refused(tiny_backbone, tmp_path):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32, pooling=KINDS[2])
    with pytest.raises(ValueError, match="no activation_threshold"):
        export_sentence_transformers(encoder, torch.ones(encoder.vocab_size).numpy(), tmp_path / "st")
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.query_side = "siamese"
    for export in (export_sentence_transformers, export_opensearch):
        with pytest.raises(ValueError, match="siamese"):
            names = ("a", "1") if export is export_opensearch else ()
            export(encoder, torch.ones(encoder.vocab_size).numpy(), tmp_path / "x", *names)


@pytest.mark.parametrize(
    "bad", [{"strategy": "mean"}, {"activation": "gelu"}, {"activation_threshold": -0.1}], ids=str
)
def test_unknown_pooling_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]):
        Pooling(**bad)


def test_query_sides(tiny_backbone, english_texts):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32).eval()
    idf = compute_idf_weights(english_texts, encoder.tokenizer)
    ids, mask = pad(encoder.tokenize(english_texts[:3]), encoder.tokenizer.pad_token_id)
    bags = torch.zeros(2, encoder.vocab_size)
    bags[0, 50], bags[1, 60] = 1.0, 1.0
    batch = {"input_ids": ids, "attention_mask": mask, "q_bags": bags}
    batch |= {"q_input_ids": ids[:2], "q_attention_mask": mask[:2]}
    weights = torch.tensor(list(idf.values()))
    ordinary = torch.ones(encoder.vocab_size)
    ordinary[encoder.special_ids] = 0
    want = {"idf": weights, "learned-idf": weights, "binary": ordinary}
    for side, row in want.items():
        q_reps, d_reps = SparseRetriever(encoder, idf, side)(batch)
        assert torch.allclose(q_reps, bags * row) and d_reps.shape == (3, encoder.vocab_size)
    q_reps, d_reps = SparseRetriever(encoder, idf, "siamese")(batch)
    assert torch.allclose(q_reps, d_reps[:2], atol=1e-5)
    with pytest.raises(ValueError, match="query_side"):
        SparseRetriever(encoder, idf, "bag")
    with pytest.raises(ValueError, match="3 query weights"):
        SparseRetriever(encoder, [1.0, 2.0, 3.0], "idf")
