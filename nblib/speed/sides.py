"""The same masked-LM weights behind three document encoders: ours, sentence-transformers', the definition.

Each is a module that takes input_ids and attention_mask [B, L] and gives reps [B, V].
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import choose_kernels

PEER = "sentence-transformers SpladePooling"


class Peer(nn.Module):
    """Transformer and SpladePooling of sentence-transformers, as its SparseEncoder chains them.

    Args:
        folder: masked-LM folder.
        chunk_size: positions that SpladePooling handles together; None takes all at once.
        eager: take the plain attention, which our side takes where it is faster.
    """

    def __init__(self, folder: str | Path, chunk_size: int | None = None, eager: bool = False) -> None:
        from sentence_transformers.sentence_transformer.modules import Transformer
        from sentence_transformers.sparse_encoder.modules import SpladePooling

        super().__init__()
        options = {"attn_implementation": "eager"} if eager else {}
        self.transformer = Transformer(str(folder), transformer_task="fill-mask", model_kwargs=options)
        self.pooling = SpladePooling("max", chunk_size=chunk_size)
        _without_dropout(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode one batch: [B, L] -> [B, V]."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.pooling(self.transformer(features))["sentence_embedding"]


class Plain(nn.Module):
    """log1p(relu(logits)), mask, maximum over positions: the definition, with [B, L, V] in memory."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModelForMaskedLM

        super().__init__()
        self.mlm = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
        _without_dropout(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode one batch: [B, L] -> [B, V]."""
        logits = self.mlm(input_ids=input_ids, attention_mask=attention_mask).logits  # [B, L, V]
        return (torch.log1p(torch.relu(logits)) * attention_mask.unsqueeze(-1)).amax(dim=1)


def ours(folder: str | Path, max_length: int, precision: str) -> NeuralSparseEncoder:
    """Load our encoder with the kernels that training takes for this precision."""
    encoder = NeuralSparseEncoder(str(folder), max_length)
    choose_kernels(encoder, precision)
    _without_dropout(encoder)
    return encoder


def _without_dropout(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
