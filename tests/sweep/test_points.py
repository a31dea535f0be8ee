"""Points on real files and a two-layer model: the same training as 03 and 04, reused, resumed, in parts."""

import os

import pytest
import torch

from nblib.files import ROOT, read_json
from nblib.model.encoder import NeuralSparseEncoder
from nblib.run.keys import cell_defaults
from nblib.run.lock import Locked, locked
from nblib.run.params import AblationParams, FinetuneParams, ParetoParams
from nblib.sweep import points as running
from nblib.sweep.ablation import ablation_points, chosen_variants
from nblib.sweep.layout import open_base, stages_of
from nblib.sweep.pareto import lambda_points
from nblib.sweep.points import SweepIncomplete, metrics, require_all, run_points
from nblib.train import pipeline
from nblib.train.callbacks import TrainingDiverged, read_log
from nblib.train.launch import finetune
from nblib.train.trainer import SparseTrainer

SMALL = {
    "dataset": "set", "dense_teacher": "", "dense_weight": 0.0, "max_length": 32, "max_train_docs": 0,
    "batch_size": 4, "num_hard_negatives": 2, "warmup_steps": 1, "lambda_ramp_steps": 2, "precision": "fp32",
    "save_steps": 2,
}  # fmt: skip
PRETRAIN = SMALL | {"head_steps": 2, "head_batch_size": 4, "num_steps": 2, "target_active_terms": 60}
FINETUNE = SMALL | {"num_steps": 4}
EVALUATION = {"datasets": ["set"], "max_length": 32}


@pytest.fixture(scope="module")
def start(steps, tiny_backbone):
    """Folders as 01, 02 and 03 leave them, and the backbone."""
    folders = {name: steps[name] for name in ("data_dir", "idf_dir")}
    return folders, {"pretrain_dir": steps["pretrain_dir"]}, tiny_backbone


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pareto(start, tmp_path, **change):
    folders, pretrained, _ = start
    own = {
        "finetune": FINETUNE,
        "evaluation": EVALUATION,
        "run_dir": str(tmp_path / "08"),
        "dev_datasets": ["set"],
    }
    params = ParetoParams(
        **cell_defaults(ROOT / "notebooks/08_pareto.ipynb") | folders | pretrained | own | change
    )
    return open_base(params, params.dev_datasets, params.dev_split)


def ablation(start, tmp_path, **change):
    folders, _, backbone = start
    own = {"pretrain": PRETRAIN | {"backbone": str(backbone)}, "finetune": FINETUNE, "evaluation": EVALUATION}
    own |= {"run_dir": str(tmp_path / "13")}
    return open_base(
        AblationParams(**cell_defaults(ROOT / "notebooks/13_ablation.ipynb") | folders | own | change)
    )


def weights(folder):
    return NeuralSparseEncoder.load(folder / "final_model").mlm.state_dict()


def test_a_point_is_the_training_of_04(start, tmp_path):
    base = pareto(start, tmp_path)
    (point,) = lambda_points([0.05], [7])
    (result,) = run_points([point], base, keep_weights=True)
    folders, pretrained, _ = start
    values = cell_defaults(ROOT / "notebooks/04_finetune.ipynb") | FINETUNE | folders | pretrained
    params = FinetuneParams(**values | {"lambda_flops": 0.05, "seed": 7, "run_dir": str(tmp_path / "04")})
    run = pipeline.open_finetuning(params)
    data = pipeline.open_training_set(params)
    finetune(params, *pipeline.pretrained_encoder(params)[:1], data, pipeline.pretrained_encoder(params)[1])
    ours, theirs = weights(stages_of(point, base)[0].folder / "artifacts"), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {(row["role"], row["split"]) for row in result["rows"]} == {("test", "test"), ("dev", "dev")}
    assert result["packages"]["torch"] and result["wall_s"] > 0 and result["git"]
    assert result["stages"]["finetune"]["parts"]["params"]["lambda_flops"] == 0.05
    assert result["stages"]["finetune"]["training"]["steps"] == 4
    assert not list(base.folder.rglob("checkpoint-*"))


