"""transformers.Trainer for a sparse encoder: our loss, learning rates and checkpoints; the rest is theirs."""

import inspect
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint

from nblib.files import atomic_folder, read_json, write_json
from nblib.losses import IDFAwareLoss
from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import choose_attention, resolve_precision
from nblib.train.callbacks import Guard, JsonlLog, LiveLine, ReturnMemory
from nblib.train.data import Collator, TrainingSet
from nblib.train.schedule import ramp


@dataclass(frozen=True)
class TrainConfig:
    """What a training run needs to know; the names are those of the notebooks' parameters.

    batch_size counts rows (a positive and its negatives each) per process; lengths of schedules are in
    optimizer steps. precision: auto, fp32, bf16 or fp16.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    learning_rate_head: float
    warmup_steps: int
    lambda_flops: float
    lambda_ramp_steps: int
    infonce_weight: float
    temperature: float
    precision: str
    save_steps: int
    save_total_limit: int
    seed: int
    lexical_weight: float = 0.0
    gradient_accumulation_steps: int = 1
    guard_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    @classmethod
    def from_params(cls, params, **changes) -> "TrainConfig":
        """Take the fields of the same names from a notebook's typed parameters; `changes` go first."""
        names = inspect.signature(cls).parameters
        values = {name: value for name, value in params.model_dump().items() if name in names}
        return cls(**values | changes)


def training_arguments(folder: Path, config: TrainConfig, **more) -> TrainingArguments:
    """Map our names onto the Trainer's; everything random follows config.seed."""
    precision = resolve_precision(config.precision)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.num_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="linear",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN must be seen, not replaced by the mean
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        report_to=[],  # EncoderTrainer adds TensorBoard, in a folder of a fixed name
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        **more,
    )


class EncoderTrainer(Trainer):
    """Keep checkpoints as model folders that NeuralSparseEncoder.load opens, and log named loss terms."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = False  # compute_loss returns a mean over its batch
        self.terms: dict[str, float] = {}
        self.remove_callback(PrinterCallback)
        self.add_callback(TensorBoardCallback(SummaryWriter(str(Path(self.args.output_dir) / "tensorboard"))))
        self.seen, self.since = 0, time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now = time.perf_counter()
        if "loss" in logs and self.terms:
            speed = {"examples_per_s": round(self.seen / (now - self.since), 2)}
            logs = {**logs, **self.terms, **speed}
            self.seen, self.since = 0, now
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = NeuralSparseEncoder.load(resume_from_checkpoint)
        self.model.mlm.load_state_dict(saved.mlm.state_dict())


class SparseTrainer(EncoderTrainer):
    """Train documents against IDF-weighted query bags: ranking loss + lambda(t) x FLOPS."""

    def __init__(self, *args, loss_fn: IDFAwareLoss, ramp_steps: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.loss_fn = loss_fn.to(self.args.device)
        self.ramp_steps = ramp_steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Give the Trainer the loss of one batch of nblib.train.data.Collator; note its terms for the log."""
        d_reps = model(inputs["input_ids"], inputs["attention_mask"])  # [D, V]
        share = ramp(self.state.global_step, self.ramp_steps)
        q_bags, positives = inputs["q_bags"], inputs["positives"]
        lexical = inputs.get("lexical")
        terms = self.loss_fn(q_bags, d_reps, inputs.get("teacher"), positives, share, lexical)
        self.terms = {name: float(value.detach()) for name, value in terms.items() if name != "loss"}
        self.terms |= {
            "lambda": self.loss_fn.lambda_flops * share,
            "q_nnz": float((q_bags * self.loss_fn.idf).count_nonzero(dim=1).float().mean()),
            "d_nnz": float(d_reps.detach().count_nonzero(dim=1).float().mean()),
        }
        self.seen += len(d_reps)
        return (terms["loss"], d_reps) if return_outputs else terms["loss"]


def head_parameters(encoder: NeuralSparseEncoder) -> list[nn.Parameter]:
    """List the masked-LM head's own parameters: transform and bias, not the tied embedding."""
    prefix = encoder.mlm.base_model_prefix + "."
    return [p for name, p in encoder.mlm.named_parameters() if not name.startswith(prefix)]


