"""Give a backbone without a trained masked-LM head one that is worth starting from.

Three steps: the head's transform starts as the identity, so that hidden states meet the input embeddings
they are tied to; the head learns to name masked and kept tokens while the encoder stays frozen; then one
constant is taken off the bias so that a document starts with a few hundred active terms, not all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from nblib.distributed import start
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.head import max_logits
from nblib.model.padding import pad
from nblib.precision import choose_kernels, quick_fp32, resolve_precision
from nblib.train.callbacks import JsonlLog, LiveLine, check_finite
from nblib.train.checkpoints import run_or_resume
from nblib.train.config import TrainConfig, head_parameters, make_optimizer, training_arguments
from nblib.train.trainer import EncoderTrainer

IGNORE = -100  # cross_entropy's label for "not asked"


class TokenizedTexts(Dataset):
    """Texts as id lists."""

    def __init__(self, encoder: NeuralSparseEncoder, texts: Sequence[str]) -> None:
        self.ids = encoder.tokenize(texts)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> list[int]:
        return self.ids[i]


class MaskAndKeep:
    """Ask for some tokens: a share of them hidden behind [MASK], another share left in sight.

    Masked tokens teach expansion, kept tokens teach that a document's own words matter. The choice follows
    torch's global generator, which the Trainer seeds and restores on resume.

    Args:
        tokenizer: has mask_token_id and all_special_ids.
        mask_ratio: share of tokens replaced by [MASK].
        keep_ratio: share of tokens asked for as they stand.

    Raises:
        ValueError: the tokenizer has no mask token, or the shares add up to 0 or more than 1.
    """

    def __init__(self, tokenizer, mask_ratio: float, keep_ratio: float) -> None:
        if tokenizer.mask_token_id is None and mask_ratio > 0:
            raise ValueError("the tokenizer has no mask token: set mask_ratio to 0.0")
        if not 0 < mask_ratio + keep_ratio <= 1:
            raise ValueError(
                f"mask_ratio + keep_ratio is {mask_ratio + keep_ratio}; want more than 0, at most 1"
            )
        self.tokenizer, self.mask_ratio, self.keep_ratio = tokenizer, mask_ratio, keep_ratio
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, batch: Sequence[list[int]]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and labels (IGNORE where not asked), [B, L] int64 each."""
        input_ids, mask = pad(list(batch), self.tokenizer.pad_token_id)
        draw = torch.rand(input_ids.shape)
        ordinary = ~torch.isin(input_ids, self.special)
        hidden = ordinary & (draw < self.mask_ratio)
        asked = ordinary & (draw < self.mask_ratio + self.keep_ratio)
        labels = input_ids.masked_fill(~asked, IGNORE)
        if hidden.any():
            input_ids = input_ids.masked_fill(hidden, self.tokenizer.mask_token_id)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


