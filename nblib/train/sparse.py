"""Train a sparse encoder: from rows and settings to a model folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from nblib.distributed import device, rank, start, world_size
from nblib.files import atomic_folder
from nblib.losses import idf_vector
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.lora import add_lora
from nblib.model.retriever import SparseRetriever
from nblib.objective import SparseLoss
from nblib.precision import choose_kernels, quick_fp32, resolve_precision
from nblib.query_side import note_weights
from nblib.train.callbacks import DEV_LOG, TRAINING_LOG, Guard, JsonlLog, LiveLine, ReturnMemory
from nblib.train.checkpoints import run_or_resume
from nblib.train.collator import Collator
from nblib.train.config import TrainConfig, make_optimizer, training_arguments
from nblib.train.data import TrainingSet
from nblib.train.plan import BatchPlan
from nblib.train.stages import read_stages
from nblib.train.trainer import SparseTrainer


def train_sparse(
    encoder: NeuralSparseEncoder,
    data: TrainingSet,
    idf,
    config: TrainConfig,
    folder: Path,
    teacher=None,
    label: str = "train",
    callbacks=(),
    evaluate_dev: Callable[[SparseRetriever], dict[str, float]] | None = None,
    stop_ids=(),
    token_cache: Path | None = None,
) -> Path:
    """Train an encoder from the last checkpoint on, if there is one, and write folder / "final_model".

    Started by torchrun, the processes share each batch; the result does not depend on their number.

    Args:
        encoder: the model; changed in place.
        data: training rows.
        idf: [V] query weights.
        config: see TrainConfig.
        folder: receives checkpoint-*/, training_config.json, training_log.jsonl, dev_log.jsonl, tensorboard/,
            final_model/.
        teacher: prepared EnsembleTeacher, or None for contrastive training alone.
        label: name of the loop in the live line.
        callbacks: more TrainerCallbacks.
        evaluate_dev: measures the retriever every config.eval_steps, see nblib.train.dev.
        stop_ids: stop tokens, which the IDF penalty treats harder.
        token_cache: folder that keeps the texts' token ids as files; None holds them in memory.

    Returns:
        The folder of the final model.

    Raises:
        TrainingDiverged: the guard stopped the run.
        ValueError: a batch would have nothing to contrast with, or settings do not fit.
    """
    start()
    check_settings(encoder, config)
    encoder.to(device())  # which kernels are chosen below goes by it
    plan, total_steps = plan_batches(data, config)
    collator = make_collator(encoder, data, config, teacher, token_cache)
    if config.bucket_factor:
        plan.sort_by(collator.row_lengths(data.rows), config.bucket_factor)
    retriever = prepare_retriever(encoder, idf, config)
    trainer = SparseTrainer(
        model=retriever,
        args=training_arguments(folder, config, total_steps),
        train_dataset=data,
        eval_dataset=data if evaluate_dev else None,  # the Trainer wants one; evaluate() takes evaluate_dev
        data_collator=collator,
        optimizers=(make_optimizer(encoder, config, retriever.query_weights), None),
        callbacks=[*_hooks(config, folder, label, encoder.vocab_size), *callbacks],
        loss_fn=SparseLoss(
            retriever.idf.detach(),
            config.loss_weights(),
            encoder.special_ids,
            stop_ids,
            idf_vector(idf, encoder.vocab_size, default=0.0),
        ),
        ramp_steps=config.lambda_ramp_steps,
        plan=plan,
        accumulation=config.gradient_accumulation_steps,
        evaluate_dev=evaluate_dev,
    )
    with quick_fp32():
        run_or_resume(trainer, folder)
    if rank() == 0:
        with atomic_folder(folder / "final_model") as tmp:
            encoder.save_pretrained(tmp)
            if config.query_side in ("learned-idf", "binary"):
                retriever.save_query_weights(tmp / "idf.json")
            else:
                note_weights(tmp, retriever.search_idf.detach().cpu().numpy()[: len(encoder.tokenizer)])
    return folder / "final_model"


def _hooks(config: TrainConfig, folder: Path, label: str, vocab_size: int) -> list[TrainerCallback]:
    """List what every run has: a log, a live line, the guard, and the end of a run that gains no more."""
    guard = Guard(config.guard_steps, 1.0, vocab_size / 10, config.lambda_ramp_steps)
    logs = [JsonlLog(folder / TRAINING_LOG), JsonlLog(folder / DEV_LOG, frozenset({"eval_ndcg_at_10"}))]
    hooks = [*logs, LiveLine(label), ReturnMemory(), guard]
    return hooks + ([EarlyStoppingCallback(config.patience, config.min_delta)] if config.patience else [])


def make_collator(
    encoder: NeuralSparseEncoder, data: TrainingSet, config: TrainConfig, teacher, token_cache: Path | None
) -> Collator:
    """Tokenize the texts and say how rows become batches."""
    return Collator(
        data,
        encoder.tokenizer,
        encoder.max_length,
        teacher,
        config.lexical_weight > 0,
        stemmer=config.lexical_stemmer,
        query_max_length=query_cut(encoder, config),
        pad_to_multiple_of=config.pad_to_multiple_of,
        siamese=config.query_side == "siamese",
        sparse=config.workers > 0,  # [Q, V] and [D, V] of zeros are slow to carry from process to process
        cache=token_cache,
    )


def check_settings(encoder: NeuralSparseEncoder, config: TrainConfig) -> None:
    """Refuse settings that do not fit the model or the machine, before any long work.

    Raises:
        ValueError: fp16 without a GPU, or texts longer than the positions.
    """
    if resolve_precision(config.precision) == "fp16" and not torch.cuda.is_available():
        raise ValueError("precision fp16 needs a GPU: take auto, bf16 or fp32 here")
    widest = encoder.max_length + -encoder.max_length % max(config.pad_to_multiple_of, 1)
    longest = query_cut(encoder, config) if config.query_side == "siamese" else 0
    if encoder.positions and max(widest, longest) > encoder.positions:
        raise ValueError(
            f"texts of up to {max(widest, longest)} tokens for {encoder.positions} positions: lower "
            "query_max_length, or take a pad_to_multiple_of that divides the positions"
        )


def query_cut(encoder: NeuralSparseEncoder, config: TrainConfig) -> int:
    """Count the tokens kept per query: 0 for all of a bag, the documents' number for an encoder's pass."""
    return config.query_max_length or (encoder.max_length if config.query_side == "siamese" else 0)


def prepare_retriever(encoder: NeuralSparseEncoder, idf, config: TrainConfig) -> SparseRetriever:
    """Set an encoder up for training as the settings say: kernels, adapters, checkpointing, query side."""
    if config.lora_r:
        add_lora(encoder, config.lora_r, config.lora_alpha, config.lora_dropout)
    choose_kernels(encoder, resolve_precision(config.precision))
    if config.gradient_checkpointing:
        encoder.mlm.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        encoder.mlm.compile(dynamic=True)
    # what a search has to know of it
    encoder.query_side = "idf" if config.query_side == "idf-at-search" else config.query_side
    encoder.query_max_length = query_cut(encoder, config)
    encoder.pad_to_multiple_of = config.pad_to_multiple_of
    return SparseRetriever(encoder, idf, config.query_side)


def plan_batches(data: TrainingSet, config: TrainConfig) -> tuple[BatchPlan, int]:
    """Lay out the batches of all processes, and count the steps of the run.

    Raises:
        ValueError: batches in which a query has nothing but its positive (their loss is zero), a batch larger
            than the rows, or stages and weights that do not fit.
    """
    batch_rows = config.batch_size * config.gradient_accumulation_steps * world_size()
    if batch_rows == 1 and not (data.rows.stops > data.rows.starts).all():
        raise ValueError(
            "batch_size 1 without negatives has a loss of 0: raise batch_size or num_hard_negatives"
        )
    options = {"source": data.source, "mixing": config.mixing or None}
    plan = BatchPlan(len(data), batch_rows, config.seed, **options)
    total_steps = config.total_steps(len(plan))
    if config.stages and total_steps:
        options |= {"difficulty": data.difficulty, "stages": read_stages(config.stages)}
        plan = BatchPlan(len(data), batch_rows, config.seed, total_steps=total_steps, **options)
    return plan, total_steps
