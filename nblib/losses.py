"""Ranking losses, the ensemble target and their sum with the sparsity penalties.

Letters: Q queries and D documents of one batch, P (query, positive) pairs, V vocabulary. Every query is
scored against every document of the batch, so in-batch and hard negatives are the same thing here: other
columns of scores [Q, D]. Where several processes train together, D_own documents are this process's, D those
of all, and every process computes the loss of the whole batch (see nblib.distributed).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, relu, softmax

from nblib import regularizers
from nblib.distributed import gather_columns, sum_over_processes

EPS = 1e-6  # floor of a teacher's range, so that equal scores give zeros and not NaN
RAMPED = ("flops", "l1", "idf_penalty", "df_flops")  # penalties that grow with the ramp


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


@dataclass(frozen=True)
class LossWeights:
    """How much each term adds to the loss, 0 leaves it out; below them, the settings of the terms.

    kl, margin_mse, infonce, triplet, lexical: ranking terms. flops (lambda_flops), l1, idf_penalty, df_flops:
    penalties, which grow with the ramp. anti_zero: against vanishing, at full strength from the first step.

    temperature: of infonce. margin: of triplet. l0_threshold: documents with at most this many terms are free
    of penalties. idf_alpha, idf_beta, special_penalty, stopword_penalty: of idf_penalty. df_alpha, df_beta:
    of df_flops. See the functions of the same names.
    """

    kl: float = 1.0
    margin_mse: float = 0.0
    infonce: float = 0.0
    triplet: float = 0.0
    lexical: float = 0.0
    flops: float = 0.0
    l1: float = 0.0
    anti_zero: float = 0.0
    idf_penalty: float = 0.0
    df_flops: float = 0.0
    temperature: float = 1.0
    margin: float = 0.3
    l0_threshold: int = 0
    idf_alpha: float = 2.5
    idf_beta: float = 0.3
    special_penalty: float = 100.0
    stopword_penalty: float = 5.0
    df_alpha: float = 0.1
    df_beta: float = 10.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; want a number of at least 0")
        if self.temperature == 0:
            raise ValueError("temperature is 0; the scores are divided by it")


class SparseLoss(nn.Module):
    """Weighted sum of ranking terms and sparsity penalties over the documents of all processes.

    Source: L = L_rank-idf + lambda * L_FLOPS (arXiv:2411.04403, eq. 6) is kl and flops alone.

    Args:
        idf: [V] query weights.
        weights: what adds to the loss, and how much.
        special_ids: special tokens, for idf_penalty.
        stop_ids: stop tokens, for idf_penalty.
    """

    def __init__(
        self,
        idf: Tensor,
        weights: LossWeights,
        special_ids: Sequence[int] = (),
        stop_ids: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.weights = weights
        self.register_buffer("idf", torch.as_tensor(idf, dtype=torch.float32), persistent=False)
        if weights.idf_penalty:
            penalty = regularizers.idf_penalty_weights(
                self.idf,
                special_ids,
                weights.idf_alpha,
                weights.special_penalty,
                stop_ids,
                weights.stopword_penalty,
            )
            self.register_buffer("idf_weight", penalty, persistent=False)

    def forward(
        self,
        q_reps: Tensor,
        d_reps: Tensor,
        positives: Tensor,
        teacher: Tensor | None = None,
        lexical: Tensor | None = None,
        share: float = 1.0,
    ) -> dict[str, Tensor]:
        """Compute the loss terms of one batch; every process gets the same values.

        Args:
            q_reps: [Q, V] all queries of the batch.
            d_reps: [D_own, V] encoder output of this process's documents.
            positives: [Q, D] bool.
            teacher: [Q, D] scaled target scores, NaN where there is none, or None for no distillation.
            lexical: [D_own, V] targets of lexical_loss.
            share: 0..1, where the ramp of the penalties stands.

        Returns:
            "loss", "flops" and every term of a weight above 0: scalars, each before its weight but "loss".

        Raises:
            ValueError: a term lacks its input, or none is left.
        """
        with torch.autocast(d_reps.device.type, enabled=False):
            d_reps = d_reps.float()
            terms = self._ranking_terms(_scores(q_reps, d_reps), positives, teacher)
            if self.weights.lexical:
                terms["lexical"] = lexical_loss(d_reps, _given(lexical, "lexical"), self.idf)
            terms |= self._penalties(d_reps)
        strength = {name: getattr(self.weights, name) for name in terms}
        parts = [w * terms[n] * (share if n in RAMPED else 1.0) for n, w in strength.items() if w]
        if not parts:
            raise ValueError("no loss term is left: give teacher scores or a weight above 0 to another term")
        return {"loss": sum(parts), **terms}

    def _ranking_terms(self, scores: Tensor, positives: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        weights, terms = self.weights, {}
        if weights.kl and teacher is not None:
            terms["kl"] = kl_distillation(scores, teacher)
        if weights.margin_mse:
            terms["margin_mse"] = margin_mse(scores, _given(teacher, "margin_mse"), positives)
        if weights.infonce:
            terms["infonce"] = info_nce(scores, positives, weights.temperature)
        if weights.triplet:
            terms["triplet"] = triplet_margin(scores, positives, weights.margin)
        return terms

    def _penalties(self, d_reps: Tensor) -> dict[str, Tensor]:
        weights = self.weights
        activity = regularizers.mean_activity(d_reps, weights.l0_threshold)
        terms = {"flops": regularizers.flops(activity)}
        if weights.l1:
            terms["l1"] = regularizers.l1(activity)
        if weights.idf_penalty:
            terms["idf_penalty"] = regularizers.idf_penalty(activity, self.idf_weight, weights.idf_beta)
        if weights.df_flops:
            df_share = regularizers.document_frequency(d_reps)
            terms["df_flops"] = regularizers.df_flops(activity, df_share, weights.df_alpha, weights.df_beta)
        if weights.anti_zero:
            whole = regularizers.mean_activity(d_reps) if weights.l0_threshold else activity
            terms["anti_zero"] = regularizers.anti_zero(whole)
        return terms


def _scores(q_reps: Tensor, d_reps: Tensor) -> Tensor:
    """Score all queries against the documents of all processes: [Q, V], [D_own, V] -> [Q, D]."""
    return gather_columns(q_reps.float() @ d_reps.float().T)


def _given(value: Tensor | None, term: str) -> Tensor:
    if value is None:
        raise ValueError(f"the weight of {term} is above 0 but its target scores or weights are not given")
    return value


class IDFAwareLoss(SparseLoss):
    """SparseLoss under the names of guide 002: queries are 0/1 bags and IDF is multiplied in here.

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
        weights: all weights at once, in place of the four above.
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
        weights: LossWeights | None = None,
    ) -> None:
        weights = weights or LossWeights(
            flops=lambda_flops, infonce=infonce_weight, temperature=temperature, lexical=lexical_weight
        )
        super().__init__(idf_vector(idf_weights, vocab_size, default_idf), weights)
        self.to(device)

    @property
    def lambda_flops(self) -> float:
        """Full strength of the FLOPS penalty."""
        return self.weights.flops

    def scores(self, q_bags: Tensor, d_reps: Tensor) -> Tensor:
        """Score every query against every document: [Q, V] 0/1 bags and [D_own, V] reps -> [Q, D] (eq. 5)."""
        return _scores(q_bags * self.idf, d_reps)

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
            d_reps: [D_own, V] encoder output.
            teacher: [Q, D] scaled target scores, or None for no distillation.
            positives: [Q, D] bool.
            lambda_share: 0..1, where the ramp stands.
            lexical: [D_own, V] targets of lexical_loss, or None.

        Returns:
            What SparseLoss returns; "kl", "infonce" and "lexical" are 0 where they are not computed.
        """
        terms = super().forward(q_bags * self.idf, d_reps, positives, teacher, lexical, lambda_share)
        return dict.fromkeys(("kl", "infonce", "lexical"), terms["loss"].new_zeros(())) | terms
