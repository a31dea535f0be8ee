"""Sparsity penalties. Each one is a function of how active every term is in the documents of one batch.

activity a_j = (1 / N) * sum over the documents b of |w_bj|

Sums and N run over the documents of all processes, so a penalty and its gradient do not depend on how the
batch is cut up.

Letters: B documents of this process, N documents of the whole batch, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nblib.distributed import sum_over_processes

EPS = 1e-6  # floor of the idf range, so that equal weights give zeros and not NaN
ANTI_ZERO_FLOOR = 0.1  # keeps anti_zero below 100 and its gradient below 2000


def mean_activity(reps: Tensor, l0_threshold: int = 0) -> Tensor:
    """Average the weights of each term over all documents of the batch.

    Source of the threshold: arXiv:2504.14839, the l0 mask. A document with few terms needs no more pressure;
    it still counts in N, so what it would have added is not shifted onto the others.

    Args:
        reps: [B, V] encoder output of this process; B may be 0.
        l0_threshold: documents with at most this many non-zero weights add nothing.

    Returns:
        [V] >= 0.

    Raises:
        ValueError: reps is not two-dimensional (token logits [B, L, V] are a common mistake).
    """
    if reps.ndim != 2:
        raise ValueError(f"want pooled reps [B, V], got shape {tuple(reps.shape)}")
    sizes = reps.abs()
    if l0_threshold > 0:
        sizes = sizes * (reps.count_nonzero(dim=1) > l0_threshold).unsqueeze(1)
    return sum_over_processes(sizes.sum(dim=0)) / _documents(reps)


def document_frequency(reps: Tensor) -> Tensor:
    """Give the share of the batch's documents that hold each term: [B, V] -> [V], 0..1, no gradient."""
    held = (reps.detach() != 0).sum(dim=0).to(reps.dtype)
    return sum_over_processes(held) / _documents(reps)


def _documents(reps: Tensor) -> Tensor:
    return sum_over_processes(reps.new_tensor(float(len(reps))))


def flops(activity: Tensor) -> Tensor:
    """Penalise the expected multiplications of one query-document score: sum over j of a_j^2.

    Squaring the batch mean, not each weight, hits terms that fire in many documents: those make the long
    posting lists that cost time at search.

    Source: Paria et al. 2020 (arXiv:2004.05665), eq. 4; arXiv:2411.04403, eq. 3.

    Args:
        activity: [V] from mean_activity.
    """
    return activity.square().sum()


def flops_loss(reps: Tensor) -> Tensor:
    """Compute flops of [B, V] reps at once; see flops and mean_activity."""
    return flops(mean_activity(reps))


def l1(activity: Tensor) -> Tensor:
    """Penalise the mean L1 norm of a document: sum over j of a_j, blind to which documents share a term."""
    return activity.sum()


def anti_zero(activity: Tensor) -> Tensor:
    """Keep the representations from vanishing: 1 / (mean L1 norm of a document + 0.1)^2.

    Next to nothing for a healthy document (an L1 norm of 50 costs 0.0004) and steep near zero, where relu
    would soon leave no gradient to come back by.

    Source: the idea of an inverse square of the total weight is that of naver/splade's trainer, which adds up
    the whole batch and has no floor. The mean makes the term independent of the batch size.

    Args:
        activity: [V] from mean_activity, without an l0 threshold (masked documents would look empty).

    Returns:
        scalar, 0..100.
    """
    return (activity.sum() + ANTI_ZERO_FLOOR).pow(-2)


def idf_penalty_weights(
    idf: Tensor,
    special_ids: Sequence[int],
    alpha: float,
    special_penalty: float = 100.0,
    stop_ids: Sequence[int] = (),
    stopword_penalty: float = 1.0,
) -> Tensor:
    """Weigh the penalty of each term: the more documents hold it, the more it costs.

    exp(-alpha * (idf_j - min) / (max - min)), min and max over the terms that are not special

    Source: the training code behind guides V25 (alpha 2.5, stop words x 5) and V26 (alpha 4, stop words x 15,
    special tokens 100).

    Args:
        idf: [V] query weights.
        special_ids: ids of the special tokens.
        alpha: how fast the penalty falls with idf; 0 treats all terms alike.
        special_penalty: weight of the special tokens.
        stop_ids: ids of stop tokens.
        stopword_penalty: factor on their weights.

    Returns:
        [V]; exp(-alpha)..1 for all but special and stop tokens.

    Raises:
        ValueError: every token is special.
    """
    special = torch.zeros(len(idf), dtype=torch.bool, device=idf.device)
    special[list(special_ids)] = True
    if special.all():
        raise ValueError(f"all {len(idf)} tokens are special: none is left to take the idf range from")
    low, high = idf[~special].aminmax()
    weights = torch.exp(-alpha * (idf - low) / (high - low).clamp_min(EPS))
    weights[list(stop_ids)] *= stopword_penalty
    return weights.masked_fill(special, special_penalty)


def idf_penalty(activity: Tensor, idf_weight: Tensor, beta: float) -> Tensor:
    """Penalise frequent terms more than rare ones: sum over j of w_j a_j + beta * w_j a_j^2.

    The matching score already carries idf (arXiv:2411.04403, eq. 5); putting it into the penalty as well is
    the choice of guides V25 and V26, to be compared with the uniform one.

    Source: the training code behind guides V25 and V26 (beta 0.3).

    Args:
        activity: [V] from mean_activity.
        idf_weight: [V] from idf_penalty_weights.
        beta: strength of the square.
    """
    return (idf_weight * (activity + beta * activity.square())).sum()


def df_flops(activity: Tensor, df_share: Tensor, alpha: float = 0.1, beta: float = 10.0) -> Tensor:
    """Penalise the long posting lists alone: FLOPS with a weight that is near 0 below a document frequency.

    sum over j of (w_j a_j)^2,  w_j = 1 / (1 + (x_j^(log_alpha 2) - 1)^beta),  x_j = df_j / N

    w_j is 0 for a term of no document, 1/2 at x_j = alpha and 1 for a term of all documents.

    Source: arXiv:2505.15070 (DF-FLOPS). Not checked against the paper itself: both formulas were read in
    summaries of it, alpha 0.1 and beta 10 in other people's code only. The paper estimates df every 100 steps
    from the documents of its validation; SparseLoss takes the batch's, which leaves no state to resume.

    Args:
        activity: [V] from mean_activity.
        df_share: [V] share of the documents that hold each term, 0..1; no gradient flows into it.
        alpha: the share at which half of the penalty acts, between 0 and 1.
        beta: how sharp the cut is.

    Returns:
        scalar, between 0 and flops(activity).

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is a share of the documents: want 0 < alpha < 1")
    rarity = df_share.detach().pow(math.log(2, alpha))  # 1 for a term of all documents, inf for one of none
    weight = 1 / (1 + (rarity - 1).pow(beta))
    return flops(weight * activity)
