import math

import pytest
import torch

from nblib.losses import (
    IDFAwareLoss,
    ensemble_scores,
    flops_loss,
    idf_vector,
    info_nce,
    kl_distillation,
    lexical_loss,
    min_max,
)


def test_flops_by_hand():
    reps = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # column means 2 and 3
    assert flops_loss(reps).item() == 13.0  # 2^2 + 3^2


def test_flops_blames_the_common_term():
    common = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    spread = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert flops_loss(common) == 2 * flops_loss(spread)  # same weight in all, twice the cost


def test_token_logits_are_refused():
    with pytest.raises(ValueError, match="pooled"):
        flops_loss(torch.zeros(2, 5, 7))


def test_min_max_by_hand_and_constant_rows():
    scores = torch.tensor([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]])
    assert min_max(scores).tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]


def test_ensemble_by_hand():
    cosine = torch.tensor([[0.2, 0.6, 1.0]])  # 0, .5, 1
    bm25 = torch.tensor([[10.0, 0.0, 5.0]])  # 1, 0, .5
    got = ensemble_scores([cosine, bm25], [0.5, 0.5], scale=30.0)
    assert got.tolist() == [pytest.approx([15.0, 7.5, 22.5])]


def test_ensemble_ignores_a_teachers_scale():
    cosine, bm25 = torch.rand(3, 6), torch.rand(3, 6)
    stretched = ensemble_scores([cosine, 40 * bm25 + 7], [0.5, 0.5], 30.0)
    assert torch.allclose(stretched, ensemble_scores([cosine, bm25], [0.5, 0.5], 30.0), atol=1e-3)


@pytest.mark.parametrize("weights", [[], [0.5], [0.5, 0.3, 0.2]])
def test_ensemble_wants_a_weight_per_teacher(weights):
    with pytest.raises(ValueError, match="one weight per teacher"):
        ensemble_scores([torch.zeros(1, 2), torch.zeros(1, 2)], weights, 1.0)


def test_kl_by_hand():
    student = torch.zeros(1, 2)  # softmax: .5, .5
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # softmax: .75, .25
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_distillation(student, teacher).item() == pytest.approx(want, abs=1e-6)
    assert kl_distillation(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_kl_is_the_mean_over_queries():
    one = kl_distillation(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]]))
    two = kl_distillation(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1))
    assert one.item() == pytest.approx(two.item(), abs=1e-6)


def test_info_nce_by_hand():
    scores = torch.tensor([[2.0, 0.0]])
    positives = torch.tensor([[True, False]])
    assert info_nce(scores, positives, 1.0).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    assert info_nce(scores, positives, 2.0).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_info_nce_leaves_other_positives_out():
    scores = torch.tensor([[2.0, 9.0, 0.0]])
    both = info_nce(scores, torch.tensor([[True, True, False]]), 1.0)
    want = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-9))) / 2
    assert both.item() == pytest.approx(want, abs=1e-5)


def test_lexical_loss_by_hand():
    reps = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    # errors 1, 0 and 1 with idf 4, 1, 1: (4 x 1 + 1 x 0 + 1 x 1) / mean idf 2 / 2 documents
    assert lexical_loss(reps, targets, torch.tensor([4.0, 1.0, 7.0])).item() == pytest.approx(1.25)


def test_scores_weigh_shared_tokens_by_idf():
    loss = IDFAwareLoss([0.0, 2.0, 3.0], vocab_size=3)
    q_bags = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    d_reps = torch.tensor([[5.0, 1.0, 0.5]])
    assert loss.scores(q_bags, d_reps).tolist() == [[3.5], [2.0]]  # 2 x 1 + 3 x .5; token 0 weighs nothing


def test_loss_adds_its_terms():
    loss = IDFAwareLoss([1.0, 1.0], 2, lambda_flops=0.1, infonce_weight=0.5, temperature=1.0)
    q_bags, d_reps = torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 2.0]], requires_grad=True)
    teacher, positives = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2).bool()
    terms = loss(q_bags, d_reps, teacher, positives, lambda_share=0.25)
    want = terms["kl"] + 0.5 * terms["infonce"] + 0.1 * 0.25 * terms["flops"]
    assert terms["loss"].item() == pytest.approx(want.item(), abs=1e-6)
    assert terms["flops"].item() == pytest.approx(0.25 + 1.25**2)
    assert min(terms["kl"].item(), terms["infonce"].item()) > 0
    terms["loss"].backward()
    assert d_reps.grad.abs().sum() > 0


def test_high_idf_terms_outweigh_the_penalty():
    """Equation 7: same penalty, but the ranking gradient grows with IDF."""
    loss = IDFAwareLoss([0.1, 5.0], 2, lambda_flops=1.0)
    d_reps = torch.tensor([[0.1, 0.1], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[10.0, 0.0]])
    loss(torch.ones(1, 2), d_reps, teacher, torch.tensor([[True, False]]))["loss"].backward()
    frequent, rare = d_reps.grad[0].tolist()
    assert rare < 0 < frequent, "the rare term must grow, the frequent one shrink"


def test_idf_vector_forms():
    assert idf_vector({2: 3.0}, 4, 1.0).tolist() == [1.0, 1.0, 3.0, 1.0]
    assert idf_vector({"a": 2.0, "b": 3.0}, 2, 1.0).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="vocabulary of 3"):
        idf_vector({"a": 2.0, "b": 3.0}, 3, 1.0)
    with pytest.raises(ValueError, match="outside"):
        idf_vector({7: 1.0}, 3, 1.0)
