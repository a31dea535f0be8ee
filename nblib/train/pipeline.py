"""The two training steps as the notebooks 03 and 04 call them, from typed parameters to a model folder."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from nblib.experiment import load_eval_set
from nblib.files import at_root, atomic_folder, read_json, sha256_paths, write_json
from nblib.idf import load_idf
from nblib.model.encoder import CONFIG, NeuralSparseEncoder
from nblib.model.pooling import Pooling
from nblib.query_side import query_weights_file
from nblib.run.keys import data_hashes
from nblib.run.params import Neutral, marked
from nblib.run.progress import report
from nblib.teachers import BM25_PREFIX, EnsembleTeacher, training_pairs
from nblib.train.callbacks import DEV_LOG, read_log
from nblib.train.checkpoints import ENDED, prepare_resume
from nblib.train.config import TrainConfig
from nblib.train.data import TrainingSet, load_training_set
from nblib.train.dev import DevSearch
from nblib.train.warmup import warm_up_head


def built_set(data_dir: str, dataset: str) -> Path:
    """Find a set that 01_data_prep built. Raises FileNotFoundError that names what to run."""
    return built(data_dir, dataset, "01_data_prep", "make the set")


def built(step_dir: str, artifact: str, step: str, what: str) -> Path:
    """Find an artifact of an earlier step.

    Raises:
        FileNotFoundError: it is not there; the message names the two ways to get it.
    """
    path = at_root(step_dir) / "artifacts" / artifact
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. Run notebook {step} first ({what}), or point the parameter at a "
            f'finished run, such as "outputs/quick/{step}" after `make run`'
        )
    return path


def open_pretraining(params) -> Path:
    """Check the inputs of 03 and open its artifacts folder, see _open_run."""
    sets = [params.dataset, *params.more_datasets]
    return _open_run(params, [*(built_set(params.data_dir, name) for name in sets), _idf_file(params)])


def open_finetuning(params) -> Path:
    """Check the inputs of 04 and open its artifacts folder, see _open_run."""
    sets = [params.dataset, *params.more_datasets, *filter(None, [params.dev_set])]
    inputs = [built_set(params.data_dir, name) for name in sets]
    return _open_run(params, [*inputs, _idf_file(params), _pretrained(params)])


def open_speed(params) -> Path:
    """Check the inputs of 12 and open its artifacts folder, see _open_run."""
    sets = [built_set(params.data_dir, name) for name in (params.dataset, params.dev_set)]
    return _open_run(params, [*sets, _idf_file(params), _pretrained(params)])


def _idf_file(params) -> Path:
    return built(params.idf_dir, "idf.json", "02_idf", "count the corpus")


def _pretrained(params) -> Path:
    return built(params.pretrain_dir, "final_model", "03_pretrain", "warm up and pretrain")


def query_weights(params, encoder: NeuralSparseEncoder) -> np.ndarray:
    """Read 02's idf.json as [V] float32 over the encoder's tokens."""
    return load_idf(_idf_file(params), encoder.tokenizer)


def pretrained_model(params) -> Path:
    """Name the folder of 03's model."""
    return _pretrained(params)


def pretrained_encoder(params) -> tuple[NeuralSparseEncoder, np.ndarray]:
    """Load 03's model for finetuning, and its query weights [V]."""
    folder = _pretrained(params)
    encoder = NeuralSparseEncoder.load(folder, params.max_length)
    encoder.set_dropout(params.dropout)
    learns = params.query_side == "learned-idf"  # and so goes on from what an earlier 04 has learned
    return encoder, load_idf(
        query_weights_file(_idf_file(params), folder) if learns else _idf_file(params), encoder.tokenizer
    )


def _open_run(params, inputs: list[Path]) -> Path:
    """Open the artifacts folder of a training step: keep it if it is this very run, else clear it.

    Args:
        params: typed parameters of the notebook.
        inputs: files and folders the result depends on; their content counts, not their place.

    Returns:
        run_dir / "artifacts", holding training_config.json.
    """
    folder = at_root(params.run_dir) / "artifacts"
    config = params.model_dump(exclude={"run_dir", *marked(type(params), Neutral)})
    places = {name: config.pop(name) for name in list(config) if name.endswith("_dir")}
    config["inputs_sha256"] = sha256_paths(inputs)
    config["models_sha256"] = data_hashes(type(params), config)  # teachers in folders of this machine
    prepare_resume(folder, config, places)
    return folder


def open_training_set(params) -> TrainingSet:
    """Load the rows that both training steps read."""
    names = [params.dataset, *getattr(params, "more_datasets", [])]
    folders = {name: built_set(params.data_dir, name) for name in names}
    return load_training_set(
        folders if len(names) > 1 else folders[params.dataset],
        params.num_hard_negatives,
        params.max_train_docs,
        hard_negative_ratio=getattr(params, "hard_negative_ratio", 1.0),
        difficulty=bool(getattr(params, "stages", [])),
        lazy=getattr(params, "stream_texts", False),
    )


def cache_folder(params) -> Path:
    """Name the folder beside the run that keeps what several runs share."""
    return at_root(params.run_dir).parent / "cache"


