"""The streamed head against the plain definition: [B, L, V] logits, mask, max."""

import pytest
import torch

from nblib.model import head
from nblib.model.pooling import activate

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


def walks(name, monkeypatch):
    """The three ways to the same maxima: packed blocks, padded blocks (the GPU's), bf16 screening."""
    if name == "padded":
        monkeypatch.setattr(head, "_PackedBlocks", head._PaddedBlocks)
        monkeypatch.setattr(head, "CUDA_BLOCK", 128)
    return name == "screened"


# shift 0: nearly all terms active (whole blocks); shift 12: a few (gathered columns); shift 99: none
@pytest.mark.parametrize("shift", [0.0, 12.0, 99.0])
@pytest.mark.parametrize("block", [64, 1024])
@pytest.mark.parametrize("way", ["packed", "padded", "screened"])
def test_values_and_gradients_equal_the_definition(shift, block, way, monkeypatch):
    monkeypatch.setattr(head, "BLOCK", block)
    monkeypatch.setattr(head._PackedBlocks, "size", block)
    screen = walks(way, monkeypatch)
    packed, lengths, weight, bias = inputs(shift)
    got = torch.relu(head.max_logits(packed, lengths, weight, bias, screen))
    want = torch.relu(plain(packed, lengths, weight, bias))
    assert got.shape == (B, V) and torch.allclose(got, want, atol=1e-12)
    upstream = torch.rand_like(got)
    ours = torch.autograd.grad((got * upstream).sum(), (packed, weight, bias))
    theirs = torch.autograd.grad((want * upstream).sum(), (packed, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert (ours[0].abs().sum() > 0) == (shift < 99), "a case without any gradient must be the last only"


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("way", ["packed", "padded", "screened"])
def test_gradcheck_through_the_activation(way, activation, monkeypatch):
    screen = walks(way, monkeypatch)
    packed, lengths, weight, bias = inputs(6.0)

    def reps(p, w, b):
        return activate(head.max_logits(p, lengths, w, b, screen), activation)

    assert torch.autograd.gradcheck(reps, (packed, weight, bias), eps=1e-6, atol=1e-5)


def test_screening_takes_the_plain_way_where_most_terms_are_active():
    packed, lengths, weight, bias = inputs(0.0, torch.float32)
    assert head._screened(packed, lengths, weight, bias) is None
    packed, lengths, weight, bias = inputs(9.0, torch.float32)
    assert head._screened(packed, lengths, weight, bias) is not None


def test_screening_loses_no_pair_at_the_edge():
    """Maxima within the rounding of bf16 around zero: the sign must be that of the full product."""
    torch.manual_seed(3)
    packed, weight = torch.randn(40, 64), torch.randn(5000, 64)
    lengths = [10] * 4
    exact = plain(packed, lengths, weight, torch.zeros(5000))
    bias = -exact.mean(dim=0) + 1e-3 * torch.randn(5000) - 8.0  # a few per cent active
    bias[:200] = -exact[0, :200] + 1e-4 * torch.randn(200)  # document 0: the sign hangs on the fifth digit
    want = torch.relu(plain(packed, lengths, weight, bias))
    got = torch.relu(head.max_logits(packed, lengths, weight, bias, screen=True))
    assert head._screened(packed, lengths, weight, bias) is not None
    assert torch.allclose(got, want, atol=1e-5)
    rounded = torch.relu(plain(packed.bfloat16(), lengths, weight.bfloat16(), bias.bfloat16()).float())
    assert not torch.allclose(rounded, want, atol=1e-3), "bf16 alone gets this case right"


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_sum_pooling_equals_its_definition(activation, monkeypatch):
    monkeypatch.setattr(head, "BLOCK", 64)
    packed, lengths, weight, bias = inputs(3.0)
    got = head.sum_weights(packed, lengths, weight, bias, activation)
    each = activate(packed @ weight.T + bias, activation)
    want = torch.stack([part.sum(dim=0) for part in each.split(lengths)])
    assert torch.allclose(got, want, atol=1e-12)
    upstream = torch.rand_like(got)
    ours = torch.autograd.grad((got * upstream).sum(), (packed, weight, bias))
    theirs = torch.autograd.grad((want * upstream).sum(), (packed, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_activations_by_hand():
    e = torch.e
    pooled = torch.tensor([-2.0, 0.0, e - 1, e**2 - 1])
    assert activate(pooled, "relu").tolist() == pytest.approx([0, 0, 1, 2])
    assert activate(pooled, "log1p_relu").tolist() == pytest.approx([0, 0, 0.693147, 1.098612])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats_equal_the_definition_in_them(dtype):
    packed, lengths, weight, bias = (x.to(dtype) if torch.is_tensor(x) else x for x in inputs(6.0))
    packed, weight, bias = (x.detach().requires_grad_() for x in (packed, weight, bias))
    got = torch.relu(head.max_logits(packed, lengths, weight, bias))
    want = torch.relu(plain(packed, lengths, weight, bias))
    assert got.dtype == dtype and torch.allclose(got.float(), want.float(), rtol=1e-2, atol=0.05)
    ours = torch.autograd.grad(got.float().sum(), (packed, weight, bias))
    theirs = torch.autograd.grad(want.float().sum(), (packed, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        assert (a - b).float().norm() < 0.05 * b.float().norm()


@pytest.mark.parametrize("way", ["packed", "padded", "screened"])
def test_no_logits_are_kept(way, monkeypatch):
    """What the backward pass holds on to is a few times the active pairs and the inputs, not [B, L, V]."""
    screen = walks(way, monkeypatch)
    packed, lengths, weight, bias = inputs(12.0, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        got = head.max_logits(packed, lengths, weight, bias, screen)
    active = int((got > 0).sum())
    assert 0 < active < 0.1 * got.numel()
    assert sum(kept) <= 3 * active + packed.numel() + weight.numel()


def test_a_frozen_decoder_gets_no_gradient():
    packed, lengths, weight, bias = inputs(6.0)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    torch.relu(head.max_logits(packed, lengths, weight, bias)).sum().backward()
    assert packed.grad.abs().sum() > 0 and weight.grad is None and bias.grad is None


@pytest.mark.parametrize(
    "active", [1, 100]
)  # of a hundred terms in two blocks: gathered columns, whole blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["packed", "padded", "screened"])
def test_a_tie_goes_to_the_first_position(way, dtype, active, monkeypatch):
    monkeypatch.setattr(head._PackedBlocks, "size", 50)
    screen = walks(way, monkeypatch)
    packed = torch.tensor([[-1.0], [1.0], [1.0], [1.0], [1.0]], dtype=dtype, requires_grad=True)
    weight = torch.cat([torch.ones(active, 1), -torch.ones(100 - active, 1)]).to(dtype)
    bias = torch.where(weight[:, 0] > 0, 0.0, -2.0).to(dtype)
    torch.relu(head.max_logits(packed, [3, 2], weight, bias, screen)).sum().backward()
    assert packed.grad.flatten().tolist() == [0.0, active, 0.0, active, 0.0]


@pytest.mark.parametrize("dense", [0.1, 0.9])  # it gives up on so many candidates, or goes on
def test_screening_does_not_hide_a_broken_document(dense, monkeypatch):
    monkeypatch.setattr(head, "DENSE", dense)
    packed, lengths, weight, bias = inputs(12.0, torch.float32)
    packed = packed.detach().clone()
    packed[0] = torch.nan  # of the first of four documents
    got = head.max_logits(packed, lengths, weight, bias, screen=True)
    assert got[0].isnan().all() and got[1:].isfinite().all()
    sound = head.max_logits(packed[5:], lengths[1:], weight, bias, screen=True)
    assert torch.allclose(torch.relu(got[1:]), torch.relu(sound), atol=1e-5) and (sound > 0).any()


def test_padded_blocks_shrink_with_the_batch(monkeypatch):
    monkeypatch.setattr(head, "CUDA_LOGITS", 40 * 3000)
    assert head._PaddedBlocks(torch.ones(50, 2), [10, 40]).size == head.BLOCK  # 1,500 would fit
    assert head._PaddedBlocks(torch.ones(15, 2), [5, 10]).size == 5 * head.BLOCK  # 6,000 fit
    assert head._PaddedBlocks(torch.ones(2, 2), [1, 1]).size == head.CUDA_BLOCK


@pytest.mark.parametrize("lengths", [[2, 0], [1, 2], [2]])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        head.max_logits(torch.ones(2 if 0 in lengths else 5, 3), lengths, torch.ones(4, 3), torch.zeros(4))


def test_autocast_equals_the_definition_under_autocast():
    """Products are rounded to bf16 on both sides; the gradients arrive in fp32."""
    packed, lengths, weight, bias = inputs(6.0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.relu(head.max_logits(packed, lengths, weight, bias))
        want = torch.relu(plain(packed, lengths, weight, bias))
    assert torch.allclose(got.float(), want.float(), atol=0.1) and got.count_nonzero() > 0
    exact = torch.relu(plain(packed, lengths, weight, bias))
    assert not torch.allclose(got.float(), exact, atol=1e-4), "autocast rounded nothing"
    ours = torch.autograd.grad(got.float().sum(), (packed, weight, bias))
    theirs = torch.autograd.grad(want.float().sum(), (packed, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.05 * b.norm()


def test_nothing_is_kept_without_gradients():
    packed, lengths, weight, bias = inputs(6.0)
    with torch.no_grad():
        got = head.max_logits(packed, lengths, weight, bias)
    assert not got.requires_grad and torch.allclose(
        torch.relu(got), torch.relu(plain(packed, lengths, weight, bias))
    )
