import math

import pytest
import torch
from sentence_transformers.sparse_encoder.losses import FlopsLoss

from nblib import regularizers as reg

REPS = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])


def test_activity_by_hand():
    assert reg.mean_activity(REPS).tolist() == [1.0, 0.5, 0.5]  # 4 / 4, 2 / 4, 2 / 4
    assert reg.mean_activity(-REPS).tolist() == [1.0, 0.5, 0.5]


def test_masked_documents_still_count_in_the_mean():
    # at most one weight: documents 1 and 3 add nothing; 1 / 4 and 2 / 4 are left
    assert reg.mean_activity(REPS, l0_threshold=1).tolist() == [0.25, 0.5, 0.0]
    assert reg.mean_activity(REPS, l0_threshold=2).sum() == 0


@pytest.mark.parametrize("threshold", [0, 5, 8])
def test_flops_is_that_of_sentence_transformers(threshold):
    torch.manual_seed(0)
    ours = (torch.rand(12, 20) - 0.6).relu().requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = reg.flops(reg.mean_activity(ours, threshold))
    want = FlopsLoss(None, threshold or None).compute_loss_from_embeddings(theirs)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6) and loss > 0
    loss.backward()
    want.backward()
    held = ours > 0  # at 0 the slope of |w| is 0 here and 1 there; relu lets neither through
    torch.testing.assert_close(ours.grad[held], theirs.grad[held])


def test_flops_by_hand():
    reps = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # column means 2 and 3
    assert reg.flops_loss(reps).item() == 13.0  # 2^2 + 3^2


def test_flops_blames_the_common_term():
    common = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    spread = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reg.flops_loss(common) == 2 * reg.flops_loss(spread)  # same weight in all, twice the cost
    assert reg.l1(reg.mean_activity(common)) == reg.l1(reg.mean_activity(spread)) == 1.0


def test_token_logits_are_refused():
    with pytest.raises(ValueError, match="pooled"):
        reg.flops_loss(torch.zeros(2, 5, 7))


def test_anti_zero_by_hand():
    assert reg.anti_zero(torch.tensor([0.4, 0.5])).item() == pytest.approx(1.0)  # 1 / (.9 + .1)^2
    assert reg.anti_zero(torch.tensor([50.0])).item() < 5e-4
    nothing = torch.zeros(3, requires_grad=True)
    loss = reg.anti_zero(nothing)
    loss.backward()
    assert loss.item() == pytest.approx(100.0, rel=1e-5)
    assert nothing.grad.tolist() == pytest.approx([-2000.0] * 3, rel=1e-5), "finite, and it says: grow"


def test_idf_weights_by_hand():
    idf = torch.tensor([0.0, 2.0, 4.0, 6.0, 9.0])  # 0 and 4 are special: the range is 2..6
    got = reg.idf_penalty_weights(idf, [0, 4], alpha=2.0)
    assert got.tolist() == pytest.approx([100.0, 1.0, math.exp(-1), math.exp(-2), 100.0])
    stopped = reg.idf_penalty_weights(idf, [0, 4], 2.0, 7.0, stop_ids=[2, 4], stopword_penalty=5.0)
    assert stopped.tolist() == pytest.approx([7.0, 1.0, 5 * math.exp(-1), math.exp(-2), 7.0])
    assert idf.tolist() == [0.0, 2.0, 4.0, 6.0, 9.0], "the caller's vector is left alone"


def test_idf_weights_without_special_tokens_or_range():
    assert reg.idf_penalty_weights(torch.tensor([3.0, 3.0]), [], 2.0).tolist() == [1.0, 1.0]
    assert reg.idf_penalty_weights(torch.tensor([1.0, 3.0]), (), 0.0).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="all 2 tokens are special"):
        reg.idf_penalty_weights(torch.tensor([3.0, 3.0]), [0, 1], 2.0)


def test_idf_penalty_by_hand():
    activity, weights = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5])
    # 1 x 2 + .5 x 3 = 3.5, and .3 x (1 x 4 + .5 x 9) = 2.55
    assert reg.idf_penalty(activity, weights, beta=0.3).item() == pytest.approx(6.05)


def test_document_frequency_by_hand():
    assert reg.document_frequency(REPS.requires_grad_()).tolist() == [0.5, 0.25, 0.25]
    assert not reg.document_frequency(REPS).requires_grad


def test_df_flops_weighs_by_document_frequency():
    share = torch.tensor([0.0, 0.1, 1.0])  # none, alpha, all
    assert [reg.df_flops(torch.eye(3)[i], share).item() for i in range(3)] == pytest.approx([0.0, 0.25, 1.0])
    # x = 1/4 at alpha 1/16: log_alpha 2 = -1/4, so x^(-1/4) = sqrt 2 and w = 1 / (1 + (sqrt 2 - 1)^2)
    got = reg.df_flops(torch.tensor([3.0]), torch.tensor([0.25]), alpha=1 / 16, beta=2.0).item()
    assert got == pytest.approx((3 / (1 + (math.sqrt(2) - 1) ** 2)) ** 2)


def test_df_flops_has_no_gradient_through_the_frequency():
    activity = torch.tensor([1.0, 2.0], requires_grad=True)
    share = torch.tensor([0.0, 0.3], requires_grad=True)
    reg.df_flops(activity, share).backward()
    assert share.grad is None and activity.grad.isfinite().all() and activity.grad[1] > 0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_df_flops_refuses_a_share_out_of_range(alpha):
    with pytest.raises(ValueError, match="0 < alpha < 1"):
        reg.df_flops(torch.ones(2), torch.ones(2), alpha)


WEIGHT, SHARE = torch.tensor([1.0, 0.5, 2.0]).double(), torch.tensor([0.5, 0.25, 0.01]).double()


@pytest.mark.parametrize(
    "penalty",
    [
        reg.flops,
        reg.l1,
        reg.anti_zero,
        lambda a: reg.idf_penalty(a, WEIGHT, 0.3),
        lambda a: reg.df_flops(a, SHARE),
    ],
    ids=["flops", "l1", "anti_zero", "idf_penalty", "df_flops"],
)
@pytest.mark.parametrize("threshold", [0, 2])
def test_gradients(penalty, threshold):
    torch.manual_seed(1)
    reps = (torch.rand(4, 3).double() + 0.1) * torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1], [0, 1, 1]])
    held = reps > 0
    reps = reps[held].requires_grad_()  # only the active weights: |w| and the l0 count jump at 0

    def loss(active):
        return penalty(reg.mean_activity(torch.zeros(4, 3).double().masked_scatter(held, active), threshold))

    assert torch.autograd.gradcheck(loss, reps)
