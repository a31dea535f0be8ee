"""A real training run on a tiny model, as a program of its own, so that a test can kill it.

python small_run.py BACKBONE SET OUT [KILL_AT]: trains 8 steps, a checkpoint every 2; with KILL_AT it sends
itself SIGKILL when that step has ended.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from nblib.idf import compute_idf_weights
from nblib.model.encoder import NeuralSparseEncoder
from nblib.teachers import EnsembleTeacher
from nblib.train.config import TrainConfig
from nblib.train.data import load_training_set
from nblib.train.sparse import train_sparse

CONFIG = TrainConfig(
    num_steps=8,
    batch_size=4,
    learning_rate=1e-3,
    learning_rate_head=2e-3,
    warmup_steps=2,
    lambda_flops=1e-3,
    lambda_ramp_steps=6,
    infonce_weight=0.1,
    temperature=1.0,
    lexical_weight=0.1,
    precision="fp32",
    save_steps=2,
    save_total_limit=2,
    seed=13,
)


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(backbone: str, folder: str, out: str, kill_at: str = "0") -> None:
    torch.set_num_threads(1)
    encoder = NeuralSparseEncoder(backbone, max_length=32)
    encoder.set_dropout(0.1)  # so that the random state matters
    data = load_training_set(folder, num_hard_negatives=2)
    idf = compute_idf_weights(data.documents, encoder.tokenizer)
    teacher = EnsembleTeacher("", "bm25:english", 0.0, 1.0, 30.0).prepare(data.queries, data.documents)
    train_sparse(encoder, data, idf, CONFIG, Path(out), teacher, callbacks=[Kill(int(kill_at))])


if __name__ == "__main__":
    main(*sys.argv[1:])
