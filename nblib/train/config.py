"""What a training run needs to know, and how the Trainer and the optimizer are told."""

import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import TrainingArguments

from nblib.distributed import backend, world_size
from nblib.model.encoder import NeuralSparseEncoder
from nblib.objective import LossWeights
from nblib.precision import resolve_precision


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the names are those of the notebooks' parameters.

    batch_size counts rows (a positive and its negatives each) of one process that go through the backbone
    together; a step sees batch_size x gradient_accumulation_steps x processes of them as one batch, whose
    queries and documents all meet. Lengths of schedules are in optimizer steps. precision: auto, fp32, bf16
    or fp16. num_epochs counts passes over the rows and replaces num_steps where it is above 0; warmup_ratio,
    a share of all steps, replaces warmup_steps in the same way. lr_scheduler: linear, cosine (num_cycles; 0.5
    falls to 0 once) or constant. patience: evaluations (every eval_steps) without a gain of min_delta in
    early_stop_on ("ndcg_at_10" or "loss") that end the run; 0 never ends it.
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
    # the loss
    kl_weight: float = 1.0
    margin_mse_weight: float = 0.0
    triplet_weight: float = 0.0
    margin: float = 0.3
    lexical_weight: float = 0.0
    lexical_stemmer: str = ""
    lambda_flops_queries: float = 0.0
    lambda_l1: float = 0.0
    lambda_idf: float = 0.0
    idf_alpha: float = 2.5
    idf_beta: float = 0.3
    stopword_penalty: float = 5.0
    lambda_df: float = 0.0
    anti_zero_weight: float = 0.0
    l0_threshold: int = 0
    # the query side
    query_side: str = "idf"
    learning_rate_idf: float = 1.0e-3
    query_max_length: int = 0
    # batches
    gradient_accumulation_steps: int = 1
    stages: list[dict] = field(default_factory=list)
    mixing: list[float] = field(default_factory=list)
    bucket_factor: int = 0
    pad_to_multiple_of: int = 0
    workers: int = 0
    # optimization
    num_epochs: float = 0.0
    warmup_ratio: float = 0.0
    lr_scheduler: str = "linear"
    num_cycles: float = 0.5
    guard_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    compile: bool = False
    lora_r: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    # what ends a run early, and who hears of it
    eval_steps: int = 0
    patience: int = 0
    min_delta: float = 0.0
    early_stop_on: str = "ndcg_at_10"
    wandb: bool = False

    @classmethod
    def from_params(cls, params, **changes) -> "TrainConfig":
        """Take the fields of the same names from a notebook's typed parameters; `changes` go first."""
        names = inspect.signature(cls).parameters
        values = {name: value for name, value in params.model_dump().items() if name in names}
        return cls(**values | changes)

    def loss_weights(self) -> LossWeights:
        """Name the weights as nblib.losses does."""
        return LossWeights(
            kl=self.kl_weight,
            margin_mse=self.margin_mse_weight,
            infonce=self.infonce_weight,
            triplet=self.triplet_weight,
            lexical=self.lexical_weight,
            flops=self.lambda_flops,
            query_flops=self.lambda_flops_queries,
            l1=self.lambda_l1,
            anti_zero=self.anti_zero_weight,
            idf_penalty=self.lambda_idf,
            df_flops=self.lambda_df,
            temperature=self.temperature,
            margin=self.margin,
            l0_threshold=self.l0_threshold,
            idf_alpha=self.idf_alpha,
            idf_beta=self.idf_beta,
            stopword_penalty=self.stopword_penalty,
        )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Count the optimizer steps of the run."""
        return math.ceil(self.num_epochs * steps_per_epoch) if self.num_epochs else self.num_steps


def training_arguments(folder: Path, config: TrainConfig, total_steps: int) -> TrainingArguments:
    """Map our names onto the Trainer's; everything random follows config.seed."""
    precision = resolve_precision(config.precision)
    on_cpu = not torch.cuda.is_available()
    schedulers = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    warmup = round(config.warmup_ratio * total_steps) if config.warmup_ratio else config.warmup_steps
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=total_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=schedulers[config.lr_scheduler],
        lr_scheduler_kwargs={"num_cycles": config.num_cycles} if config.lr_scheduler == "cosine" else {},
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=on_cpu,
        ddp_backend=backend() if world_size() > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN must be seen, not replaced by the mean
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        eval_strategy="steps" if config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        metric_for_best_model=config.early_stop_on if config.eval_steps else None,
        greater_is_better=config.early_stop_on != "loss" if config.eval_steps else None,
        load_best_model_at_end=config.patience > 0,
        restore_callback_states_from_checkpoint=True,  # how often early stopping has waited in vain
        report_to=["wandb"] if config.wandb else [],  # EncoderTrainer adds TensorBoard itself
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=not on_cpu,
        seed=config.seed,
    )


def head_parameters(encoder: NeuralSparseEncoder) -> list[nn.Parameter]:
    """List the masked-LM head's own parameters: transform and bias, not the tied embedding."""
    prefix = encoder.mlm.base_model_prefix + "."
    return [p for name, p in encoder.mlm.named_parameters() if not name.startswith(prefix)]


def make_optimizer(
    encoder: NeuralSparseEncoder, config: TrainConfig, query_weights: nn.Parameter | None = None
) -> torch.optim.AdamW:
    """AdamW with the encoder, the head and the query weights at their own learning rates.

    No decay on biases, norms and query weights.
    """
    head = {id(p) for p in head_parameters(encoder)}
    groups = []
    for in_head, rate in ((False, config.learning_rate), (True, config.learning_rate_head)):
        params = [p for p in encoder.parameters() if p.requires_grad and (id(p) in head) is in_head]
        groups.append({"params": [p for p in params if p.ndim > 1], "lr": rate})
        groups.append({"params": [p for p in params if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    if query_weights is not None and query_weights.requires_grad:
        groups.append({"params": [query_weights], "lr": config.learning_rate_idf, "weight_decay": 0.0})
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
