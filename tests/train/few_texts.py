"""The gradient of a batch with fewer texts than processes, under torchrun or alone; process 0 writes it.

python few_texts.py BACKBONE OUT
"""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from nblib.distributed import leave, rank, start, world_size
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.padding import pad
from nblib.model.retriever import SparseRetriever
from nblib.objective import LossWeights, SparseLoss


def main(backbone: str, out: str) -> None:
    torch.set_num_threads(1)
    start()
    encoder = NeuralSparseEncoder(backbone, max_length=32)
    encoder.set_dropout(0.0)
    idf = torch.ones(encoder.vocab_size)
    model = SparseRetriever(encoder, idf, "siamese")
    if world_size() > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    pad_id = encoder.tokenizer.pad_token_id
    ids, mask = pad(encoder.tokenize(["the cat sat on the mat", "a dog ran home"]), pad_id)
    q_ids, q_mask = pad(encoder.tokenize(["where did the cat sit"]), pad_id)
    batch = {"input_ids": ids, "attention_mask": mask, "q_input_ids": q_ids, "q_attention_mask": q_mask}
    q_reps, d_reps = model(batch)
    weights = LossWeights(kl=0.0, infonce=1.0, flops=0.1, query_flops=0.1)
    positives = torch.tensor([[True, False]])
    SparseLoss(idf, weights)(q_reps, d_reps, positives)["loss"].backward()
    if rank() == 0:
        torch.save({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}, out)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
