"""From 04's parameters to a trained model: what each of them reaches, on real files and a two-layer model."""

import shutil

import pytest
from pydantic import ValidationError

from nblib.files import ROOT
from nblib.idf import load_idf
from nblib.model.encoder import NeuralSparseEncoder
from nblib.run.keys import cell_defaults
from nblib.run.params import FinetuneParams
from nblib.teachers import Bm25Teacher, SparseTeacher
from nblib.teachers.given import GivenScores
from nblib.train import pipeline
from nblib.train.callbacks import read_log
from nblib.train.launch import finetune
from nblib.train.warmup import shift_bias

CELL = cell_defaults(ROOT / "notebooks" / "04_finetune.ipynb")
SMALL = {
    "dataset": "set",
    "dense_teacher": "",
    "max_length": 32,
    "max_train_docs": 0,
    "num_steps": 4,
    "batch_size": 4,
    "num_hard_negatives": 2,
    "warmup_steps": 1,
    "lambda_ramp_steps": 2,
    "precision": "fp32",
    "guard_steps": 50,
}


def params_of(steps, run_dir, **change):
    return FinetuneParams(**CELL | SMALL | steps | {"run_dir": str(run_dir)} | change)


def trained(params):
    run = pipeline.open_finetuning(params)
    data = pipeline.open_training_set(params)
    encoder, idf = pipeline.pretrained_encoder(params)
    finetune(params, encoder, data, idf)
    return run, read_log(run / "training_log.jsonl")


def test_stop_tokens_and_dev_measures(steps, tmp_path):
    params = params_of(steps, tmp_path / "a", lambda_idf=0.1, dev_set="set", eval_steps=2, save_steps=2)
    run, log = trained(params)
    dev = read_log(run / "dev_log.jsonl")
    assert [row["step"] for row in dev] == [2, 4]
    row = pipeline.summary("finetune", run / "training_log.jsonl")
    assert (row["dev_ndcg_at_10"], row["dev_step"]) == (dev[-1]["eval_ndcg_at_10"], 4)
    assert row["ended_early"] is False and row["steps"] == 4
    best = pipeline.summary("finetune", run / "training_log.jsonl", "loss")
    assert best["dev_step"] == min(dev, key=lambda line: line["eval_loss"])["step"]
    harder = params_of(steps, tmp_path / "b", lambda_idf=0.1, stop_tokens=["the", "a"], stopword_penalty=50.0)
    assert trained(harder)[1][0]["idf_penalty"] > 1.01 * log[0]["idf_penalty"]
    with pytest.raises(ValueError, match="stop_tokens.*'zyx'.*no tokens of this vocabulary"):
        trained(params_of(steps, tmp_path / "c", stop_tokens=["the", "zyx"]))


