"""From token states to term weights without ever holding the logits [B, L, V].

max, log1p and relu are all monotone, so `max_i log1p(relu(z_i))` is `log1p(relu(max_i z_i))`: the maximum
comes first, and what it drops needs no gradient. The forward pass walks over blocks of the vocabulary, keeps
[B, V] maxima and, for each active (document, term) pair, the token that holds it; the backward pass touches
nothing but these pairs.

Letters: B documents, T tokens of all documents without padding, H hidden size, V vocabulary, P active pairs.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nblib.model.pooling import activate

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

BLOCK = 1024  # terms per block on a CPU: the logits [T, 1024] of a usual batch stay in the cache
CUDA_BLOCK = 8192  # on a GPU fewer, larger kernels, but
CUDA_LOGITS = 2**28  # no more logits in one than that (half a GiB in bf16), down to BLOCK terms
DENSE = 0.1  # from this active share on, one max over a whole block beats gathering its active columns
ROUNDING = 2.0**-8  # two factors rounded to bf16 (2^-9 each) move a dot product by at most this x |h| |w|


class Pairs(NamedTuple):
    """Active pairs: a document, a term, and the token of the document that holds the maximum; [P] each."""

    rows: Tensor
    terms: Tensor
    tokens: Tensor  # index into T


def sum_weights(packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Add the weights of all positions, as the first SPLADE did, streamed over the vocabulary.

    Every positive logit takes part in the gradient, so the backward pass computes the blocks again.

    Source: SPLADE (arXiv:2107.05720), eq. 2.

    Args:
        packed, lengths, weight, bias: as for max_logits.
        activation: "relu" or "log1p_relu", see activate.

    Returns:
        [B, V] weights >= 0.
    """
    rows = torch.repeat_interleave(
        torch.arange(len(lengths), device=packed.device), torch.tensor(lengths, device=packed.device)
    )

    def block(hidden: Tensor, part: Tensor, shift: Tensor) -> Tensor:
        weights = activate(hidden @ part.T + shift, activation)  # [T, block]
        return weights.new_zeros(len(lengths), weights.shape[1]).index_add_(0, rows, weights)

    parts = zip(weight.split(BLOCK), bias.split(BLOCK), strict=True)
    return torch.cat([checkpoint(block, packed, w, b, use_reentrant=False) for w, b in parts], dim=1)


def max_logits(
    packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor, screen: bool = False
) -> Tensor:
    """Compute max over positions of hidden @ weight.T + bias, streamed over the vocabulary.

    Use the result through a relu only: the gradient is that of relu(result), and with `screen` a maximum that
    is not positive may come out as 0. At a tie the first position gets the whole gradient (torch.amax would
    share it).

    Args:
        packed: [T, H] transformed hidden states, document after document, no padding.
        lengths: B token counts, each at least 1; they add up to T.
        weight: [V, H] decoder.
        bias: [V].
        screen: find the pairs that can be active by bf16 products first, and compute only these in full.
            Nothing is lost, since the bound on the rounding error is kept; faster for sparse float32 reps
            where the machine multiplies bf16 much faster.

    Returns:
        [B, V] maximum logit over the positions of each document, in the matmul's dtype.

    Raises:
        ValueError: a document without a token, or lengths that do not add up to T.
    """
    if min(lengths) < 1 or sum(lengths) != len(packed):
        raise ValueError(f"want lengths >= 1 that add up to {len(packed)} tokens, got {lengths}")
    # inside forward() gradients are always off, so it cannot see whether anybody wants them
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (packed, weight, bias))
    return _MaxLogits.apply(packed, lengths, weight, bias, screen, trains)


class _MaxLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor, screen: bool, trains: bool
    ):
        """Find the maxima [B, V]; keep the active pairs for the backward pass."""
        found = _screened(packed, lengths, weight, bias) if screen else None
        top, pairs = found or _direct(*_autocast(packed, lengths, weight, bias), trains)
        if trains:
            ctx.save_for_backward(packed, weight, *pairs)
        return top

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Send the gradient [B, V] to the token and the term of each active pair."""
        packed, weight, rows, terms, tokens = ctx.saved_tensors
        pair_grad = grad[rows, terms]  # [P]
        size = (packed.shape[0], weight.shape[0])
        grad_packed = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_packed = _pairs_matmul(tokens, terms, pair_grad, size, weight).to(packed.dtype)
        if ctx.needs_input_grad[2]:
            grad_weight = _pairs_matmul(terms, tokens, pair_grad, size[::-1], packed).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = torch.zeros_like(weight[:, 0]).index_add_(0, terms, pair_grad.to(weight.dtype))
        return grad_packed, None, grad_weight, grad_bias, None, None


def _autocast(packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor):
    """Round the factors to autocast's format once, not once a block."""
    device = packed.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        packed, weight = packed.to(dtype), weight.to(dtype)
    return packed, lengths, weight, bias


def _direct(packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor, trains: bool):
    """Compute all logits block by block: maxima [B, V] and, for training, the active pairs."""
    values, pairs, dense = [], [], False
    walk = _PackedBlocks(packed, lengths) if packed.device.type == "cpu" else _PaddedBlocks(packed, lengths)
    for start in range(0, weight.shape[0], walk.size):
        stop = start + walk.size
        walk.multiply(weight[start:stop])
        best = None
        if trains and dense:
            top, best = walk.max_and_token()  # [B, block] each
        else:
            top = walk.max()
        top = top + bias[start:stop]
        values.append(top)
        if trains:
            rows, columns = (top > 0).nonzero(as_tuple=True)
            dense = len(rows) > DENSE * top.numel()
            tokens = walk.tokens(rows, columns) if best is None else best[rows, columns]
            pairs.append(Pairs(rows, columns + start, tokens))
    return torch.cat(values, dim=1), Pairs(*map(torch.cat, zip(*pairs, strict=True))) if pairs else None


