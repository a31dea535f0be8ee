import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nblib.files import ROOT, sha256_file
from nblib.model.encoder import NeuralSparseEncoder
from nblib.objective import IDFAwareLoss
from nblib.train.callbacks import Guard, TrainingDiverged, read_log
from nblib.train.checkpoints import last_checkpoint, prepare_resume
from nblib.train.collator import Collator
from nblib.train.config import head_parameters, make_optimizer
from nblib.train.data import TrainingSet, load_training_set
from nblib.train.schedule import ramp
from nblib.train.sparse import plan_batches
from nblib.train.step import train_step
from nblib.train.trainer import document_terms
from tests.train.small_run import CONFIG


def run(backbone, folder, out, kill_at=0):
    command = [
        sys.executable,
        str(Path(__file__).with_name("small_run.py")),
        str(backbone),
        str(folder),
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(kill_at)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == (-9 if kill_at else 0), done.stderr[-2000:]


def test_ramp_by_hand():
    assert [ramp(s, 4) for s in (0, 1, 2, 4, 9)] == [0.0, 0.0625, 0.25, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


def test_killed_run_resumes_to_the_same_bits(tiny_backbone, mined_set, tmp_path):
    run(tiny_backbone, mined_set, tmp_path / "whole")
    run(tiny_backbone, mined_set, tmp_path / "killed", kill_at=5)
    assert last_checkpoint(tmp_path / "killed").endswith("checkpoint-4")
    assert not (tmp_path / "killed" / "final_model").exists()
    run(tiny_backbone, mined_set, tmp_path / "killed")
    weights = "final_model/model.safetensors"
    assert sha256_file(tmp_path / "killed" / weights) == sha256_file(tmp_path / "whole" / weights)
    assert sha256_file(tmp_path / "whole" / weights) != sha256_file(tiny_backbone / "model.safetensors")
    logs = [read_log(tmp_path / name / "training_log.jsonl") for name in ("whole", "killed")]
    assert [row["step"] for row in logs[1]] == list(range(1, 9)), "no step twice, none missing"
    for whole, resumed in zip(*logs, strict=True):
        assert whole["kl"] == resumed["kl"] and whole["lambda"] == resumed["lambda"]
    wanted = {"loss", "kl", "infonce", "flops", "lexical", "lambda", "q_nnz", "d_nnz", "learning_rate"}
    assert wanted | {"examples_per_s", "grad_norm"} <= logs[0][0].keys()
    assert len(list((tmp_path / "whole").glob("checkpoint-*"))) == 2, "save_total_limit"
    before = sha256_file(tmp_path / "whole" / weights)
    run(tiny_backbone, mined_set, tmp_path / "whole")  # nothing is left to do
    assert sha256_file(tmp_path / "whole" / weights) == before
    assert len(read_log(tmp_path / "whole" / "training_log.jsonl")) == 8
    assert list((tmp_path / "whole").rglob("events.out.tfevents*")), "TensorBoard"
    checkpoint = tmp_path / "whole" / "checkpoint-8"
    assert (checkpoint / "neural_sparse_head.pt").exists() and NeuralSparseEncoder.load(checkpoint)


def test_another_configuration_starts_afresh(tmp_path):
    prepare_resume(tmp_path / "a", {"lr": 1}, {"data_dir": "x"})
    (tmp_path / "a" / "checkpoint-4").mkdir()
    (tmp_path / "a" / "checkpoint-4" / "trainer_state.json").write_text("{}")
    prepare_resume(tmp_path / "a", {"lr": 1}, {"data_dir": "x"})
    assert last_checkpoint(tmp_path / "a").endswith("checkpoint-4")
    prepare_resume(tmp_path / "a", {"lr": 2}, {"data_dir": "x"})
    assert last_checkpoint(tmp_path / "a") is None
    assert json.loads((tmp_path / "a" / "training_config.json").read_text()) == {"lr": 2, "data_dir": "x"}
    (tmp_path / "a" / "checkpoint-4").mkdir()
    prepare_resume(tmp_path / "a", {"lr": 2}, {"data_dir": "moved"})
    assert (tmp_path / "a" / "checkpoint-4").exists(), "the place of the inputs does not count"


def test_a_torn_checkpoint_is_not_resumed(tmp_path):
    for step, state in ((2, "{}"), (4, '{"half')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-6").mkdir()
    assert last_checkpoint(tmp_path).endswith("checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()


def test_two_learning_rates(tiny_backbone):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    optimizer = make_optimizer(encoder, CONFIG)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(encoder.parameters()))
    head = {id(p) for p in head_parameters(encoder)}
    assert {rate[i] for i in head} == {2e-3} and {r for i, r in rate.items() if i not in head} == {1e-3}
    assert rate[id(encoder.decoder.weight)] == 1e-3, "the tied embedding belongs to the encoder"


def test_train_step_learns(tiny_backbone, mined_set):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.set_dropout(0.0)
    data = load_training_set(mined_set, num_hard_negatives=2)
    batch = Collator(data, encoder.tokenizer, 32)(data.rows[:6])
    loss_fn = IDFAwareLoss([1.0] * encoder.vocab_size, encoder.vocab_size, 1e-4, infonce_weight=1.0)
    optimizer = make_optimizer(encoder, CONFIG)
    losses = [train_step(batch, encoder, loss_fn, optimizer)["loss"] for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def logs(step, d_nnz, **more):
    state = type("State", (), {"global_step": step})
    return {"state": state, "logs": {"d_nnz": d_nnz, "loss": 1.0, **more}}


@pytest.mark.parametrize(
    ("d_nnz", "words"), [(0.2, "collapse to zero.*lambda_flops"), (9000.0, "stay dense.*lambda_flops")]
)
def test_guard_names_the_remedy(d_nnz, words):
    guard = Guard(patience=3, min_terms=1.0, dense_terms=3000, ramp_steps=10)
    guard.on_log(None, control=None, **logs(11, d_nnz))
    guard.on_log(None, control=None, **logs(12, d_nnz))
    guard.on_log(None, control=None, **logs(13, 200.0))  # a good step: the count starts again
    guard.on_log(None, control=None, **logs(14, d_nnz))
    guard.on_log(None, control=None, **logs(15, d_nnz))
    with pytest.raises(TrainingDiverged, match=words):
        guard.on_log(None, control=None, **logs(16, d_nnz))


def test_guard_sees_documents_that_all_say_the_same():
    guard = Guard(patience=2, min_terms=1.0, dense_terms=3000, ramp_steps=10)
    for step, overlap in ((9, 1.0), (10, 1.0), (11, 1.0), (12, 0.9), (13, 0.99)):
        guard.on_log(None, control=None, **logs(step, 60.0, overlap=overlap))
    with pytest.raises(
        TrainingDiverged, match="step 14, 2 steps in a row: .*share over 98% of their terms.*learning rates"
    ):
        guard.on_log(None, control=None, **logs(14, 60.0, overlap=0.99))


def test_overlap_by_hand():
    reps = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    # three pairs share 1, 0 and 0 terms; three documents hold 2, 3 and 0
    assert document_terms(reps) == pytest.approx({"d_nnz": 5 / 3, "overlap": (1 / 3) / (5 / 3)})
    assert document_terms(reps[:1]) == {"d_nnz": 2.0, "overlap": 0.0}
    assert document_terms(reps[:0]) == document_terms(reps[2:]) == {"d_nnz": 0.0, "overlap": 0.0}
    assert document_terms(torch.ones(4, 9)) == {"d_nnz": 9.0, "overlap": 1.0}


def test_guard_lets_a_dense_start_pass():
    guard = Guard(patience=1, min_terms=1.0, dense_terms=3000, ramp_steps=10)
    for step in range(1, 11):
        guard.on_log(None, control=None, **logs(step, 9000.0))


def test_guard_stops_at_nan():
    guard = Guard(patience=3, min_terms=1.0, dense_terms=3000, ramp_steps=10)
    with pytest.raises(TrainingDiverged, match="kl not finite.*bf16"):
        guard.on_log(None, control=None, **logs(1, 50.0, kl=float("nan")))
    with pytest.raises(TrainingDiverged, match="grad_norm not finite"):
        guard.on_log(None, control=None, **logs(1, 50.0, grad_norm=float("inf")))
    fp16 = type("Arguments", (), {"fp16": True})  # its loss scaler overflows now and then, and skips the step
    guard.on_log(fp16, control=None, **logs(1, 50.0, grad_norm=float("inf")))


def test_batches_without_contrast_are_refused():
    data = TrainingSet(["q"], ["d"], [(0, 0, [])], {0: {0}}, {0: [0]})
    with pytest.raises(ValueError, match="batch_size 1 without negatives"):
        plan_batches(data, replace(CONFIG, batch_size=1))
    with pytest.raises(ValueError, match="larger than the 1 training rows"):
        plan_batches(data, CONFIG)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_reps_on_cuda_equal_those_on_cpu(tiny_backbone, english_texts):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32).eval()
    here = encoder.encode_documents(english_texts)
    there = encoder.cuda().encode_documents(english_texts)
    assert abs(here - there).max() < 1e-4
