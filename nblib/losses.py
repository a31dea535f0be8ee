"""Ranking losses, the ensemble target and the sparsity penalty.

Letters: Q queries and D documents of one batch, V vocabulary. Every query is scored against every document
of the batch, so in-batch and hard negatives are the same thing here: other columns of scores [Q, D].
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

EPS = 1e-6  # floor of a teacher's range, so that equal scores give zeros and not NaN


def flops_loss(reps: Tensor) -> Tensor:
    """Penalise the expected multiplications of one query-document score.

    sum over v of (mean over b of |reps[b, v]|)^2

    Squaring the batch mean, not each weight, hits terms that fire in many documents: those make the long
    posting lists that cost time at search.

    Source: Paria et al. 2020 (arXiv:2004.05665), eq. 4; arXiv:2411.04403, eq. 3.

    Args:
        reps: [B, V] float, after log1p(relu(.)) pooling.

    Returns:
        scalar >= 0.

    Raises:
        ValueError: reps is not two-dimensional (token logits [B, L, V] are a common mistake).
    """
    if reps.ndim != 2:
        raise ValueError(f"want pooled reps [B, V], got shape {tuple(reps.shape)}")
    return reps.abs().mean(dim=0).square().sum()  # [B, V] -> [V] -> []


def min_max(scores: Tensor) -> Tensor:
    """Stretch each row of teacher scores to 0..1: (s - min) / (max - min); a constant row becomes zeros.

    Source: arXiv:2411.04403, eq. 8.

    Args:
        scores: [Q, D] one teacher's scores of each query's candidates.
    """
    low = scores.amin(dim=1, keepdim=True)
    span = scores.amax(dim=1, keepdim=True) - low
    return (scores - low) / span.clamp_min(EPS)


def ensemble_scores(teachers: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    """Add unlike teachers on one scale: S * sum_j w_j * min_max(s_j).

    Source: arXiv:2411.04403, eq. 9 (the paper takes the arithmetic mean: w_j = 1 / number of teachers).

    Args:
        teachers: one [Q, D] tensor per teacher.
        weights: one weight per teacher.
        scale: S, the spread of the target; larger is sharper. 10 in pretraining, 30 in finetuning.

    Returns:
        [Q, D] between 0 and S * sum(weights).

    Raises:
        ValueError: no teacher, or the number of weights differs.
    """
    if not teachers or len(teachers) != len(weights):
        raise ValueError(
            f"want one weight per teacher, got {len(teachers)} teachers and {len(weights)} weights"
        )
    return scale * sum(w * min_max(s) for w, s in zip(weights, teachers, strict=True))


def kl_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over queries of KL( softmax(teacher) || softmax(student) ).

    Source: arXiv:2411.04403, eq. 1.

    Args:
        student: [Q, D] scores with gradient.
        teacher: [Q, D] target scores, already scaled.
    """
    return kl_div(log_softmax(student, dim=1), softmax(teacher, dim=1), reduction="batchmean")


