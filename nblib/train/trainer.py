"""transformers.Trainer for a sparse encoder: our loss, batches and checkpoints; the rest is theirs."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from nblib.distributed import device, own_share, rank, start, sum_over_processes, world_size
from nblib.files import atomic_folder
from nblib.losses import idf_vector
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.lora import add_lora
from nblib.model.retriever import SparseRetriever
from nblib.objective import SparseLoss
from nblib.precision import choose_kernels, quick_fp32, resolve_precision
from nblib.train.callbacks import DEV_LOG, TRAINING_LOG, Guard, JsonlLog, LiveLine, ReturnMemory
from nblib.train.checkpoints import run_or_resume
from nblib.train.collator import Collator
from nblib.train.config import TrainConfig, make_optimizer, training_arguments
from nblib.train.data import TrainingSet
from nblib.train.plan import BatchPlan, PlannedLoader
from nblib.train.schedule import ramp
from nblib.train.stages import read_stages

TRAINABLE = "trainable.pt"  # in a checkpoint: what the model folder cannot hold


class EncoderTrainer(Trainer):
    """Keep checkpoints as model folders that NeuralSparseEncoder.load opens, and log named loss terms.

    The model is a module with an attribute `encoder`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = False  # compute_loss returns a mean over its batch
        self.terms: dict[str, float] = {}
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero():
            writer = SummaryWriter(str(Path(self.args.output_dir) / "tensorboard"))
            self.add_callback(TensorBoardCallback(writer))
        self.seen, self.since = 0, time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the named terms and the speed to what the Trainer logs of a step."""
        now = time.perf_counter()
        if "loss" in logs and self.terms:
            speed = {"examples_per_s": round(self.seen / (now - self.since), 2)}
            logs = {**logs, **self.terms, **speed}
            self.seen, self.since = 0, now
        super().log(logs, start_time)

    def load_final(self, checkpoint: str) -> None:
        """Load what a run that had reached its last step ended with."""
        best = self.state.load_from_json(str(Path(checkpoint) / "trainer_state.json")).best_model_checkpoint
        self._load_from_checkpoint(best if best and self.args.load_best_model_at_end else checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.model.encoder.save_pretrained(folder)
        if extra := _beside_the_folder(self.model):
            torch.save({name: p.detach().cpu() for name, p in extra.items()}, folder / TRAINABLE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, encoder = Path(resume_from_checkpoint), self.model.encoder
        extra = _beside_the_folder(self.model)
        if not encoder.adapters:
            encoder.mlm.load_state_dict(NeuralSparseEncoder.load(folder).mlm.state_dict())
        saved = torch.load(folder / TRAINABLE, weights_only=True) if extra else {}
        with torch.no_grad():
            for name, parameter in extra.items():
                parameter.copy_(saved[name])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _beside_the_folder(model: nn.Module) -> dict[str, nn.Parameter]:
    """List what is trained and not in the model folder: query weights, adapters before the merge."""
    named = dict(model.named_parameters())
    kept = named if model.encoder.adapters else {n: p for n, p in named.items() if n == "query_weights"}
    return {name: p for name, p in kept.items() if p.requires_grad}


class SparseTrainer(EncoderTrainer):
    """Train a SparseRetriever: ranking terms + lambda(t) x penalties, over the batch of all processes."""

    def __init__(
        self,
        *args,
        loss_fn: SparseLoss,
        ramp_steps: int,
        plan: BatchPlan,
        accumulation: int = 1,
        evaluate_dev: Callable[[SparseRetriever], dict[str, float]] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss_fn = loss_fn.to(self.args.device)
        self.ramp_steps, self.plan, self.evaluate_dev = ramp_steps, plan, evaluate_dev
        self.accumulation = accumulation

    def get_train_dataloader(self) -> PlannedLoader:
        """Give every process the whole batches of the plan; SparseRetriever takes this process's share."""
        return PlannedLoader(
            self.train_dataset,
            batch_sampler=self.plan,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a batch to the device; what workers sent as sparse tensors becomes dense there."""
        return {
            name: x.to_dense() if x.is_sparse else x for name, x in super()._prepare_inputs(inputs).items()
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Give the Trainer the loss of one batch of the collator; note its terms for the log."""
        if self.accumulation > 1:  # the whole batch is one loss; its documents pass in so many slices
            documents = -(-len(inputs["input_ids"]) // world_size())
            self.model.encoder.mini_batch = -(-documents // self.accumulation)
        q_reps, d_reps = model(inputs)  # [Q, V], [D_own, V]
        share = ramp(self.state.global_step, self.ramp_steps)
        lexical = inputs.get("lexical")
        if lexical is not None:
            lexical = lexical[own_share(len(lexical))]
        terms = self.loss_fn(q_reps, d_reps, inputs["positives"], inputs.get("teacher"), lexical, share)
        self.terms = {name: float(value.detach()) for name, value in terms.items() if name != "loss"}
        self.terms |= {
            "lambda": self.loss_fn.weights.flops * share,
            "q_nnz": _mean_terms(q_reps),
            "d_nnz": _mean_terms_of_all(d_reps),
            "overlap": term_overlap(d_reps.detach()),
        }
        self.seen += len(inputs["input_ids"])
        return (terms["loss"], d_reps) if return_outputs else terms["loss"]

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Measure on dev data; early stopping and the best checkpoint go by it."""
        self.model.eval()
        metrics = {f"eval_{name}": value for name, value in self.evaluate_dev(self.model).items()}
        self.model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _mean_terms(reps: Tensor) -> float:
    return float(reps.detach().count_nonzero(dim=1).float().mean())


def _mean_terms_of_all(own: Tensor) -> float:
    """Average over the documents of all processes, so that the guard stops all of them or none."""
    counts = own.detach().count_nonzero(dim=1).float()
    terms, documents = sum_over_processes(torch.stack([counts.sum(), counts.new_tensor(len(counts))]))
    return float(terms / documents)


def term_overlap(reps: Tensor) -> float:
    """Say how alike the documents of all processes are: near 1 each pair holds the same terms.

    Args:
        reps: [B, V] of this process.

    Returns:
        Mean number of terms that two documents share over the mean number that one holds, 0..1; 0 where there
        are not two documents, or none holds a term.
    """
    held = sum_over_processes((reps > 0).sum(dim=0).float())  # [V] documents that hold each term
    n = float(sum_over_processes(reps.new_tensor(float(len(reps)))))
    terms = float(held.sum())
    return float((held * (held - 1)).sum()) / (terms * (n - 1)) if n > 1 and terms else 0.0


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
    encoder.query_side = config.query_side
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
