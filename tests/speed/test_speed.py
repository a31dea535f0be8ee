"""The speed rows on a two-layer model: they must be measured right; how fast they are is not asserted."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.padding import pad
from nblib.speed import encode, measure, parts, quality, sides, steps
from nblib.speed.memory import peak_gib
from nblib.speed.rows import row


@pytest.fixture(scope="module")
def model(tiny_backbone, tmp_path_factory):
    """A model folder of ours."""
    folder = tmp_path_factory.mktemp("speed") / "model"
    NeuralSparseEncoder(str(tiny_backbone), max_length=32).save_pretrained(folder)
    return folder


def test_all_sides_compute_the_same_reps(model, english_texts):
    encoder = sides.ours(model, 32, "fp32")
    ids, mask = pad(encoder.tokenize(english_texts[:6]), encoder.tokenizer.pad_token_id)
    with torch.inference_mode():
        want = encoder.eval()(ids, mask)
        for side in (sides.Peer(model), sides.Peer(model, 4, eager=True), sides.Plain(model)):
            reps = side.eval()(ids, mask)[:, : encoder.vocab_size] * encoder.term_mask
            assert torch.allclose(reps, want, atol=1e-4)


def test_ratio_by_hand():
    faster = row("x", "", "fp32", 2.0, 6.0, "peer", "s", less_is_better=True)
    more = row("x", "", "fp32", 6.0, 2.0, "peer", "documents/s", less_is_better=False)
    assert faster["ratio"] == more["ratio"] == 3.0
    assert row("x", "", "", 6.0, None, "peer", "s", less_is_better=True)["ratio"] is None


def test_interleaved_takes_turns():
    turns = []
    found = measure.interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 2)
    assert turns == ["a", "b"] * 3 and found.keys() == {"a", "b"}


def test_flops_by_hand(model):
    encoder = NeuralSparseEncoder.load(model)
    config, tokens, length = encoder.mlm.config, 10, 5
    h, inner = config.hidden_size, config.intermediate_size
    per_layer = 4 * h * h + 2 * h * inner
    transform = h * h
    attention = 2 * config.num_hidden_layers * length * h
    want = 2 * tokens * (config.num_hidden_layers * per_layer + transform + attention)
    assert measure.backbone_flops(encoder, tokens, length) == want
    assert measure.head_flops(encoder, tokens) == 2 * tokens * h * encoder.vocab_size


def test_memory_is_that_of_the_fresh_process():
    """A child begins with its parent's ru_maxrss on Linux; what is reported must not."""
    held = np.ones(2**27)  # 1 GiB here
    assert peak_gib() > 1
    job = {"tokenizer": "sentence-transformers/all-MiniLM-L6-v2", "vocabulary": ["a"], "passages": 10}
    found = measure.in_fresh_process("nblib.speed.encode", **job)
    assert 0.05 < found["peak_gib"] < 1 and held.any()


def test_a_process_that_dies_is_told():
    assert "failed" in measure.in_fresh_process("nblib.speed.encode", nothing=1)


@pytest.mark.parametrize("active", [20, 500])
def test_a_shifted_model_holds_so_many_terms(model, english_texts, tmp_path, active):
    encoder = NeuralSparseEncoder.load(steps.shifted_model(model, english_texts, tmp_path, active))
    terms = encoder.encode_documents(english_texts[:32]).getnnz(axis=1).mean()
    assert terms == pytest.approx(active, rel=0.05)