def stop_ids(params, tokenizer) -> list[int]:
    """Look stop_tokens up. Raises ValueError for one that the vocabulary lacks."""
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in params.stop_tokens if token not in vocabulary]:
        raise ValueError(f"stop_tokens {missing}: no tokens of this vocabulary; write them as it does")
    return [vocabulary[token] for token in params.stop_tokens]


def dev_measure(params) -> DevSearch | None:
    """Open the dev set that a training watches; None if it watches none."""
    if not params.eval_steps or not params.dev_set:
        return None
    return DevSearch(load_eval_set(params.dev_set, params.data_dir, "dev"))


def prepare_teacher(params, data: TrainingSet, cached: bool = True) -> EnsembleTeacher | None:
    """Let the teachers read all training texts; embeddings are cached beside the run folder.

    Args:
        params: typed parameters of the notebook.
        data: training rows.
        cached: False computes all anew and keeps nothing, for a clock that counts it.

    Returns:
        The ensemble; None if no teacher has a weight, or no term of the loss reads one.
    """
    option = partial(getattr, params)  # 03 has the two first teachers only
    dense_weight = params.dense_weight if params.dense_teacher else 0.0
    cross, given = option("cross_weight", 0.0), option("given_weight", 0.0)
    more = option("more_teachers", {})
    if not any((dense_weight, params.sparse_weight, cross, given, *more.values())):
        return None
    if not (option("kl_weight", 1.0) or option("margin_mse_weight", 0.0)):
        return None
    if given and data.scores_of is None:
        raise ValueError("given_weight is above 0 but the training rows hold no scores: set it to 0.0")
    teacher = EnsembleTeacher(
        params.dense_teacher,
        option("sparse_teacher", "") or BM25_PREFIX + params.bm25_analyzer,
        dense_weight,
        params.sparse_weight,
        params.scale_constant_S,
        "cuda" if torch.cuda.is_available() else "cpu",
        option("teacher_max_length", 0) or params.max_length,
        option("cross_teacher", ""),
        cross,
        option("normalise_teachers", True),
        data.scores_of,
        given,
        more,
    )
    total = len(data.queries) + len(data.documents)
    return teacher.prepare(
        data.queries,
        data.documents,
        cache_folder(params) if cached else None,
        lambda done: report("embed for the teacher", done, total),
        training_pairs(data.rows) if teacher.wants_pairs else None,
    )


def warm_encoder(params, texts: list[str], folder: Path) -> tuple[NeuralSparseEncoder, dict]:
    """Load the backbone; warm its masked-LM head up if its weights lack one.

    Args:
        params: PretrainParams.
        texts: training documents.
        folder: keeps the warmed-up model, so that an interrupted run does not warm up twice.

    Returns:
        The encoder and what the warm-up did: {"warmed_up", "identity", "bias_shift"}.
    """
    done = folder / "final_model"
    if (done / CONFIG).exists():
        encoder = NeuralSparseEncoder.load(done, params.max_length)
        encoder.set_dropout(params.dropout)
        return encoder, read_json(folder / "warmup.json")
    pooling = Pooling(params.pooling, params.activation, params.activation_threshold)
    encoder = NeuralSparseEncoder(params.backbone, params.max_length, fresh_head=True, pooling=pooling)
    encoder.set_dropout(params.dropout)
    if encoder.has_trained_head:
        return encoder, {"warmed_up": False}
    config = TrainConfig.from_params(
        params,
        num_steps=params.head_steps,
        batch_size=params.head_batch_size,
        learning_rate_head=params.head_learning_rate,
        warmup_steps=params.head_steps // 10,
    )
    found = warm_up_head(
        encoder, texts, config, folder, params.mask_ratio, params.keep_ratio, params.target_active_terms
    )
    write_json(folder / "warmup.json", {"warmed_up": True, **found})
    with atomic_folder(done) as tmp:
        encoder.save_pretrained(tmp)
    return encoder, {"warmed_up": True, **found}


def summary(phase: str, log_file: Path, kept: str = "") -> dict:
    """Average the last tenth of a training log into one row of metrics.json.

    Args:
        phase: name of the row.
        log_file: training_log.jsonl; where dev data were measured, dev_log.jsonl lies beside it, and the row
            also holds what the kept model reached, and whether the run ended early.
        kept: the measure by which the best model was kept, "ndcg_at_10" or "loss"; "" if it is the last.
    """
    log, dev = read_log(log_file), read_log(log_file.with_name(DEV_LOG))
    if not log:
        return {"phase": phase, "steps": 0}
    tail = log[-max(1, len(log) // 10) :]
    names = [name for name, value in tail[-1].items() if isinstance(value, int | float) and name != "step"]
    means = {n: round(sum(row[n] for row in tail if n in row) / len(tail), 6) for n in names}
    row = {"phase": phase, "steps": log[-1]["step"], **means}
    if dev:
        rank = {"ndcg_at_10": lambda line: line["eval_ndcg_at_10"], "loss": lambda line: -line["eval_loss"]}
        best = max(dev, key=rank[kept]) if kept else dev[-1]
        row |= {"dev_ndcg_at_10": best["eval_ndcg_at_10"], "dev_flops": best["eval_flops"]}
        row |= {"dev_step": best["step"], "ended_early": log_file.with_name(ENDED).exists()}
    return row