def info_nce(scores: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Contrast each query's positive with all other documents of the batch.

    Other documents that are positives of the same query are left out of its denominator.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), eq. 4.

    Args:
        scores: [Q, D].
        positives: [Q, D] bool; a query may have several, each must have at least one.
        temperature: divides the scores.

    Returns:
        scalar, mean over the (query, positive) pairs.
    """
    scores = scores / temperature
    rows, columns = positives.nonzero(as_tuple=True)
    others = scores[rows].masked_fill(positives[rows], -torch.inf)  # [P, D]
    own = scores[rows, columns].unsqueeze(1)  # [P, 1]
    target = torch.zeros(len(rows), dtype=torch.long, device=scores.device)
    return cross_entropy(torch.cat([own, others], dim=1), target)


def lexical_loss(d_reps: Tensor, targets: Tensor, idf: Tensor) -> Tensor:
    """Pull the weights of a document's own tokens towards given ones; expansion terms are left alone.

    sum over documents and their own tokens of idf_j (w_j - target_j)^2 / (D x mean idf of these tokens)

    A ranking loss says little about each weight, this one names all of them: a few dozen batches bring an
    encoder near BM25, from where the teachers take over. IDF keeps it from holding up stop words, which
    the penalty should remove. Not part of the paper.

    Args:
        d_reps: [D, V] encoder output.
        targets: [D, V] wanted weights; 0 where there is none.
        idf: [V] query weights.
    """
    own = targets > 0
    weight = idf.expand_as(targets)[own]
    error = (d_reps[own] - targets[own]).square()
    return (weight * error).sum() / weight.mean().clamp_min(EPS) / len(d_reps)


def idf_vector(
    idf_weights: Mapping | Sequence[float] | np.ndarray, vocab_size: int, default: float
) -> Tensor:
    """Turn IDF weights into [V]: a vector, {token id: weight}, or {token: weight} in the order of the ids.

    Raises:
        ValueError: more weights than the vocabulary, or named tokens that do not cover it one to one.
    """
    idf = torch.full((vocab_size,), float(default))
    if not isinstance(idf_weights, Mapping):
        values, ids = np.asarray(idf_weights, dtype=np.float32), np.arange(len(idf_weights))
    else:
        values = np.fromiter(idf_weights.values(), np.float32)
        by_id = all(isinstance(k, int | np.integer) for k in idf_weights)
        if not by_id and len(values) != vocab_size:
            raise ValueError(f"{len(values)} named tokens for a vocabulary of {vocab_size}; key them by id")
        ids = np.fromiter(idf_weights, np.int64) if by_id else np.arange(len(values))
    if len(ids) and ids.max() >= vocab_size:
        raise ValueError(f"token id {ids.max()} is outside the vocabulary of {vocab_size}")
    idf[torch.from_numpy(ids)] = torch.from_numpy(values)
    return idf


class IDFAwareLoss(nn.Module):
    """Ranking by IDF-weighted scores plus the FLOPS penalty: L = L_rank-idf + lambda * L_FLOPS.

    s(q, d) = sum_t idf(t) q_t d_t (eq. 5); the penalty itself is uniform over terms (eq. 3). Where IDF is
    high the ranking gradient outweighs the penalty and the term stays; where it is low the term goes (eq. 7).

    Source: arXiv:2411.04403, eqs. 1, 3, 5, 6.

    Args:
        idf_weights: [V] array, {token id: weight}, or {token: weight} in the order of the ids.
        vocab_size: V.
        lambda_flops: full strength of the penalty, reached at the end of the ramp.
        default_idf: weight of an id that idf_weights lacks.
        device: where the IDF vector lies.
        infonce_weight: weight of a contrastive term on the judged positives; 0 leaves it out.
        temperature: of that term.
        lexical_weight: weight of lexical_loss; 0 leaves it out.
    """

    def __init__(
        self,
        idf_weights: Mapping | Sequence[float] | np.ndarray,
        vocab_size: int,
        lambda_flops: float = 0.02,
        default_idf: float = 1.0,
        device: str | torch.device = "cpu",
        infonce_weight: float = 0.0,
        temperature: float = 1.0,
        lexical_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("idf", idf_vector(idf_weights, vocab_size, default_idf), persistent=False)
        self.lambda_flops = lambda_flops
        self.infonce_weight = infonce_weight
        self.temperature = temperature
        self.lexical_weight = lexical_weight
        self.to(device)

    def scores(self, q_bags: Tensor, d_reps: Tensor) -> Tensor:
        """Score every query against every document: [Q, V] 0/1 bags and [D, V] reps -> [Q, D] (eq. 5)."""
        return (q_bags * self.idf) @ d_reps.float().T

    def forward(
        self,
        q_bags: Tensor,
        d_reps: Tensor,
        teacher: Tensor | None,
        positives: Tensor,
        lambda_share: float = 1.0,
        lexical: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss terms of one batch.

        Args:
            q_bags: [Q, V] 1.0 for a token of the query.
            d_reps: [D, V] encoder output.
            teacher: [Q, D] scaled target scores, or None for no distillation.
            positives: [Q, D] bool.
            lambda_share: 0..1, where the ramp stands.
            lexical: [D, V] targets of lexical_loss, or None.

        Returns:
            {"loss", "kl", "infonce", "flops", "lexical"} scalars, each before its weight but "loss".
        """
        scores = self.scores(q_bags, d_reps)
        zero = scores.new_zeros(())
        kl = kl_distillation(scores, teacher) if teacher is not None else zero
        infonce = info_nce(scores, positives, self.temperature) if self.infonce_weight else zero
        own = lexical_loss(d_reps.float(), lexical, self.idf) if lexical is not None else zero
        flops = flops_loss(d_reps.float())
        loss = kl + self.infonce_weight * infonce + self.lexical_weight * own
        loss = loss + self.lambda_flops * lambda_share * flops
        return {"loss": loss, "kl": kl, "infonce": infonce, "flops": flops, "lexical": own}
