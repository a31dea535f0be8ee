"""One optimizer step of a real training, under torchrun or alone; writes the gradients of process 0.

python one_step.py BACKBONE SET OUT ROWS ACCUMULATION QUERY_SIDE
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from nblib.distributed import leave, rank
from nblib.idf import compute_idf_weights
from nblib.model.encoder import NeuralSparseEncoder
from nblib.teachers import EnsembleTeacher
from nblib.train.data import load_training_set
from nblib.train.sparse import train_sparse
from tests.train.small_run import CONFIG

EVERY_TERM = replace(
    CONFIG,
    num_steps=1,
    max_grad_norm=0.0,
    lambda_ramp_steps=0,
    margin_mse_weight=0.02,
    triplet_weight=0.1,
    lambda_l1=1e-4,
    lambda_idf=1e-4,
    lambda_df=1e-4,
    anti_zero_weight=0.1,
    l0_threshold=1,
)


class KeepGradients(TrainerCallback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if rank() == 0:
            named = {n.removeprefix("module."): p for n, p in model.named_parameters()}
            torch.save({n: p.grad for n, p in named.items() if p.grad is not None}, self.file)


def main(backbone: str, folder: str, out: str, rows: str, accumulation: str, query_side: str) -> None:
    torch.set_num_threads(1)
    encoder = NeuralSparseEncoder(backbone, max_length=32)
    encoder.set_dropout(0.0)
    encoder.double()  # in float32 the softmax of large scores makes differences of 1e-6 of its rounding
    data = load_training_set(folder, num_hard_negatives=2)
    idf = compute_idf_weights(data.documents, encoder.tokenizer)
    teacher = EnsembleTeacher("", "bm25:english", 0.0, 1.0, 30.0).prepare(data.queries, data.documents)
    config = replace(
        EVERY_TERM,
        batch_size=int(rows),
        gradient_accumulation_steps=int(accumulation),
        query_side=query_side,
        lambda_flops_queries=1e-3,
    )
    keep = KeepGradients(Path(out) / "gradients.pt")
    train_sparse(encoder, data, idf, config, Path(out), teacher, callbacks=[keep])
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
