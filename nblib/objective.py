"""The training objective: ranking terms and sparsity penalties, weighted, over the batch of all processes.

Letters as in nblib.losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nblib import regularizers
from nblib.distributed import gather_columns
from nblib.losses import (
    idf_vector,
    info_nce,
    kl_distillation,
    lexical_loss,
    margin_mse,
    triplet_margin,
)

RAMPED = ("flops", "query_flops", "l1", "idf_penalty", "df_flops")  # penalties that grow with the ramp


@dataclass(frozen=True)
class LossWeights:
    """How much each term adds to the loss, 0 leaves it out; below them, the settings of the terms.

    kl, margin_mse, infonce, triplet, lexical: ranking terms. flops (lambda_flops), l1, idf_penalty, df_flops:
    penalties, which grow with the ramp; query_flops is flops of queries that are trained.
    anti_zero: against vanishing, at full strength from the first step.

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
    query_flops: float = 0.0
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
        corpus_idf: [V] for idf_penalty, where the query weights are others; None takes `idf`.
    """

    def __init__(
        self,
        idf: Tensor,
        weights: LossWeights,
        special_ids: Sequence[int] = (),
        stop_ids: Sequence[int] = (),
        corpus_idf: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.register_buffer("idf", torch.as_tensor(idf, dtype=torch.float32), persistent=False)
        if weights.idf_penalty:
            penalty = regularizers.idf_penalty_weights(
                self.idf if corpus_idf is None else torch.as_tensor(corpus_idf, dtype=torch.float32),
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
            dtype = torch.promote_types(torch.promote_types(q_reps.dtype, d_reps.dtype), torch.float32)
            q_reps, d_reps = q_reps.to(dtype), d_reps.to(dtype)
            terms = self._ranking_terms(_scores(q_reps, d_reps), positives, teacher)
            if self.weights.lexical:
                terms["lexical"] = lexical_loss(d_reps, _given(lexical, "lexical"), self.idf)
            terms |= self._penalties(d_reps)
            if self.weights.query_flops:  # every process holds all queries
                terms["query_flops"] = regularizers.flops(q_reps.mean(dim=0))
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
    return gather_columns(q_reps @ d_reps.T)


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
