"""Relevance on dev data over minutes of training: our recipe and sentence-transformers' for the same model.

Both start from the same weights, rows and IDF. The clock counts what a user waits for, the teacher's
embeddings and every training step; it stands still while dev data are searched.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from nblib.model.encoder import NeuralSparseEncoder
from nblib.run.progress import report
from nblib.speed.rows import row
from nblib.train.config import TrainConfig
from nblib.train.data import TrainingSet
from nblib.train.dev import DevSearch

MARKS = (1, 2, 3, 5, 7.5, 10, 12.5, 15, 20, 30, 45, 60)  # minutes at which dev data are searched
TRIAL = 10  # steps of a run that tells how many steps the budget holds
PEER_RECIPE = {  # sentence-transformers' documentation, inference-free SPLADE
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "warmup_ratio": 0.1,
    "document_regularizer_weight": 3e-3,
}


class Clock(TrainerCallback):
    """Search dev data at the marks, keep the curve, and end the run with the budget.

    Args:
        minutes: the budget.
        spent: seconds that the side used before its first step.
        measure: gives the relevance of the model as it stands.
        label: name of the side in the live line.
    """

    def __init__(self, minutes: float, spent: float, measure, label: str) -> None:
        self.budget, self.measure, self.label = 60 * minutes, measure, label
        self.marks = [60 * m for m in MARKS if m < minutes] + [60 * minutes]
        self.spent, self.curve = spent, []

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock, or go on where a trial had stopped it."""
        self.since = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Search where a mark is passed; end the run where the budget or the steps are used up."""
        seconds = self.spent + time.perf_counter() - self.since
        done = seconds >= self.budget or state.global_step >= state.max_steps
        if done or (self.marks and seconds >= self.marks[0]):
            self.marks = [m for m in self.marks if m > seconds]
            point = {"minutes": round(seconds / 60, 2), "step": state.global_step}
            self.curve.append(point | self.measure())
            self.spent, self.since = seconds, time.perf_counter()
        report(self.label, min(int(seconds), int(self.budget)), int(self.budget))
        control.should_training_stop = control.should_training_stop or done


def ours(
    model: Path,
    data: TrainingSet,
    idf: np.ndarray,
    dev: DevSearch,
    config: TrainConfig,
    minutes: float,
    folder: Path,
    make_teacher,
) -> list[dict]:
    """Train with our trainer for some minutes: the curve, one row per mark.

    Args:
        model: folder of the warmed-up encoder.
        data, idf: rows and [V] query weights.
        dev: measures.
        config: num_steps and schedules are set here; the rest is the recipe.
        minutes: the budget.
        folder: for checkpoints and logs.
        make_teacher: prepares the ensemble on the rows' texts; its time counts.
    """
    from nblib.train.sparse import train_sparse

    start = time.perf_counter()
    teacher = make_teacher()
    spent = time.perf_counter() - start

    def run(steps: int, clock: Clock, name: str) -> None:
        """Train that many steps from the start weights; the clock watches."""
        shutil.rmtree(folder / name, ignore_errors=True)  # a run that was killed is not gone on with
        encoder = NeuralSparseEncoder.load(model)
        encoder.set_dropout(0.0)
        clock.measure = lambda: _measured(dev, encoder, idf)
        plan = replace(
            config,
            num_steps=steps,
            warmup_steps=steps // 20,
            lambda_ramp_steps=steps // 2,
            save_steps=10**9,
        )
        train_sparse(encoder, data, idf, plan, folder / name, teacher, label=name, callbacks=[clock])

    trial = Clock(1e9, 0.0, None, "ours: trial")
    per_step = _trial(lambda clock: run(TRIAL, clock, "ours-trial"), trial)
    steps = int((60 * minutes - spent) / per_step)
    clock = Clock(minutes, spent, None, "ours")
    run(steps, clock, "ours")
    return clock.curve


def peer(
    model: Path,
    data: TrainingSet,
    idf: np.ndarray,
    dev: DevSearch,
    max_length: int,
    minutes: float,
    folder: Path,
    seed: int,
    precision: str,
) -> list[dict]:
    """Train with SparseEncoderTrainer and its documented inference-free recipe: the curve.

    SpladeLoss over SparseMultipleNegativesRankingLoss, frozen IDF; see PEER_RECIPE for the numbers.

    Args:
        model, data, idf, dev, minutes, folder: as for ours.
        max_length: tokens per document.
        seed: of the order.
        precision: "bf16" or "fp32", the faster one for both sides.
    """
    from sentence_transformers import SparseEncoderTrainer

    rows = _columns(data)
    copy = NeuralSparseEncoder.load(model, max_length)  # searches with the peer's weights, fast

    def run(steps: int, clock: Clock, name: str) -> None:
        """Train that many steps from the start weights; the clock watches."""
        encoder = peer_encoder(model, idf, max_length)
        clock.measure = lambda: _measured(dev, _copied(encoder, copy), idf)
        arguments = _peer_arguments(folder / name, steps, rows.column_names, precision, seed)
        trainer = SparseEncoderTrainer(encoder, arguments, rows, loss=_peer_loss(encoder), callbacks=[clock])
        trainer.train()

    per_step = _trial(lambda clock: run(TRIAL, clock, "peer-trial"), Clock(1e9, 0.0, None, "peer: trial"))
    clock = Clock(minutes, 0.0, None, "peer")
    run(int(60 * minutes / per_step), clock, "peer")
    return clock.curve


def peer_encoder(model: Path, idf: np.ndarray, max_length: int):
    """Build sentence-transformers' inference-free SparseEncoder on our warmed-up weights and IDF."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    document = Transformer(str(model), transformer_task="fill-mask", max_seq_length=max_length)
    query = SparseStaticEmbedding(document.tokenizer, torch.from_numpy(idf.copy()).float(), frozen=True)
    router = Router.for_query_document([query], [document, SpladePooling("max")])
    return SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu")


