"""What a point of a sweep runs: head, pretraining, finetuning, search, each by the code of 03, 04 and 05."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from nblib import systems
from nblib.evaluate import metrics_row, score_run
from nblib.experiment import EvalSet
from nblib.files import at_root, atomic_folder, read_json, write_json
from nblib.retrieval import search_all
from nblib.run.params import BeirEvalParams, FinetuneParams, PretrainParams
from nblib.search.exact import to_run
from nblib.train import pipeline
from nblib.train.config import TrainConfig
from nblib.train.launch import finetune as train_finetune
from nblib.train.sparse import train_sparse

MODEL = "final_model"
Sets = list[tuple[str, EvalSet, str]]  # role ("dev" or "test"), set, split


def head(params: PretrainParams) -> dict[str, Any]:
    """Warm the head up as 03 does. Returns its row of metrics.json."""
    folder = at_root(params.run_dir) / "artifacts"
    data = pipeline.open_training_set(params)
    encoder, found = pipeline.warm_encoder(params, data.documents, folder)
    if not found["warmed_up"]:  # a backbone with a head of its own: nothing is written yet
        write_json(folder / "warmup.json", found)
        with atomic_folder(folder / MODEL) as tmp:
            encoder.save_pretrained(tmp)
    return pipeline.summary("head", folder / "training_log.jsonl") | found


def pretrain(params: PretrainParams, head_folder: Path) -> dict[str, Any]:
    """Pretrain as 03 does, from a head that is warm. Returns its row of metrics.json."""
    run = pipeline.open_pretraining(params)
    data = pipeline.open_training_set(params)
    encoder, _ = pipeline.warm_encoder(params, data.documents, head_folder / "artifacts")
    idf = pipeline.query_weights(params, encoder)
    teacher = pipeline.prepare_teacher(params, data) if params.num_steps else None
    train_sparse(encoder, data, idf, TrainConfig.from_params(params), run, teacher, label="pretrain")
    return pipeline.summary("pretrain", run / "training_log.jsonl")


def finetune(params: FinetuneParams) -> dict[str, Any]:
    """Finetune as 04 does. Returns its row of metrics.json."""
    run = pipeline.open_finetuning(params)
    data = pipeline.open_training_set(params)
    encoder, idf = pipeline.pretrained_encoder(params)
    train_finetune(params, encoder, data, idf)
    kept = params.early_stop_on if params.patience else ""
    return pipeline.summary("finetune", run / "training_log.jsonl", kept)


def search(params: BeirEvalParams, sets: Sets, cache: Path) -> list[dict[str, Any]]:
    """Search the sets as 05 does with params.systems.

    Args:
        params: 05's; its folders say where models and idf.json are.
        sets: role, set and split.
        cache: folder for encoded documents.

    Returns:
        One row of metrics.json for each set and system, with its role.
    """
    folders = {name: getattr(params, name) for name in ("idf_dir", "pretrain_dir", "model_dir")}
    inputs = systems.check_inputs(params.systems, folders)
    rules = {"top_k": params.top_k, "ignore_identical_ids": params.ignore_identical_ids}
    rows = []
    contenders = systems.build_systems(params.systems, inputs, params, cache)
    for role, data, split in sets:
        for result in search_all(contenders, data.texts, data.queries, params.top_k, scratch=cache / "index"):
            run = to_run(data.query_ids, data.doc_ids, result.index, result.scores)
            found = score_run(data.qrels, run, ignore_identical_ids=params.ignore_identical_ids)
            names = (data.name, split, result.name)
            rows.append({"role": role} | metrics_row(*names, found, result.cost, len(data.texts), **rules))
    return rows


def with_given_idf(model_dir: Path, target: Path) -> Path:
    """Copy a model that was trained with other query weights, so that it is searched with 02's.

    Args:
        model_dir: folder of the training; its model lies in artifacts / "final_model".
        target: made anew, in the same form.

    Returns:
        target.
    """
    shutil.rmtree(target, ignore_errors=True)
    model = target / "artifacts" / MODEL
    shutil.copytree(model_dir / "artifacts" / MODEL, model, ignore=shutil.ignore_patterns("idf.json"))
    write_json(model / "sparse_config.json", read_json(model / "sparse_config.json") | {"query_side": "idf"})
    return target


def digest(data: EvalSet) -> str:
    """Hash what a set holds: documents, queries and judgements, wherever it lay; 64 hex digits."""
    held = sha256()
    for part in (data.doc_ids, data.texts, data.query_ids, data.queries, data.qrels):
        held.update(json.dumps(part).encode())
    return held.hexdigest()
