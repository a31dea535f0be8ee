"""Texts of unlike length as one rectangle, and back to the width they need."""

import torch
from torch import Tensor


def pad(ids: list[list[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pad id lists to the longest: returns input_ids and attention_mask, [B, L] int64 each."""
    length = max(map(len, ids))
    input_ids = torch.tensor([x + [pad_id] * (length - len(x)) for x in ids])
    mask = torch.tensor([[1] * len(x) + [0] * (length - len(x)) for x in ids])
    return input_ids.to(device), mask.to(device)


def trim(input_ids: Tensor, attention_mask: Tensor, multiple: int = 0) -> tuple[Tensor, Tensor]:
    """Cut the columns that no text of these rows needs, down to a multiple where the batch is that wide."""
    width = int(attention_mask.sum(dim=1).max())
    width += -width % max(multiple, 1)
    return input_ids[:, :width], attention_mask[:, :width]