def test_only_sides_said_to_have_them_run_in_our_memory_settings(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # as in a notebook that our runner started
    contestants = steps._contestants()
    ours = {name for name, (_, env) in contestants.items() if env.get("MALLOC_ARENA_MAX") == "2"}
    assert ours == {name for name in contestants if "our memory settings" in name} | {"ours"}
    assert all(env["PATH"] for _, env in contestants.values())


def test_processes_take_turns_and_a_dead_one_is_told(model, english_texts, tmp_path):
    torch.save(steps.full_batch(model, english_texts, 2, 16), tmp_path / "batch.pt")
    job = {"side": "ours", "model": str(model), "length": 16, "dtype": "fp32"}
    job["batch"] = str(tmp_path / "batch.pt")
    found = measure.processes_in_turn("nblib.speed.steps", {"a": (job, os.environ)}, 2)
    assert 0 < found["a"] < 60
    with pytest.raises(RuntimeError, match="(?s)^b: .*no/such"):
        jobs = {"b": (job | {"model": "no/such"}, os.environ)}
        measure.processes_in_turn("nblib.speed.steps", jobs, 1)


def test_step_rows_of_every_side(model, english_texts, tmp_path, monkeypatch):
    """One regime in bf16: every side is a process, whatever the regime and the format."""
    monkeypatch.setattr(steps, "REGIMES", {"sparse": 100})
    rows = steps.step_rows(model, english_texts, tmp_path, [2], 16, "bf16", repeats=1)
    assert [(row["row"], row["regime"], row["dtype"]) for row in rows] == [
        ("train_step", "sparse, 2 x 16", "bf16")
    ] * 5
    assert len({row["peer_name"] for row in rows}) == 5 and len({row["ours"] for row in rows}) == 1
    assert all(row["ratio"] == row["peer"] / row["ours"] and row["ours"] > 0 for row in rows)
    assert all(row["limit"] > 0 and row["share"] == row["limit"] / row["ours"] for row in rows)


def test_encode_and_idf_rows(model, english_texts):
    fp32, bf16 = encode.encode_rows(model, english_texts[:16], 32)
    assert (fp32["dtype"], bf16["dtype"]) == ("fp32", "bf16") and min(fp32["ratio"], bf16["ratio"]) > 0
    (row,) = encode.idf_rows(str(model), english_texts, 200, rounds=1)
    assert row["peak_gib"] > 0 and row["ratio"] == row["ours"] / row["peer"]
    assert row["ms_marco_minutes"] == pytest.approx(8_841_823 / 200 * row["long_run_seconds"] / 60)


def test_ms_marco_is_projected_from_the_long_run(model, monkeypatch):
    """1,000 passages in 6 s are 884 minutes for 8.84 million; the short run's 5 s must not count."""
    seconds = {100: 5.0, 1000: 6.0}
    monkeypatch.setattr(encode, "generated", lambda words, n, seed: ["some words"] * 10)
    fresh = lambda module, **job: {"peak_gib": 1.0, "seconds": seconds[job["passages"]]}  # noqa: E731
    monkeypatch.setattr(encode, "in_fresh_process", fresh)
    (row,) = encode.idf_rows(str(model), ["some words"], 1000, rounds=1)
    assert row["long_run_seconds"] == 6 and row["ms_marco_minutes"] == pytest.approx(884.1823)
    monkeypatch.setattr(encode, "in_fresh_process", lambda module, **job: {"failed": "killed"})
    (row,) = encode.idf_rows(str(model), ["some words"], 1000, rounds=1)
    assert row["long_run_seconds"] is row["ms_marco_minutes"] is row["peak_gib"] is None and row["ours"] > 0


def test_the_peer_gets_its_best_batch_size_after_a_warm_up(monkeypatch):
    calls = []
    seconds = {"4": 5.0, "8": 4.0, "16": 3.0, "32": 2.0, "64": 1.0}

    def timed(sides, repeats, warmups):
        calls.append("clock")
        for side in sides.values():
            side()
        return {name: seconds[name] for name in sides}

    monkeypatch.setattr(encode, "peer_csr", lambda peer, texts, size: calls.append((len(texts), size)))
    monkeypatch.setattr(encode, "interleaved", timed)
    assert encode.best_batch_size(None, ["text"] * 64) == 64
    assert calls == [(4, 4), "clock"] + [(64, size) for size in (4, 8, 16, 32, 64)]
    seconds["8"] = 0.5
    assert encode.best_batch_size(None, ["text"] * 64) == 8


def test_wrong_weights_are_not_timed(model, english_texts):
    encoder = NeuralSparseEncoder.load(model)
    reps = encoder.encode_documents(english_texts[:4])
    with pytest.raises(AssertionError, match="differ"):
        encode._compare(encoder, reps * 1.01, reps)


def test_generated_passages_are_as_long_as_said():
    passages = list(encode.generated(["a", "b", "c"], 50, seed=1))
    lengths = [len(text.split()) for text in passages]
    assert len(passages) == 50 and min(lengths) >= 20 and max(lengths) <= 90
    assert passages == list(encode.generated(["a", "b", "c"], 50, seed=1))


def test_a_finished_part_is_read_not_measured_again(tmp_path):
    (tmp_path / "idf.json").write_text(json.dumps([{"row": "idf", "ours": 1.0}]))
    assert parts.run_part("idf", SimpleNamespace(), tmp_path) == [{"row": "idf", "ours": 1.0}]


def test_summary_of_curves_by_hand():
    def point(minutes, ndcg, flops):
        return {"minutes": minutes, "ndcg_at_10": ndcg, "flops": flops}

    curves = {
        "ours": [point(1, 0.4, 3.0), point(2, 0.55, 2.0), point(4, 0.6, 1.0)],
        "peer": [point(1, 0.3, 3.0), point(4, 0.5, 1.5), point(5, 0.45, 1.2)],
    }
    row = quality.summarise(curves)
    assert (row["ours"], row["peer"], row["ours_flops"], row["peer_flops"]) == (0.6, 0.45, 1.0, 1.2)
    assert row["ratio"] == pytest.approx(0.6 / 0.45) and row["above_from_minute"] == 1
    curves["ours"][1] = point(2, 0.36, 2.0)  # the peer's line stands at .367 there
    assert quality.summarise(curves)["above_from_minute"] == 4
    curves["ours"] = curves["ours"][:2]
    assert quality.summarise(curves)["above_from_minute"] is None
