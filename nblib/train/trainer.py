"""transformers.Trainer for a sparse encoder: our loss, batches and checkpoints; the rest is theirs."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer
from transformers.integrations import TensorBoardCallback

from nblib.distributed import own_share, sum_over_processes, world_size
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.retriever import SparseRetriever
from nblib.objective import SparseLoss
from nblib.train.plan import BatchPlan, PlannedLoader
from nblib.train.schedule import ramp

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
            **document_terms(d_reps.detach()),
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


def document_terms(reps: Tensor) -> dict[str, float]:
    """Count the terms of the documents of all processes, so that the guard stops all of them or none.

    Args:
        reps: [B, V] of this process.

    Returns:
        d_nnz: mean number of terms of a document. overlap: mean number that two of them share, over d_nnz;
        0..1, near 1 all say the same; 0 where there are not two documents, or none holds a term.
    """
    held = sum_over_processes((reps > 0).sum(dim=0).float())  # [V] documents that hold each term
    n = float(sum_over_processes(reps.new_tensor(float(len(reps)))))
    terms = float(held.sum())
    shared = float((held * (held - 1)).sum()) / (terms * (n - 1)) if n > 1 and terms else 0.0
    return {"d_nnz": terms / max(n, 1.0), "overlap": shared}
