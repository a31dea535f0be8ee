"""Masked max over the positions of masked-LM logits, without ever holding [B, L, V].

max, log1p and relu are all monotone, so `max_i log1p(relu(z_i))` is `log1p(relu(max_i z_i))`: the maximum
comes first, and what it drops needs no gradient. The forward pass walks over blocks of the vocabulary and
keeps [B, V] maxima; the backward pass touches only the pairs (document, term) that are active.

Letters: B documents, T tokens of all documents without padding, H hidden size, V vocabulary.
"""

import warnings

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

BLOCK = 1024  # terms per block: [T, 1024] logits of a usual batch fit in the cache (fastest of 1024..4096)
DENSE = 0.1  # from this active share on, argmax of a whole block beats gathering its active columns


def max_logits(packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute max over positions of hidden @ weight.T + bias, streamed over the vocabulary.

    The gradient is that of relu(result): pairs whose maximum is not positive get none, so do not use the
    result without a relu. At a tie the first position gets all of it (torch.amax would share it).

    Args:
        packed: [T, H] transformed hidden states, document after document, no padding.
        lengths: B token counts, each at least 1; they add up to T.
        weight: [V, H] decoder.
        bias: [V].

    Returns:
        [B, V] maximum logit over the positions of each document, in the matmul's dtype.

    Raises:
        ValueError: a document without a token, or lengths that do not add up to T.
    """
    if min(lengths) < 1 or sum(lengths) != len(packed):
        raise ValueError(f"want lengths >= 1 that add up to {len(packed)} tokens, got {lengths}")
    return _MaxLogits.apply(packed, lengths, weight, bias)


class _MaxLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor) -> Tensor:
        """Walk over blocks of terms; keep maxima [B, V] and, for the backward pass, the active pairs."""
        wants_grad = any(ctx.needs_input_grad)
        values, active = [], []
        for start in range(0, weight.shape[0], BLOCK):
            block = packed @ weight[start : start + BLOCK].T  # [T, block]
            top = torch.stack([doc.amax(dim=0) for doc in block.split(lengths)])  # [B, block]
            top = top + bias[start : start + BLOCK]
            values.append(top)
            if wants_grad:
                active.append(_active_pairs(block, top > 0, lengths, start))
        if wants_grad:
            tokens, terms, rows = (torch.cat(parts) for parts in zip(*active, strict=True))
            ctx.save_for_backward(packed, weight, tokens, terms, rows)
        return torch.cat(values, dim=1)  # [B, V]

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Send the gradient [B, V] to the token and the term of each active pair."""
        packed, weight, tokens, terms, rows = ctx.saved_tensors
        pair_grad = grad[rows, terms]  # [pairs]
        size = (packed.shape[0], weight.shape[0])
        grad_packed = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_packed = _pairs_matmul(tokens, terms, pair_grad, size, weight).to(packed.dtype)
        if ctx.needs_input_grad[2]:
            grad_weight = _pairs_matmul(terms, tokens, pair_grad, size[::-1], packed).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = torch.zeros_like(weight[:, 0]).index_add_(0, terms, pair_grad.to(weight.dtype))
        return grad_packed, None, grad_weight, grad_bias


def _active_pairs(block: Tensor, active: Tensor, lengths: list[int], start: int) -> tuple[Tensor, ...]:
    """Find, for each active (document, term) of a block, the token that holds the maximum.

    Returns:
        tokens, terms, rows: [pairs] int64 each: index into T, into V, and the document.
    """
    first = torch.tensor([0, *lengths[:-1]], device=block.device).cumsum(0)  # [B] first token of a document
    rows, columns = active.nonzero(as_tuple=True)
    if len(rows) > DENSE * active.numel():
        best = torch.stack([doc.argmax(dim=0) for doc in block.split(lengths)])  # [B, block]
        tokens = best[rows, columns] + first[rows]
    else:
        per_doc = columns.split(active.sum(dim=1).tolist())
        best = [doc[:, c].argmax(dim=0) for doc, c in zip(block.split(lengths), per_doc, strict=True)]
        tokens = torch.cat(best) + first[rows]
    return tokens, columns + start, rows


def _pairs_matmul(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int], dense: Tensor):
    """Multiply the sparse matrix of (rows, columns, values) by `dense`: [R, C] x [C, H], float32 or more."""
    dtype = torch.promote_types(dense.dtype, torch.float32)
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows, minlength=size[0])
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    matrix = torch.sparse_csr_tensor(
        pointers, columns[order], values[order].to(dtype), size=size, check_invariants=False
    )
    return matrix @ dense.to(dtype)
