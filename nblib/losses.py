"""Ranking losses and the ensemble target; nblib.objective adds them up with the sparsity penalties.

Letters: Q queries and D documents of one batch, P (query, positive) pairs, V vocabulary. Every query is
scored against every document of the batch, so in-batch and hard negatives are the same thing here: other
columns of scores [Q, D]. Where several processes train together, D_own documents are this process's, D those
of all, and every process computes the loss of the whole batch (see nblib.distributed).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, relu, softmax

from nblib.distributed import sum_over_processes

EPS = 1e-6  # floor of a teacher's range, so that equal scores give zeros and not NaN


def min_max(scores: Tensor) -> Tensor:
    """Stretch each row of teacher scores to 0..1: (s - min) / (max - min); a constant row becomes zeros.

    Source: arXiv:2411.04403, eq. 8.

    Args:
        scores: [Q, D] one teacher's scores of each query's candidates; NaN, a pair it did not score, stays
            NaN and counts neither as minimum nor as maximum.
    """
    missing = scores.isnan()
    low = scores.masked_fill(missing, torch.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(missing, -torch.inf).amax(dim=1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(EPS)


def ensemble_scores(
    teachers: Sequence[Tensor], weights: Sequence[float], scale: float, normalise: bool = True
) -> Tensor:
    """Add unlike teachers on one scale: S * sum_j w_j * min_max(s_j).

    Source: arXiv:2411.04403, eq. 9 (the paper takes the arithmetic mean: w_j = 1 / number of teachers).

    Args:
        teachers: one [Q, D] tensor per teacher; NaN where it did not score a pair.
        weights: one weight per teacher.
        scale: S, the spread of the target; larger is sharper. 10 in pretraining, 30 in finetuning.
        normalise: False adds the raw scores, sum_j w_j * s_j without S: the ablation of the paper's table 6.

    Returns:
        [Q, D] between 0 and S * sum(weights) if normalised; NaN where any teacher has none.

    Raises:
        ValueError: no teacher, or the number of weights differs.
    """
    if not teachers or len(teachers) != len(weights):
        raise ValueError(
            f"want one weight per teacher, got {len(teachers)} teachers and {len(weights)} weights"
        )
    pairs = list(zip(weights, teachers, strict=True))
    if not normalise:
        return sum(w * s for w, s in pairs)
    return scale * sum(w * min_max(s) for w, s in pairs)


def kl_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over queries of KL( softmax(teacher) || softmax(student) ).

    Source: arXiv:2411.04403, eq. 1.

    Args:
        student: [Q, D] scores with gradient.
        teacher: [Q, D] target scores, already scaled; NaN, a pair without a score, is left out of both
            softmaxes. A query with fewer than two scores has nothing to compare and is not in the mean.
    """
    missing = teacher.isnan()
    usable = (~missing).sum(dim=1, keepdim=True) > 1  # [Q, 1]
    # A row of -inf alone would turn NaN, so the unusable ones become rows of 0, whose KL is 0.
    student, teacher = (
        s.masked_fill(missing, -torch.inf).masked_fill(~usable, 0.0) for s in (student, teacher)
    )
    kl = kl_div(log_softmax(student, dim=1), softmax(teacher, dim=1), reduction="none")  # [Q, D]
    return kl.masked_fill(missing, 0.0).sum() / usable.sum().clamp_min(1)


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


def _margins(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Give s_p - s_n of every (query, positive) pair and document n, and which n are no positives: [P, D]."""
    rows, columns = positives.nonzero(as_tuple=True)
    return scores[rows, columns].unsqueeze(1) - scores[rows], ~positives[rows]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)


def margin_mse(student: Tensor, teacher: Tensor, positives: Tensor) -> Tensor:
    """Teach the student the teacher's distance between a positive and every other document.

    mean over (positive p, other n) of ((s_p - s_n) - (t_p - t_n))^2

    Source: Hofstaetter et al. 2020 (arXiv:2010.02666), eq. 2.

    Args:
        student: [Q, D] scores with gradient.
        teacher: [Q, D] target scores on the student's scale; a pair in which either is NaN is left out.
        positives: [Q, D] bool; another positive of the same query is no `other`.

    Returns:
        scalar; 0 if no pair is left.
    """
    target, others = _margins(teacher, positives)
    pairs = others & ~target.isnan()
    error = _margins(student, positives)[0] - target.masked_fill(~pairs, 0.0)
    return _masked_mean(error.square(), pairs)


def triplet_margin(scores: Tensor, positives: Tensor, margin: float) -> Tensor:
    """Ask every positive to lead every other document by a margin: mean of relu(margin - s_p + s_n).

    Source: Schroff et al. 2015 (arXiv:1503.03832), eq. 3, over all triplets of the batch.

    Args:
        scores: [Q, D].
        positives: [Q, D] bool.
        margin: in the unit of the scores; IDF-weighted products run to tens, cosines to 1.

    Returns:
        scalar; 0 if no (positive, other) pair is there.
    """
    lead, others = _margins(scores, positives)
    return _masked_mean(relu(margin - lead), others)


def lexical_loss(d_reps: Tensor, targets: Tensor, idf: Tensor) -> Tensor:
    """Pull the weights of a document's own tokens towards given ones; expansion terms are left alone.

    sum over documents and their own tokens of (idf_j (w_j - target_j))^2 / (D x mean idf^2 of these tokens)

    A ranking loss says little about each weight, this one names all of them: a few dozen batches bring an
    encoder near BM25, from where the teachers take over. idf_j w_j is what a token adds to a score, so it is
    the error of scores that is squared: common tokens are left to the penalty. Not part of the paper.

    Args:
        d_reps: [D_own, V] encoder output.
        targets: [D_own, V] wanted weights; 0 where there is none.
        idf: [V] query weights.

    Returns:
        scalar, over the documents of all processes.
    """
    own = targets > 0
    weight = idf.square().expand_as(targets)[own]
    error = (weight * (d_reps[own] - targets[own]).square()).sum()
    counts = [weight.sum(), own.sum().to(error), error.new_tensor(float(len(d_reps)))]
    error, weights, tokens, documents = sum_over_processes(torch.stack([error, *counts]))
    return error / (weights / tokens.clamp_min(1)).clamp_min(EPS) / documents


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