class _PackedBlocks:
    """Logits [T, block] of the tokens as they lie, document after document: padding costs nothing."""

    size = BLOCK

    def __init__(self, packed: Tensor, lengths: list[int]) -> None:
        self.packed, self.lengths = packed, lengths
        self.first = torch.tensor([0, *lengths[:-1]]).cumsum(0)  # [B] first token of each document
        self.last = torch.tensor(lengths) - 1  # [B] position of each document's last token
        self.position = torch.arange(max(lengths))
        self.like = len(set(lengths)) == 1

    def multiply(self, weight: Tensor) -> None:
        self.logits = self.documents = None  # freed before the next block is made: it takes the same place
        self.logits = self.packed @ weight.T  # [T, block]
        self.documents = self.logits.split(self.lengths)

    def max(self) -> Tensor:
        if self.like:
            return self.logits.unflatten(0, (len(self.lengths), -1)).amax(dim=1)
        return torch.stack([logits.amax(dim=0) for logits in self.documents])

    def max_and_token(self) -> tuple[Tensor, Tensor]:
        """A maximum, then the first token that equals it: a third quicker than max with indices on a CPU.

        The maximum is one of the logits, so its bits are found among theirs (but for NaN, which makes no
        pair); comparing bits as integers is quicker than comparing bf16.
        """
        top = self.max()
        best = []
        for logits, most in zip(self.documents, top, strict=True):
            same = _bits(logits) == _bits(most)  # [L, block]
            size = torch.int16 if len(logits) < 2**15 else torch.int32
            back = torch.arange(len(logits), 0, -1, dtype=size)  # distance from the end, largest first
            best.append(len(logits) - (same * back[:, None]).amax(dim=0))
        return top, torch.stack(best) + self.first[:, None]

    def tokens(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One gather: positions past a document's end repeat its last one, and the first of equals counts."""
        place = self.first[rows, None] + self.position.minimum(self.last[rows, None])  # [P, longest]
        return self.first[rows] + self.logits[place, columns[:, None]].max(dim=1).indices


class _PaddedBlocks:
    """Logits [B, L, block] in one product: few kernels, whatever B is.

    Padding repeats a document's first token. A repeated token changes no maximum, so no mask is needed, and
    at a tie the true position comes first.
    """

    def __init__(self, packed: Tensor, lengths: list[int]) -> None:
        counts = torch.tensor(lengths, device=packed.device)
        self.first = counts.cumsum(0) - counts  # [B]
        fitting = CUDA_LOGITS // (len(lengths) * max(lengths))
        self.size = min(CUDA_BLOCK, max(BLOCK, fitting - fitting % BLOCK))
        position = torch.arange(max(lengths), device=packed.device)
        place = self.first[:, None] + torch.where(position < counts[:, None], position, 0)  # [B, L]
        self.padded = packed[place]  # [B, L, H]

    def multiply(self, weight: Tensor) -> None:
        self.logits = None  # freed before the next block is made
        self.logits = self.padded @ weight.T

    def max(self) -> Tensor:
        return self.logits.amax(dim=1)

    def max_and_token(self) -> tuple[Tensor, Tensor]:
        top, best = self.logits.max(dim=1)
        return top, best + self.first[:, None]

    def tokens(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.logits[rows, :, columns].max(dim=1).indices + self.first[rows]


def _screened(packed: Tensor, lengths: list[int], weight: Tensor, bias: Tensor):
    """Compute in full only the pairs whose bf16 maximum may belong to a positive one.

    |h.w - bf16(h).bf16(w)| <= 2^-8 |h| |w| (Cauchy-Schwarz), so a pair whose bf16 maximum lies below minus
    that bound has no positive logit.

    Returns:
        Maxima [B, V], 0 where not positive, and the pairs; None if too many pairs could be active.
    """
    vocabulary, documents = weight.shape[0], len(lengths)
    blocks = _PackedBlocks(packed.bfloat16(), lengths)
    longest = torch.stack([part.amax() for part in packed.norm(dim=1).split(lengths)])  # [B] max |h|
    bound = 2 * ROUNDING * weight.norm(dim=1)  # [V]; twice: sums and the result are rounded as well
    maybe, seen = [], 0
    for start in range(0, vocabulary, BLOCK):
        stop = start + BLOCK
        blocks.multiply(weight[start:stop].bfloat16())
        top = blocks.max().float() + bias[start:stop]
        maybe.append(~(top <= -longest[:, None] * bound[start:stop]))  # a NaN is looked at, not hidden
        seen += int(maybe[-1].sum())
        if seen > DENSE * documents * vocabulary:
            return None
    values, rows, terms, tokens = packed.new_zeros(documents, vocabulary), [], [], []
    for row, (hidden, candidates) in enumerate(zip(packed.split(lengths), torch.cat(maybe, 1), strict=True)):
        columns = candidates.nonzero().squeeze(1)
        top, best = (hidden @ weight[columns].T).max(dim=0) if len(columns) else (values[0, :0], columns)
        top = top + bias[columns]
        kept = ~(top <= 0)
        values[row, columns[kept]] = top[kept]
        rows.append(torch.full_like(columns[kept], row))
        terms.append(columns[kept])
        tokens.append(best[kept] + blocks.first[row])
    return values, Pairs(*map(torch.cat, (rows, terms, tokens)))


def _bits(values: Tensor) -> Tensor:
    """View numbers of 16 bits as integers; leave others as they are."""
    return values.view(torch.int16) if values.element_size() == 2 else values


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
