"""One optimizer step outside the Trainer, under the name and arguments of guide 002."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nblib.model.encoder import NeuralSparseEncoder
from nblib.objective import IDFAwareLoss
from nblib.train.callbacks import check_finite


def train_step(
    batch: Mapping[str, Tensor],
    model: NeuralSparseEncoder,
    loss_fn: IDFAwareLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    teacher: Tensor | None = None,
    lambda_share: float = 1.0,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """Encode a batch, compute the loss, step the optimizer. The notebooks use the Trainer instead.

    Args:
        batch: what nblib.train.data.Collator returns.
        model: document encoder.
        loss_fn: IDFAwareLoss.
        optimizer: over the model's parameters.
        scaler: needed for float16 only; bfloat16 and float32 do without.
        teacher: [Q, D] target scores; default those in the batch.
        lambda_share: where the ramp stands, 0..1.
        max_grad_norm: gradients are clipped to this norm.

    Returns:
        The loss terms as numbers.

    Raises:
        TrainingDiverged: a term is not finite; nothing was changed.
    """
    model.train()
    d_reps = model(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
    given = batch.get("teacher") if teacher is None else teacher
    terms = loss_fn(
        batch["q_bags"].to(model.device),
        d_reps,
        None if given is None else given.to(model.device),
        batch["positives"].to(model.device),
        lambda_share,
        batch["lexical"].to(model.device) if "lexical" in batch else None,
    )
    values = {name: float(term.detach()) for name, term in terms.items()}
    check_finite(values, step=0)
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    optimizer.zero_grad()
    scaler.scale(terms["loss"]).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    return values