def test_streamed_texts_and_workers_go_on_where_the_run_was(steps, tmp_path):
    """Neither decides the result, so neither clears the checkpoints."""
    params = params_of(steps, tmp_path / "run", save_steps=2)
    run, log = trained(params)
    stamp = (run / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns
    other = params.model_copy(update={"stream_texts": True, "workers": 2, "save_total_limit": 3})
    trained(other)
    assert (run / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns == stamp
    fresh, again = trained(other.model_copy(update={"run_dir": str(tmp_path / "fresh")}))
    assert [row["loss"] for row in again] == [row["loss"] for row in log]
    assert list((tmp_path / "cache").glob("tokens-*.npy"))
    trained(params.model_copy(update={"learning_rate": 1e-5}))
    assert (run / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns != stamp


def kinds(teacher):
    return [type(one) for one in teacher.teachers]


def test_the_teachers_that_the_parameters_name(steps, tmp_path, tiny_backbone):
    data = pipeline.open_training_set(params_of(steps, tmp_path))
    encoder, sparse_folder = NeuralSparseEncoder(str(tiny_backbone), 32), tmp_path / "sparse"
    shift_bias(encoder, data.documents[:8], 60)  # active terms; a teacher must be sparse
    encoder.save_pretrained(sparse_folder)
    shutil.copy(f"{steps['idf_dir']}/artifacts/idf.json", sparse_folder / "idf.json")

    def prepared(**change):
        return pipeline.prepare_teacher(params_of(steps, tmp_path / "run", **change), data, cached=False)

    assert kinds(prepared()) == [Bm25Teacher]
    assert prepared(sparse_weight=0.0) is None
    assert prepared(kl_weight=0.0) is None, "no term would read its scores"
    assert kinds(prepared(kl_weight=0.0, margin_mse_weight=1.0)) == [Bm25Teacher]
    assert kinds(prepared(sparse_teacher=str(sparse_folder))) == [SparseTeacher]
    both = prepared(more_teachers={f"sparse:{sparse_folder}": 0.5, "bm25:whitespace": 0.0})
    assert kinds(both) == [Bm25Teacher, SparseTeacher] and both.weights == [0.4, 0.5]
    given = prepared(given_weight=1.0, sparse_weight=0.0)
    assert kinds(given) == [GivenScores]
    assert not prepared(teacher_max_length=7, more_teachers={f"sparse:{sparse_folder}": 1.0}).wants_pairs
    short = prepared(teacher_max_length=7, sparse_teacher=str(sparse_folder)).teachers[0]
    assert short.max_length == 7


def test_several_sets_and_a_curriculum(steps, tmp_path, mined_set):
    twin = steps["data_dir"] + "/artifacts/twin"
    shutil.copytree(mined_set, twin, dirs_exist_ok=True)
    stages = [{"step": [0, 9], "difficulty": ["easy", "medium", "hard"]}]
    change = {"more_datasets": ["twin"], "mixing": [1.0, 3.0], "stages": stages, "batch_size": 2}
    params = params_of(steps, tmp_path, **change)
    data = pipeline.open_training_set(params)
    assert data.source_names == ["set", "twin"] and data.difficulty is not None
    assert len(trained(params)[1]) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stop_tokens": ["zyxw"]}, "no tokens of this vocabulary"),
        ({"stages": [{"epoch": [1, 2], "difficulty": "easy"}]}, "must begin at 0"),
        ({"pad_to_multiple_of": 600}, "divides the positions"),
        ({"query_side": "siamese", "query_max_length": 2000}, "lower query_max_length"),
        ({"batch_size": 100}, "larger than the .* training rows"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_teachers(steps, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(pipeline, "prepare_teacher", lambda *_: pytest.fail("the teachers came first"))
    with pytest.raises(ValueError, match=words):
        trained(params_of(steps, tmp_path, **change))


def test_a_teacher_of_another_content_is_another_run(steps, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "note.txt").write_text("one")
    params = params_of(steps, tmp_path / "run", more_teachers={f"sparse:{folder}": 0.0})
    run = pipeline.open_finetuning(params)
    (run / "kept").write_text("")
    assert (pipeline.open_finetuning(params) / "kept").exists()
    (folder / "note.txt").write_text("two")
    assert not (pipeline.open_finetuning(params) / "kept").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patience": 2}, "patience without eval_steps"),
        ({"eval_steps": 5}, "eval_steps without dev_set"),
        (
            {"patience": 2, "eval_steps": 5, "dev_set": "s", "save_steps": 4},
            "save_steps 4 is not eval_steps 5",
        ),
        ({"cross_weight": 0.5}, "cross_weight without cross_teacher"),
        ({"cross_teacher": "a/model"}, "cross_teacher without cross_weight"),
        ({"mixing": [1.0, 2.0]}, "2 weights for 1 data sets"),
        ({"lambda_flops_queries": 0.1}, "its queries are fixed"),
        ({"more_teachers": {"bm25:english": -1.0}}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(steps, tmp_path, change, words):
    with pytest.raises(ValidationError, match=words):
        params_of(steps, tmp_path, **change)


def test_a_training_from_the_result_of_another(steps, tmp_path):
    """04 takes any folder of 03 or 04 as its start."""
    run, _ = trained(params_of(steps, tmp_path / "first", query_side="learned-idf"))
    second = params_of(steps | {"pretrain_dir": str(tmp_path / "first")}, tmp_path / "second")
    start = NeuralSparseEncoder.load(run / "final_model").encode_documents(["a text"])
    encoder, idf = pipeline.pretrained_encoder(second)
    assert abs(encoder.encode_documents(["a text"]) - start).max() < 1e-6
    fixed = load_idf(f"{steps['idf_dir']}/artifacts/idf.json", encoder.tokenizer)
    assert (idf == fixed).all()
    learns = second.model_copy(update={"query_side": "learned-idf"})
    learned = load_idf(run / "final_model" / "idf.json", encoder.tokenizer)
    assert (pipeline.pretrained_encoder(learns)[1] == learned).all() and (learned != fixed).any()