def _peer_arguments(folder: Path, steps: int, columns: list[str], precision: str, seed: int):
    """Lay PEER_RECIPE out as the peer's trainer wants it."""
    from sentence_transformers import SparseEncoderTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers

    return SparseEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=PEER_RECIPE["per_device_train_batch_size"],
        learning_rate=PEER_RECIPE["learning_rate"],
        warmup_steps=round(PEER_RECIPE["warmup_ratio"] * steps),
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        router_mapping={name: "query" if name == "anchor" else "document" for name in columns},
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )


def _peer_loss(encoder):
    """Build SpladeLoss over SparseMultipleNegativesRankingLoss with PEER_RECIPE's weight."""
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

    return SpladeLoss(
        encoder,
        SparseMultipleNegativesRankingLoss(encoder),
        document_regularizer_weight=PEER_RECIPE["document_regularizer_weight"],
        query_regularizer_weight=0,
    )


def _trial(run, clock: Clock) -> float:
    """Time a step: the mean after the first few, which set up threads and kernels."""
    marks: list[float] = []
    clock.on_step_end = lambda args, state, control, **kwargs: marks.append(time.perf_counter())
    clock.on_train_begin = lambda *args, **kwargs: None
    run(clock)
    steps = np.diff(marks)[2:]
    return float(np.mean(steps))


def _columns(data: TrainingSet):
    """Lay rows out as sentence-transformers wants them: anchor, positive, negative_1 .. negative_K."""
    from datasets import Dataset

    k = max(len(negatives) for _, _, negatives in data.rows)
    full = [row for row in data.rows if len(row[2]) == k]
    columns = {"anchor": [data.queries[q] for q, _, _ in full]}
    columns["positive"] = [data.documents[p] for _, p, _ in full]
    for i in range(k):
        columns[f"negative_{i + 1}"] = [data.documents[negatives[i]] for _, _, negatives in full]
    return Dataset.from_dict(columns)


def _copied(encoder, copy: NeuralSparseEncoder) -> NeuralSparseEncoder:
    """Bring the peer's weights into our encoder."""
    state = encoder[0].sub_modules["document"][0].auto_model.state_dict()
    copy.mlm.load_state_dict(state)
    return copy


def _measured(dev: DevSearch, encoder: NeuralSparseEncoder, idf: np.ndarray) -> dict[str, float]:
    return dev.measure(encoder, encoder.encode_queries(dev.data.queries, idf))


def summarise(curves: dict[str, list[dict]]) -> dict:
    """Compare the ends of the two curves: the row "quality_minutes" of metrics.json.

    above_from_minute is the first of our marks from which on ours lies above the peer's curve (between its
    marks a straight line); None if it ends below.
    """
    mine, theirs = curves["ours"], curves["peer"]
    end, other = mine[-1], theirs[-1]
    minutes, heights = [r["minutes"] for r in theirs], [r["ndcg_at_10"] for r in theirs]
    above = None
    for point in reversed(mine):
        if point["ndcg_at_10"] <= np.interp(point["minutes"], minutes, heights):
            break
        above = point["minutes"]
    return row(
        "quality_minutes",
        f"{round(end['minutes'], 1):g} minutes",
        "",
        end["ndcg_at_10"],
        other["ndcg_at_10"],
        "sentence-transformers SparseEncoderTrainer",
        "nDCG@10 on dev",
        less_is_better=False,
        ours_flops=end["flops"],
        peer_flops=other["flops"],
        above_from_minute=above,
    )