def test_parts_reuse_and_another_list(start, tmp_path):
    base, said = pareto(start, tmp_path), []
    first = lambda_points([0.1, 0.01], [7])
    results = run_points(first, base, minutes=1e-9, say=said.append)
    assert [r["point"] for r in results] == ["lambda 0.1"] and said[0] == "0 of 2 points are done"
    with pytest.raises(SweepIncomplete, match=r"1 of 2 points are missing: lambda 0.01 \(seed 7\)"):
        require_all(first, results)
    stamp = (stages_of(first[0], base)[-1].folder / "result.json").stat().st_mtime_ns
    other = lambda_points([0.3, 0.1, 0.01], [7])
    results = run_points(other, base, minutes=1e-9, say=said.append)
    assert "1 of 3 points are done" in said and len(results) == 2
    results = run_points(other, base, say=said.append)
    require_all(other, results)
    assert [row["point"] for row in metrics(results)] == [p.name for p in other for _ in range(2)]
    assert (stages_of(first[0], base)[-1].folder / "result.json").stat().st_mtime_ns == stamp
    assert not list(base.folder.rglob("final_model")), "weights of finished points go"


def test_a_killed_training_goes_on_and_ends_the_same(start, tmp_path, monkeypatch):
    (point,) = lambda_points([0.05], [7])
    whole = pareto(start, tmp_path / "whole")
    run_points([point], whole, keep_weights=True)
    base, compute = pareto(start, tmp_path / "killed"), SparseTrainer.compute_loss

    def killed(trainer, *args, **options):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return compute(trainer, *args, **options)

    monkeypatch.setattr(SparseTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run_points([point], base)
    monkeypatch.undo()
    folder = stages_of(point, base)[0].folder
    assert (folder / "artifacts" / "checkpoint-2").exists() and not (folder / "stage.json").exists()
    (result,) = run_points([point], base, keep_weights=True)
    assert result["stages"]["finetune"]["resumed"]
    assert [row["step"] for row in read_log(folder / "artifacts/training_log.jsonl")] == [1, 2, 3, 4]
    ours, theirs = weights(folder / "artifacts"), weights(stages_of(point, whole)[0].folder / "artifacts")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_makes_another_point(start, tmp_path, monkeypatch):
    (point,) = lambda_points([0.05], [7])
    base = pareto(start, tmp_path)
    key = stages_of(point, base)[-1].key

    def again(**change):
        return stages_of(point, pareto(start, tmp_path, **change))[-1].key

    assert key == again(lambdas=[1.0], seeds=[3], minutes=5.0, keep_weights=True, run_dir=str(tmp_path / "x"))
    assert key == again(finetune=FINETUNE | {"workers": 1}), "it changes no result"
    assert key != again(finetune=FINETUNE | {"learning_rate": 1e-5})
    assert key != again(evaluation=EVALUATION | {"max_length": 16})
    assert key != again(dev_split="train")
    monkeypatch.setitem(base.__dict__, "training", base.training | {"nblib.losses": "changed"})
    assert key != stages_of(point, base)[-1].key
    run_points([point], base, say=lambda _: None)
    said = []
    run_points([point], pareto(start, tmp_path), say=said.append)
    assert said[:2] == [
        "0 of 1 points are done",
        "lambda 0.05, seed 7: anew, finetune: code changed: nblib.losses",
    ]


def test_a_change_of_the_search_repeats_no_training(start, tmp_path, monkeypatch):
    (point,), base = lambda_points([0.05], [7]), pareto(start, tmp_path)
    training, search = (stage.key for stage in stages_of(point, base))
    assert set(base.training) < set(base.searching)
    assert {"nblib.losses", "nblib.objective", "nblib.sweep.stages"} < set(base.training)
    assert {"nblib.retrieval", "nblib.systems"} < set(base.searching) - set(base.training)
    monkeypatch.setitem(base.__dict__, "searching", base.searching | {"nblib.retrieval": "changed"})
    changed = [stage.key for stage in stages_of(point, base)]
    assert changed[0] == training and changed[1] != search


def test_the_ablation_shares_what_variants_have_in_common(start, tmp_path):
    names = ["full", "without IDF", "IDF at inference only", "IDF inside the penalty", "no pretraining"]
    base = ablation(start, tmp_path)
    points = ablation_points(chosen_variants([*names, "InfoNCE pretraining"], {}), [5], 0.01)
    chains = {p.name: [s.folder for s in stages_of(p, base)] for p in points}
    head, pretrain, trained, _ = range(4)
    assert len({c[head] for c in chains.values()}) == 1
    assert chains["full"][pretrain] == chains["IDF inside the penalty"][pretrain]
    assert len({c[pretrain] for c in chains.values()}) == 4
    assert chains["without IDF"][trained] == chains["IDF at inference only"][trained]
    assert len({c[trained] for c in chains.values()}) == 5 and len({c[-1] for c in chains.values()}) == 6
    results = {r["point"]: r for r in run_points(points, base)}
    assert (
        results["without IDF"]["stages"]["finetune"] == results["IDF at inference only"]["stages"]["finetune"]
    )
    rows = {name: r["rows"][0] for name, r in results.items()}
    # The same documents, searched by other weights of the same query terms.
    assert rows["without IDF"]["flops"] == pytest.approx(rows["IDF at inference only"]["flops"])
    log = results["InfoNCE pretraining"]["stages"]["pretrain"]["training"]
    assert (
        "kl" not in log and log["infonce"] > 0 and "kl" in results["full"]["stages"]["pretrain"]["training"]
    )
    assert results["no pretraining"]["stages"]["pretrain"]["training"]["steps"] == 0
    assert "idf_penalty" in results["IDF inside the penalty"]["stages"]["finetune"]["training"]


def test_search_with_idf_differs_from_search_without(start, tmp_path, monkeypatch):
    seen = {}
    encode = NeuralSparseEncoder.encode_queries

    def watched(encoder, queries, idf, *more):
        seen[len(seen)] = set(idf.tolist())
        return encode(encoder, queries, idf, *more)

    monkeypatch.setattr(NeuralSparseEncoder, "encode_queries", watched)
    for name, kinds in (("without IDF", {0.0, 1.0}), ("IDF at inference only", None)):
        seen.clear()
        run_points(ablation_points(chosen_variants([name], {}), [5], 0.0), ablation(start, tmp_path))
        assert seen[0] == kinds if kinds else len(seen[0]) > 10


def test_a_diverged_training_is_a_result(start, tmp_path, monkeypatch):
    def diverges(params):
        raise TrainingDiverged("step 30: the reps collapse to zero")

    monkeypatch.setattr(running.stages, "finetune", diverges)
    points, base = lambda_points([50.0], [7]), pareto(start, tmp_path)
    (result,) = run_points(points, base)
    assert result["rows"] == [] and "collapse" in result["diverged"]
    monkeypatch.setattr(running.stages, "finetune", lambda params: pytest.fail("it was finished"))
    require_all(points, run_points(points, base))


def test_two_sweeps_in_one_folder_are_refused(start, tmp_path):
    base = pareto(start, tmp_path)
    with locked(base.folder), pytest.raises(Locked, match=str(os.getpid())):
        run_points(lambda_points([0.1], [7]), base)


def test_a_torn_result_is_none(start, tmp_path):
    (point,), base = lambda_points([0.1], [7]), pareto(start, tmp_path)
    (result,) = run_points([point], base)
    file = stages_of(point, base)[-1].folder / "result.json"
    file.write_text(file.read_text()[:50])
    (again,) = run_points([point], base)
    assert (
        again["rows"][0]["ndcg_at_10"]
        == result["rows"][0]["ndcg_at_10"]
        == read_json(file)["rows"][0]["ndcg_at_10"]
    )