class HeadLoss(nn.Module):
    """Masked-LM cross-entropy at the asked positions only; logits of the others are never computed."""

    def __init__(self, encoder: NeuralSparseEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Take a batch of MaskAndKeep; return the loss and the share of tokens named right."""
        encoder = self.encoder
        packed = encoder.hidden_states(batch["input_ids"], batch["attention_mask"])  # [T, H]
        labels = batch["labels"][batch["attention_mask"].bool()]  # [T]
        asked = labels != IGNORE
        weight, bias = encoder.decoder.weight, encoder.decoder_bias()
        logits = (packed[asked] @ weight.T + bias).float()  # [asked, V]
        hit = (logits.detach().argmax(dim=1) == labels[asked]).float().mean()
        return cross_entropy(logits, labels[asked]), hit


class HeadTrainer(EncoderTrainer):
    """Train the head of a HeadLoss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Give the Trainer the cross-entropy of one batch of MaskAndKeep; note it for the log."""
        loss, hit = model(inputs)
        self.terms = {"mlm": float(loss.detach()), "mlm_accuracy": float(hit)}
        check_finite(self.terms, self.state.global_step)
        self.seen += len(inputs["input_ids"])
        return (loss, hit) if return_outputs else loss


def start_as_identity(encoder: NeuralSparseEncoder) -> bool:
    """Set the head's dense layer to the identity and its norm to 1 and 0, where the head has such layers.

    Returns:
        Whether a square dense layer was found; architectures without one keep their random start.
    """
    head = {id(p) for p in head_parameters(encoder)}
    found = False
    for module in encoder.mlm.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in head]
        if not own or module is encoder.decoder:
            continue
        if isinstance(module, nn.Linear) and module.in_features == module.out_features:
            nn.init.eye_(module.weight)
            found = True
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None and isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)
    return found


@torch.inference_mode()
def shift_bias(encoder: NeuralSparseEncoder, texts: Sequence[str], target_active_terms: int) -> float:
    """Take one constant off the decoder's bias so that `texts` hold that many active terms on average.

    Args:
        encoder: changed in place.
        texts: a few dozen documents.
        target_active_terms: wanted mean number of terms with a positive maximum logit.

    Returns:
        The constant (logit units).

    Raises:
        ValueError: the target is not between 1 and the vocabulary.
    """
    if not 0 < target_active_terms < encoder.vocab_size:
        raise ValueError(f"target_active_terms {target_active_terms} is outside 1..{encoder.vocab_size - 1}")
    encoder.eval()
    ids, mask = pad(encoder.tokenize(texts), encoder.tokenizer.pad_token_id, encoder.device)
    size = encoder.vocab_size
    packed = encoder.hidden_states(ids, mask)
    weight, bias = encoder.decoder.weight[:size], encoder.decoder_bias()[:size]
    logits = max_logits(packed, mask.sum(dim=1).tolist(), weight, bias)  # [B, V]
    logits = logits[:, encoder.term_mask.bool()].flatten()
    shift = float(logits.topk(len(texts) * target_active_terms).values[-1])
    encoder.decoder.bias.sub_(shift)
    return shift


def warm_up_head(
    encoder: NeuralSparseEncoder,
    texts: Sequence[str],
    config: TrainConfig,
    folder: Path,
    mask_ratio: float,
    keep_ratio: float,
    target_active_terms: int,
) -> dict[str, float | bool]:
    """Train the masked-LM head alone, shift its bias, and leave the encoder as it was.

    Args:
        encoder: loaded with fresh_head=True; changed in place.
        texts: training documents.
        config: num_steps, batch_size (documents) and learning_rate_head of the warm-up.
        folder: for checkpoints and logs.
        mask_ratio, keep_ratio: shares of tokens asked for, see MaskAndKeep.
        target_active_terms: see shift_bias.

    Returns:
        {"identity": whether the transform started as one, "bias_shift": constant taken off the bias}.
    """
    start()
    choose_kernels(encoder, resolve_precision(config.precision))
    identity = start_as_identity(encoder)
    frozen = [p for p in encoder.parameters() if p.requires_grad]
    head = {id(p) for p in head_parameters(encoder)}
    for parameter in frozen:
        parameter.requires_grad_(id(parameter) in head)
    trainer = HeadTrainer(
        model=HeadLoss(encoder),
        args=training_arguments(folder, config, config.num_steps),
        train_dataset=TokenizedTexts(encoder, texts),
        data_collator=MaskAndKeep(encoder.tokenizer, mask_ratio, keep_ratio),
        optimizers=(make_optimizer(encoder, config), None),
        callbacks=[JsonlLog(folder / "training_log.jsonl"), LiveLine("warm up head")],
    )
    with quick_fp32():
        run_or_resume(trainer, folder)
    for parameter in frozen:
        parameter.requires_grad_(True)
    shift = shift_bias(encoder, list(texts[:64]), target_active_terms)
    return {"identity": identity, "bias_shift": shift}
