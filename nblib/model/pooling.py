"""How the logits of a text's positions become one weight per term: the choices, and the activation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """How the logits of a text's positions become weights; the names are those of sentence-transformers.

    strategy: "max", or "sum" over the positions. activation: "relu" for log1p(relu(z)), "log1p_relu" for
    log1p of that again. activation_threshold: weights below it are 0.
    """

    strategy: str = "max"
    activation: str = "relu"
    activation_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in ("max", "sum"):
            raise ValueError(f'pooling strategy {self.strategy!r}: want "max" or "sum"')
        if self.activation not in ("relu", "log1p_relu"):
            raise ValueError(f'activation {self.activation!r}: want "relu" or "log1p_relu"')
        if not self.activation_threshold >= 0:
            raise ValueError(f"activation_threshold {self.activation_threshold}: want 0 or more")


def activate(pooled: Tensor, activation: str) -> Tensor:
    """Turn maximum logits into weights: log1p(relu(.)), and log1p once more for "log1p_relu".

    Source: SPLADE-max (arXiv:2109.10086); the second log1p is that of OpenSearch's doc-v3 (arXiv:2504.14839).
    """
    weights = torch.log1p(torch.relu(pooled))
    return torch.log1p(weights) if activation == "log1p_relu" else weights
