"""The memory rows on a small vocabulary: each side in a process of its own, and what is told if it dies."""

import json

import pytest
import torch

from nblib.backbones import load_tokenizer
from nblib.model.encoder import NeuralSparseEncoder
from nblib.speed import measure, sides, steps

V, SIZE, LENGTH = 20_000, 16, 64  # so that the logits stand out from what peaks vary by, some 70 MiB


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A backbone as that of the large vocabulary, with a small one."""
    return steps.big_backbone(tmp_path_factory.mktemp("big"), V, LENGTH)


def test_big_backbone_is_as_said(backbone):
    tokenizer, encoder = load_tokenizer(str(backbone)), NeuralSparseEncoder(str(backbone), LENGTH)
    assert len(tokenizer) == encoder.vocab_size == encoder.decoder.out_features == V
    assert tokenizer.tokenize("w0 w19994") == ["w0", "w19994"]  # 5 special tokens and w0 .. w19994
    config = encoder.mlm.config
    assert (config.num_hidden_layers, config.hidden_size) == (12, 384)
    active = encoder.encode_documents(["w1 w2 w3", "w7"]).getnnz(axis=1)
    assert active.min() > 0 and active.max() < V / 2  # a model in training keeps neither none nor all


def test_memory_row_compares_heads(backbone, monkeypatch):
    """The peer keeps [B, L, V] logits, 78 MiB each time; ours must stay under them, above the backbone."""
    found = {}

    def recorded(module, **job):
        return found.setdefault(job["side"], measure.in_fresh_process(module, **job))

    monkeypatch.setattr(steps, "in_fresh_process", recorded)
    row = steps.memory_row(backbone, SIZE, LENGTH)
    base = found["backbone"]["peak_gib"]
    assert row["backbone_gib"] == base > 16 * found["backbone"]["parameters"] / 2**30
    assert row["peer"] == found["peer"]["peak_gib"] - base > 4 * SIZE * LENGTH * V / 2**30
    seen = max(found["ours"]["peak_gib"] - base, 0.0)
    assert row["measured_gib"] == seen < row["peer"] and row["ours"] == max(seen, steps.NOISE_GIB)
    assert row["limit"] == 8 * SIZE * V / 2**30
    assert found["ours"]["parameters"] == found["peer"]["parameters"] == _parameters(backbone)


def test_large_vocabulary_row_extrapolates(tmp_path, monkeypatch):
    """Ours runs; of the peer, 1 and 3 documents take 2 and 3 GiB, so that 7 take 5."""

    def peer_is_known(module, **job):
        known = {"peak_gib": 1.5 + job["size"] / 2, "seconds": 1.0, "parameters": 1}
        return known if job["side"] == "peer" else measure.in_fresh_process(module, **job)

    monkeypatch.setattr(steps, "in_fresh_process", peer_is_known)
    row = steps.large_vocabulary_row(tmp_path, 2000, 7, 16, [1, 3])
    assert row["regime"] == "V 2,000, 7 x 16" and "from 1 and 3 documents" in row["peer_name"]
    assert row["peer"] == pytest.approx(5.0) and row["ratio"] == row["peer"] / row["ours"]
    assert row["limit"] == 16 * _parameters(tmp_path) / 2**30 < row["ours"] < 4
    assert row["seconds"] > 0


def test_sides_that_die_leave_rows_that_can_be_written(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "in_fresh_process", lambda module, **job: {"failed": "killed"})
    rows = [steps.memory_row(backbone, 2, 16), steps.large_vocabulary_row(tmp_path, 2000, 2, 16, [1, 2])]
    assert [(row["ours"], row["peer"], row["ratio"]) for row in rows] == [(None, None, None)] * 2
    json.dumps(rows, allow_nan=False)


def test_backbone_only_stops_before_the_logits(tiny_backbone):
    encoder = sides.ours(tiny_backbone, 32, "fp32")
    module = steps.BackboneOnly(encoder)
    ids = torch.randint(5, encoder.vocab_size, (3, 8), generator=torch.Generator().manual_seed(0))
    reps = module(ids, torch.ones_like(ids))
    mlm = encoder.mlm
    hidden = mlm.cls.predictions.transform(mlm.bert(ids).last_hidden_state)  # [3, 8, H]
    assert torch.allclose(reps, hidden.mean(dim=1), atol=1e-5)
    reps.sum().backward()
    assert encoder.decoder.bias.grad is None and mlm.bert.encoder.layer[0].output.dense.weight.grad.any()


def _parameters(folder) -> int:
    encoder = NeuralSparseEncoder(str(folder), 16)
    return sum(p.numel() for p in encoder.parameters())