def make_optimizer(encoder: NeuralSparseEncoder, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the encoder and the head at their own learning rates; no decay on biases and norms."""
    head = {id(p) for p in head_parameters(encoder)}
    groups = []
    for in_head, rate in ((False, config.learning_rate), (True, config.learning_rate_head)):
        params = [p for p in encoder.parameters() if p.requires_grad and (id(p) in head) is in_head]
        groups.append({"params": [p for p in params if p.ndim > 1], "lr": rate})
        groups.append({"params": [p for p in params if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def prepare_resume(folder: Path, config: dict, places: dict) -> None:
    """Keep the checkpoints of this very run to go on from; clear what another configuration left.

    Args:
        folder: of the checkpoints and training_config.json.
        config: everything that decides the result; it is written, or compared with what is there.
        places: where the inputs lay; written beside it, not compared, since their content is.
    """
    file = folder / "training_config.json"
    same = file.exists() and {k: v for k, v in read_json(file).items() if k not in places} == config
    if folder.exists() and not same:
        shutil.rmtree(folder)
    write_json(file, config | places)


def last_checkpoint(folder: Path) -> str | None:
    """Name the newest complete checkpoint; remove those that a killed run left half-written."""
    for torn in folder.glob("checkpoint-*"):
        try:
            json.loads((torn / "trainer_state.json").read_text())  # the Trainer writes it last
        except (OSError, ValueError):
            shutil.rmtree(torn)
    return get_last_checkpoint(str(folder)) if folder.exists() else None


def run_or_resume(trainer: EncoderTrainer, folder: Path) -> None:
    """Train from the last checkpoint on; a run that had reached its last step only loads that checkpoint."""
    steps, checkpoint = trainer.args.max_steps, last_checkpoint(folder)
    if checkpoint and int(checkpoint.rpartition("-")[2]) >= steps:
        trainer._load_from_checkpoint(checkpoint)  # the Trainer would take one step more
    elif steps:
        trainer.train(resume_from_checkpoint=checkpoint)


def train_sparse(
    encoder: NeuralSparseEncoder,
    data: TrainingSet,
    idf,
    config: TrainConfig,
    folder: Path,
    teacher=None,
    label: str = "train",
    callbacks=(),
) -> Path:
    """Train an encoder from the last checkpoint on, if there is one, and write folder / "final_model".

    Args:
        encoder: the model; changed in place.
        data: training rows.
        idf: [V] query weights.
        config: see TrainConfig.
        folder: receives checkpoint-*/, training_config.json, training_log.jsonl, tensorboard/, final_model/.
        teacher: prepared EnsembleTeacher, or None for contrastive training alone.
        label: name of the loop in the live line.
        callbacks: more TrainerCallbacks.

    Returns:
        The folder of the final model.

    Raises:
        TrainingDiverged: the guard stopped the run.
        ValueError: a batch would have nothing to contrast with.
    """
    check_contrast(data, config)
    loss_fn = IDFAwareLoss(
        idf,
        encoder.vocab_size,
        config.lambda_flops,
        infonce_weight=config.infonce_weight,
        temperature=config.temperature,
        lexical_weight=config.lexical_weight,
    )
    choose_attention(encoder, resolve_precision(config.precision))
    lexical = config.lexical_weight > 0
    guard = Guard(config.guard_steps, 1.0, encoder.vocab_size / 10, config.lambda_ramp_steps)
    trainer = SparseTrainer(
        model=encoder,
        args=training_arguments(folder, config),
        train_dataset=data,
        data_collator=Collator(data, encoder.tokenizer, encoder.max_length, teacher, lexical),
        optimizers=(make_optimizer(encoder, config), None),
        callbacks=[
            JsonlLog(folder / "training_log.jsonl"),
            LiveLine(label),
            ReturnMemory(),
            guard,
            *callbacks,
        ],
        loss_fn=loss_fn,
        ramp_steps=config.lambda_ramp_steps,
    )
    run_or_resume(trainer, folder)
    with atomic_folder(folder / "final_model") as tmp:
        encoder.save_pretrained(tmp)
    return folder / "final_model"


def check_contrast(data: TrainingSet, config: TrainConfig) -> None:
    """Refuse batches in which a query has nothing but its positive: their loss is zero."""
    if config.batch_size == 1 and not any(negatives for _, _, negatives in data.rows):
        raise ValueError(
            "batch_size 1 without negatives has a loss of 0: raise batch_size or num_hard_negatives"
        )
    if config.num_steps and len(data) < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the {len(data)} training rows: lower batch_size"
        )
