"""Real small trainings with each option, on a two-layer model."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from nblib.compatible import query_weights
from nblib.data.difficulty import CLASSES
from nblib.experiment import load_eval_set
from nblib.files import read_json, sha256_file, write_json
from nblib.idf import compute_idf_weights, load_idf
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.lora import add_lora
from nblib.model.padding import pad
from nblib.model.retriever import SparseRetriever
from nblib.objective import SparseLoss
from nblib.query_side import warn_of_other_weights
from nblib.train.callbacks import read_log
from nblib.train.collator import Collator
from nblib.train.data import load_training_set
from nblib.train.dev import DevSearch, contrastive_loss
from nblib.train.sparse import train_sparse
from tests.train.small_run import CONFIG

SMALL = replace(CONFIG, num_steps=3, save_steps=10, lambda_ramp_steps=0, guard_steps=50)


@pytest.fixture(scope="module")
def data(mined_set):
    return load_training_set(mined_set, num_hard_negatives=2)


def train(backbone, data, folder, config=SMALL, dropout=0.0, **more):
    """Train without a teacher: contrast, lexical targets and penalty."""
    encoder = NeuralSparseEncoder(str(backbone), max_length=32)
    encoder.set_dropout(dropout)
    idf = compute_idf_weights(data.documents, encoder.tokenizer)
    return encoder, train_sparse(encoder, data, idf, config, folder, **more)


def test_learned_idf_moves_and_is_saved_with_the_model(tiny_backbone, data, tmp_path):
    config = replace(SMALL, query_side="learned-idf", learning_rate_idf=0.1)
    encoder, folder = train(tiny_backbone, data, tmp_path, config)
    before = torch.tensor(list(compute_idf_weights(data.documents, encoder.tokenizer).values()))
    after = torch.from_numpy(load_idf(folder / "idf.json", encoder.tokenizer))
    assert (after - before).abs().max() > 0.05  # the frozen weights would be equal
    assert (after >= 0).all() and (after[encoder.special_ids] == 0).all()
    assert NeuralSparseEncoder.load(folder).query_side == "learned-idf"


def test_frozen_idf_stays_with_02_and_the_model_knows_it(tiny_backbone, data, tmp_path, capsys):
    encoder, folder = train(tiny_backbone, data, tmp_path)
    assert not (folder / "idf.json").exists()
    for factor, said in ((1.0, 0), (1.01, 1)):
        weights = compute_idf_weights(data.documents, encoder.tokenizer)
        write_json(tmp_path / "idf.json", {token: w * factor for token, w in weights.items()})
        warn_of_other_weights(folder, load_idf(tmp_path / "idf.json", encoder.tokenizer), tmp_path)
        assert capsys.readouterr().out.count("was trained with other IDF") == said


def test_idf_at_search_is_binary_in_training_and_idf_after(tiny_backbone, data, tmp_path):
    """The same weights to the bit as a binary training, in a folder that is searched with IDF."""
    binary = replace(SMALL, query_side="binary")
    _, plain = train(tiny_backbone, data, tmp_path / "binary", binary)
    encoder, folder = train(tiny_backbone, data, tmp_path / "own", replace(SMALL, query_side="idf-at-search"))
    assert sha256_file(folder / "model.safetensors") == sha256_file(plain / "model.safetensors")
    config = read_json(folder / "sparse_config.json")
    assert config["query_side"] == "idf" and not (folder / "idf.json").exists()
    weights = compute_idf_weights(data.documents, encoder.tokenizer)
    write_json(tmp_path / "idf.json", weights)
    loaded = query_weights(tmp_path / "idf.json", folder, encoder.tokenizer)
    np.testing.assert_array_equal(loaded, load_idf(tmp_path / "idf.json", encoder.tokenizer))
    retriever = SparseRetriever(encoder, loaded, "idf-at-search")
    np.testing.assert_array_equal(retriever.search_idf.numpy(), loaded)
    assert set(retriever.idf.detach().unique().tolist()) == {0.0, 1.0}


def test_siamese_training_reads_queries_with_the_encoder(tiny_backbone, data, tmp_path):
    config = replace(SMALL, query_side="siamese")
    encoder, folder = train(tiny_backbone, data, tmp_path, config)
    log = read_log(tmp_path / "training_log.jsonl")
    longest = max(len(ids) for ids in encoder.tokenize(data.queries))
    assert log[0]["q_nnz"] > longest, "a bag holds at most its own tokens"
    assert NeuralSparseEncoder.load(folder).query_side == "siamese"


def test_lora_trains_few_weights_and_is_merged_on_saving(tiny_backbone, data, tmp_path):
    config = replace(SMALL, lora_r=2, learning_rate=1e-2)
    before = NeuralSparseEncoder(str(tiny_backbone), max_length=32).mlm.state_dict()
    encoder, folder = train(tiny_backbone, data, tmp_path, config)
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert trained < 0.3 * sum(p.numel() for p in encoder.parameters())
    after = {n.replace(".base_layer", ""): p for n, p in encoder.mlm.state_dict().items() if "lora" not in n}
    backbone = [n for n in before if n.startswith(encoder.mlm.base_model_prefix + ".")]
    assert all(torch.equal(before[n], after[n]) for n in backbone)
    saved = NeuralSparseEncoder.load(folder)
    assert not any("lora" in name for name in saved.mlm.state_dict())
    texts = data.documents[:6]
    far = abs(saved.encode_documents(texts) - encoder.encode_documents(texts)).max()
    untrained = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    assert far < 1e-5 < abs(saved.encode_documents(texts) - untrained.encode_documents(texts)).max()


@pytest.mark.parametrize("option", [{"lora_r": 2}, {"query_side": "learned-idf"}])
def test_what_the_model_folder_lacks_is_resumed_too(tiny_backbone, data, tmp_path, option):
    config = replace(SMALL, num_steps=4, save_steps=2, learning_rate_idf=0.1, **option)
    whole, _ = train(tiny_backbone, data, tmp_path / "whole", config, dropout=0.1)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    cut, folder = train(tiny_backbone, data, tmp_path / "cut", config, dropout=0.1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    if "query_side" in option:
        kept = tmp_path / "whole" / "final_model" / "idf.json"
        assert read_json(folder / "idf.json") == read_json(kept)


def test_early_stopping_ends_a_run_that_gains_nothing(tiny_backbone, data, mined_set, tmp_path):
    still = {"learning_rate": 1e-12, "learning_rate_head": 1e-12}
    config = replace(SMALL, num_steps=30, eval_steps=2, save_steps=2, patience=2, min_delta=0.001, **still)
    dev = DevSearch(load_eval_set(str(mined_set), "", "dev"))
    train(tiny_backbone, data, tmp_path, config, evaluate_dev=dev)
    state = read_json(sorted(tmp_path.glob("checkpoint-*"))[-1] / "trainer_state.json")
    assert state["global_step"] == 6  # the first measure is the best, two more gain nothing
    train(tiny_backbone, data, tmp_path, config, evaluate_dev=dev)  # an ended run is not taken up again
    assert not (tmp_path / "checkpoint-8").exists()
    assert state["best_metric"] == pytest.approx(
        [row["eval_ndcg_at_10"] for row in state["log_history"] if "eval_ndcg_at_10" in row][0]
    )


def test_the_best_model_is_kept_not_the_last(tiny_backbone, data, mined_set, tmp_path):
    """The second measure is made worse by a learning rate that ruins the model."""
    ruin = {"learning_rate": 5.0, "learning_rate_head": 5.0, "warmup_steps": 4}
    config = replace(SMALL, num_steps=8, eval_steps=1, save_steps=1, patience=3, save_total_limit=9, **ruin)
    dev = DevSearch(load_eval_set(str(mined_set), "", "dev"))
    encoder, _ = train(tiny_backbone, data, tmp_path, config, evaluate_dev=dev)
    state = read_json(sorted(tmp_path.glob("checkpoint-*"), key=os.path.getmtime)[-1] / "trainer_state.json")
    best = NeuralSparseEncoder.load(state["best_model_checkpoint"])
    last = NeuralSparseEncoder.load(tmp_path / f"checkpoint-{state['global_step']}")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), best.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(encoder.parameters(), last.parameters(), strict=True))


def test_a_resumed_run_remembers_how_long_it_has_waited(tiny_backbone, data, mined_set, tmp_path):
    """Patience 2 and no gain: killed after the first measure in vain, it waits for one more, not for two."""
    still = {"learning_rate": 1e-12, "learning_rate_head": 1e-12}
    config = replace(SMALL, num_steps=30, eval_steps=2, save_steps=2, patience=2, min_delta=0.001, **still)
    dev = DevSearch(load_eval_set(str(mined_set), "", "dev"))
    options = {"evaluate_dev": dev, "callbacks": [StopAt(4)]}
    train(tiny_backbone, data, tmp_path, config, **options)
    (tmp_path / "ended_early.json").unlink()  # a killed run would not have written it
    train(tiny_backbone, data, tmp_path, config, evaluate_dev=dev)
    assert (tmp_path / "checkpoint-6").exists() and not (tmp_path / "checkpoint-8").exists()
    steps = [row["step"] for row in read_log(tmp_path / "dev_log.jsonl")]
    assert steps == [2, 4, 6], "each measure once, before and after the cut"


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def test_contrastive_loss_by_hand():
    """One query: relevant document 7 scores 1, the others that were found 1 and 0; no hit beyond them."""
    scores = torch.tensor([[1.0, 1.0, 0.0, -1e9]]).numpy()
    index = torch.tensor([[7, 3, 4, -1]]).numpy()
    e = torch.e
    want = -torch.tensor(e / (e + e + 1)).log().item()
    assert contrastive_loss(scores, index, [{7: 1.0}]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "rates"),
    [
        ({"lr_scheduler": "linear", "warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3]),
        ({"lr_scheduler": "cosine", "warmup_steps": 0}, [1, 0.853553, 0.5, 0.146447]),
        ({"lr_scheduler": "constant", "warmup_ratio": 0.5}, [0, 0.5, 1, 1]),
    ],
)
def test_schedules_by_hand(tiny_backbone, data, tmp_path, option, rates):
    train(tiny_backbone, data, tmp_path, replace(SMALL, num_steps=4, **option))
    got = [row["learning_rate"] / SMALL.learning_rate for row in read_log(tmp_path / "training_log.jsonl")]
    assert got == pytest.approx(rates, abs=1e-5)


def test_epochs_replace_steps(tiny_backbone, data, tmp_path):
    train(tiny_backbone, data, tmp_path, replace(SMALL, num_epochs=1.5))
    batches = len(data) // SMALL.batch_size
    assert len(read_log(tmp_path / "training_log.jsonl")) == -(-3 * batches // 2)


def test_a_finished_run_takes_no_further_step(tiny_backbone, data, tmp_path):
    """It ends in mid-epoch at a full learning rate, so one step more would show."""
    config = replace(SMALL, num_steps=3, save_steps=3, lr_scheduler="constant", warmup_steps=0)
    assert config.num_steps % (len(data) // config.batch_size)
    first, _ = train(tiny_backbone, data, tmp_path, config)
    again, _ = train(tiny_backbone, data, tmp_path, config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert len(read_log(tmp_path / "training_log.jsonl")) == 3


def test_wandb_offline_keeps_the_run(tiny_backbone, data, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an option of the user's")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    train(tiny_backbone, data, tmp_path / "run", replace(SMALL, wandb=True))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list((tmp_path / "run" / "tensorboard").glob("events*")), "TensorBoard is written in any case"


def gradients(encoder, batch, seed=5):
    """Gradient of a loss over all documents of a batch, with dropout."""
    torch.manual_seed(seed)
    encoder.train()
    encoder.zero_grad()
    idf = torch.ones(encoder.vocab_size)
    loss = SparseLoss(idf, replace(SMALL, lexical_weight=0.0).loss_weights())
    reps = encoder(*batch)
    loss(reps[:4].detach(), reps, torch.eye(4, len(reps), dtype=torch.bool))["loss"].backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def test_gradcache_equals_the_uncached_gradient_with_dropout(tiny_backbone, data, monkeypatch):
    from nblib.model import encoder as module

    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.set_dropout(0.2)
    batch = pad(encoder.tokenize(data.documents[:10]), encoder.tokenizer.pad_token_id)
    encoder.mini_batch, calls = 3, []
    kept = module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda f, *a, **k: calls.append(1) or kept(f, *a, **k))
    cached = gradients(encoder, batch)
    assert len(calls) == 4  # slices of 3, 3, 3 and 1 documents
    monkeypatch.setattr(module, "checkpoint", lambda f, *a, **k: f(*a))
    plain = gradients(encoder, batch)
    other = gradients(encoder, batch, seed=6)
    assert all(torch.equal(cached[n], plain[n]) for n in plain)
    assert not all(torch.allclose(other[n], plain[n]) for n in plain), "dropout made no difference"


def test_gradient_checkpointing_changes_no_gradient(tiny_backbone, data):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.set_dropout(0.0)
    batch = pad(encoder.tokenize(data.documents[:6]), encoder.tokenizer.pad_token_id)
    plain = gradients(encoder, batch)
    encoder.mlm.gradient_checkpointing_enable({"use_reentrant": False})
    checked = gradients(encoder, batch)
    assert all(torch.allclose(checked[n], plain[n], atol=1e-6) for n in plain)


def test_gradcache_goes_with_gradient_checkpointing(tiny_backbone, data):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.set_dropout(0.2)
    batch = pad(encoder.tokenize(data.documents[:6]), encoder.tokenizer.pad_token_id)
    encoder.mini_batch = 2
    cached = gradients(encoder, batch)
    encoder.mlm.gradient_checkpointing_enable({"use_reentrant": False})
    both = gradients(encoder, batch)
    assert all(torch.allclose(both[n], cached[n], atol=1e-6) for n in cached)


@pytest.mark.parametrize(
    "option",
    [
        {"gradient_checkpointing": True},
        {"precision": "bf16"},
        {"query_side": "binary"},
        {"gradient_accumulation_steps": 2, "lora_r": 2},
        {"num_cycles": 1.5, "lr_scheduler": "cosine", "max_grad_norm": 0.01},
        {"early_stop_on": "loss", "eval_steps": 1, "patience": 3, "save_steps": 1},
    ],
)
def test_options_train_a_model_that_learns(tiny_backbone, data, mined_set, tmp_path, option):
    """Each option goes through the whole trainer; the loss of the same batch falls."""
    config = replace(SMALL, num_steps=6, learning_rate=3e-3, learning_rate_head=3e-3, **option)
    dev = DevSearch(load_eval_set(str(mined_set), "", "dev")) if config.eval_steps else None
    whole = replace(config, batch_size=len(data) // config.gradient_accumulation_steps)
    train(tiny_backbone, data, tmp_path, whole, evaluate_dev=dev)
    losses = [row["loss"] for row in read_log(tmp_path / "training_log.jsonl")]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_fp16_is_refused_without_a_gpu(tiny_backbone, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(tiny_backbone, data, tmp_path, replace(SMALL, precision="fp16"))


def test_batches_reach_the_backbone_as_wide_as_they_were_padded(tiny_backbone, data, tmp_path, monkeypatch):
    widths, plain = [], NeuralSparseEncoder._backbone

    def spy(self, ids, mask):
        widths.append(ids.shape[1])
        return plain(self, ids, mask)

    monkeypatch.setattr(NeuralSparseEncoder, "_backbone", spy)
    train(tiny_backbone, data, tmp_path / "a", replace(SMALL, pad_to_multiple_of=7))
    assert widths and all(width % 7 == 0 for width in widths)
    widths.clear()
    train(tiny_backbone, data, tmp_path / "b", SMALL)
    assert any(width % 7 for width in widths)


def test_siamese_queries_carry_a_penalty_of_their_own(tiny_backbone, data, tmp_path):
    terms = []
    for weight in (0.0, 1.0):
        config = replace(SMALL, num_steps=8, query_side="siamese", lambda_flops_queries=weight)
        train(tiny_backbone, data, tmp_path / f"{weight}", replace(config, learning_rate=5e-3))
        terms.append(read_log(tmp_path / f"{weight}" / "training_log.jsonl"))
    assert "query_flops" not in terms[0][0] and terms[1][0]["query_flops"] > 0
    assert terms[1][0]["q_nnz"] == terms[0][0]["q_nnz"] and terms[1][-1]["q_nnz"] < terms[0][-1]["q_nnz"]


def test_long_siamese_queries_are_cut_at_the_encoders_length(tiny_backbone, data):
    from nblib.train.sparse import make_collator

    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=6)
    assert max(len(ids) for ids in encoder.tokenizer(data.queries)["input_ids"]) > 6
    for option, width in (({}, 6), ({"query_max_length": 5}, 5)):
        config = replace(SMALL, query_side="siamese", **option)
        assert make_collator(encoder, data, config, None, None).q_store.lengths.max() == width


def test_adapters_start_as_nothing(tiny_backbone, data):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    before = encoder.encode_documents(data.documents[:4])
    add_lora(encoder, rank=2)
    assert abs(encoder.encode_documents(data.documents[:4]) - before).max() < 1e-6


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_backbone_gives_the_same_reps(tiny_backbone, data):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32).eval()
    before = encoder.encode_documents(data.documents[:5])
    encoder.mlm.compile(dynamic=True)
    assert abs(encoder.encode_documents(data.documents[:5]) - before).max() < 1e-5


@pytest.mark.parametrize("workers", [0, 2])
def test_texts_in_files_and_workers_train_the_same_model(tiny_backbone, data, mined_set, tmp_path, workers):
    """Token ids come from mapped files and, with workers, batches as sparse tensors: not a bit differs."""
    streamed = load_training_set(mined_set, num_hard_negatives=2, lazy=True)
    config = replace(SMALL, workers=workers, bucket_factor=2)
    encoder, _ = train(tiny_backbone, streamed, tmp_path / "a", config, token_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("tokens-*.npy"))) == 4
    other, _ = train(tiny_backbone, data, tmp_path / "b", replace(config, workers=0))
    before = NeuralSparseEncoder(str(tiny_backbone)).mlm.state_dict()
    state = other.mlm.state_dict()
    for name, value in encoder.mlm.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in state.items()), "nothing was trained"


def test_two_sets_and_a_curriculum_end_to_end(tiny_backbone, mined_set, tmp_path):
    """The batches of a training are those of its plan: one set each, easy rows first."""
    both = load_training_set({"a": mined_set, "b": mined_set}, 2, difficulty=True)
    classes = sorted({CLASSES[c] for c in both.difficulty})
    counts = {name: int((both.difficulty == CLASSES.index(name)).sum()) for name in classes}
    first = max(counts, key=counts.get)
    stages = [{"step": [0, 2], "difficulty": first}, {"step": [2, 9], "difficulty": classes}]
    config = replace(SMALL, num_steps=4, batch_size=2, stages=stages, mixing=[3.0, 1.0])
    seen, plain = [], Collator.__call__

    class Spy(Collator):
        def __call__(self, rows):
            seen.append(rows)
            return plain(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nblib.train.sparse.Collator", Spy)
        train(tiny_backbone, both, tmp_path, config)
    where = {str(row): i for i, row in enumerate(both.rows)}
    batches = [[where[str(row)] for row in rows] for rows in seen[:4]]
    assert all(len({both.source[i] for i in batch}) == 1 for batch in batches)
    assert {CLASSES[both.difficulty[i]] for batch in batches[:2] for i in batch} == {first}


def test_a_curriculum_needs_rows_of_its_classes(tiny_backbone, mined_set, tmp_path):
    rows = load_training_set(mined_set, num_hard_negatives=2, difficulty=True)
    stages = json.loads('[{"step": [0, 2], "difficulty": "easy"}, {"step": [2, 9], "difficulty": "hard"}]')
    with pytest.raises(ValueError, match="which make no batch of 18"):
        train(tiny_backbone, rows, tmp_path, replace(SMALL, batch_size=18, stages=stages))
