"""Low-rank adapters in the backbone: a few per cent of the weights are trained, and merged for export."""

from peft import LoraConfig, get_peft_model
from torch import nn

from nblib.model.encoder import NeuralSparseEncoder


def add_lora(encoder: NeuralSparseEncoder, rank: int, alpha: int = 16, dropout: float = 0.0) -> None:
    """Put adapters on every linear layer of the backbone; the head stays trainable as it is.

    Source: Hu et al. 2021 (arXiv:2106.09685); W + alpha / rank * B A.

    Args:
        encoder: its backbone is changed in place; only adapters and the head's own weights train. Its
            save_pretrained writes a plain masked-LM with the adapters multiplied in.
        rank: of the adapters.
        alpha: their scale.
        dropout: on what they read.
    """
    prefix = encoder.mlm.base_model_prefix + "."
    head = [name for name, _ in encoder.mlm.named_parameters() if not name.startswith(prefix)]
    layers = [
        name
        for name, module in encoder.mlm.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix)
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)
    encoder.adapters = (get_peft_model(encoder.mlm, config),)  # swaps the layers in place
    own = dict(encoder.mlm.named_parameters())
    for name in head:
        own[name].requires_grad_(id(own[name]) != id(encoder.decoder.weight))
