"""The streamed head against the plain definition: [B, L, V] logits, mask, max."""

import pytest
import torch

from nblib.model import head

B, H, V = 4, 16, 300


def plain(packed, lengths, weight, bias):
    """Pad, multiply, mask and take the maximum, with [B, L, V] in memory."""
    hidden = torch.nn.utils.rnn.pad_sequence(list(packed.split(lengths)), batch_first=True)  # [B, L, H]
    mask = torch.arange(hidden.shape[1])[None] < torch.tensor(lengths)[:, None]
    logits = hidden @ weight.T + bias  # [B, L, V]
    return logits.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


def inputs(shift, dtype=torch.float64):
    torch.manual_seed(0)
    lengths = [5, 1, 7, 3]
    packed = torch.randn(sum(lengths), H, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, H, dtype=dtype, requires_grad=True)
    bias = (torch.randn(V, dtype=dtype) - shift).requires_grad_()
    return packed, lengths, weight, bias


# shift 0: nearly all terms active (whole blocks); shift 12: a few (gathered columns); shift 99: none
@pytest.mark.parametrize("shift", [0.0, 12.0, 99.0])
@pytest.mark.parametrize("block", [64, 1024])
def test_values_and_gradients_equal_the_definition(shift, block, monkeypatch):
    monkeypatch.setattr(head, "BLOCK", block)
    packed, lengths, weight, bias = inputs(shift)
    got = torch.relu(head.max_logits(packed, lengths, weight, bias))
    want = torch.relu(plain(packed, lengths, weight, bias))
    assert got.shape == (B, V) and torch.allclose(got, want, atol=1e-12)
    upstream = torch.rand_like(got)
    ours = torch.autograd.grad((got * upstream).sum(), (packed, weight, bias))
    theirs = torch.autograd.grad((want * upstream).sum(), (packed, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert (ours[0].abs().sum() > 0) == (shift < 99), "a case without any gradient must be the last only"


def test_gradcheck_through_log1p():
    packed, lengths, weight, bias = inputs(6.0)

    def reps(p, w, b):
        return torch.log1p(torch.relu(head.max_logits(p, lengths, w, b)))

    assert torch.autograd.gradcheck(reps, (packed, weight, bias), eps=1e-6, atol=1e-5)


def test_a_frozen_decoder_gets_no_gradient():
    packed, lengths, weight, bias = inputs(6.0)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    torch.relu(head.max_logits(packed, lengths, weight, bias)).sum().backward()
    assert packed.grad.abs().sum() > 0 and weight.grad is None and bias.grad is None


def test_a_tie_goes_to_the_first_position():
    packed = torch.ones(2, 1, requires_grad=True)
    head.max_logits(packed, [2], torch.ones(1, 1), torch.zeros(1)).sum().backward()
    assert packed.grad.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("lengths", [[2, 0], [1, 2], [2]])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        head.max_logits(torch.ones(2 if 0 in lengths else 5, 3), lengths, torch.ones(4, 3), torch.zeros(4))
