"""What the machine allows, worked out by hand, and how the table and the figure tell it."""

import math
from functools import partial

import pytest
from matplotlib.figure import Figure

from nblib.model.encoder import NeuralSparseEncoder
from nblib.speed import figures, measure, parts
from nblib.speed.rows import row as speed_row


@pytest.fixture
def encoder(tiny_backbone, monkeypatch):
    """An encoder on a machine of round figures: 1000 FLOP/s in fp32, 4000 in bf16, 7 bytes/s of memory."""
    monkeypatch.setattr(measure, "gemm_rates", lambda: {"fp32": 500.0, "fp32_onednn": 1e3, "bf16": 4e3})
    monkeypatch.setattr(measure, "memory_bandwidth", lambda: 7.0)
    monkeypatch.setattr(measure, "backbone_flops", lambda encoder, tokens, length: 2e3)
    monkeypatch.setattr(measure, "head_flops", lambda encoder, tokens: 1e3)
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    encoder.mlm.requires_grad_(False)
    encoder.decoder.bias.requires_grad_(True)  # 600 numbers, and nothing else, are trained
    encoder.screen = False
    return encoder


def test_least_seconds_by_hand(encoder):
    v = encoder.vocab_size
    assert measure.trainable(encoder) == v
    least = partial(measure.least_seconds, encoder, 10, 5)
    assert least("fp32", trains=False) == 2 + 1  # products only: nothing is updated
    assert least("bf16", trains=False) == 0.5 + 0.25
    assert least("fp32", trains=True) == pytest.approx(3 * 2 + 1 + 4 * v)
    encoder.screen = True  # the logits then run in bf16
    assert least("fp32", trains=True) == pytest.approx(3 * 2 + 0.25 + 4 * v)


def test_tied_weights_count_once(tiny_backbone):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    modules = (encoder.mlm.bert, encoder.mlm.cls.predictions.transform)  # the decoder adds its bias only
    want = sum(p.numel() for m in modules for p in m.parameters()) + encoder.decoder.out_features
    assert measure.trainable(encoder) == want


def test_least_memory_by_hand():
    assert measure.least_head_gib(1024, 1024) == 8 / 1024  # 8 bytes for each of 2^20 maxima: 8 MiB
    assert measure.least_training_gib(2**30) == 16


def test_a_side_without_a_figure_has_no_ratio():
    for ours, peer in ((None, 2.0), (2.0, None), (0.0, 2.0)):
        assert speed_row("x", "", "", ours, peer, "peer", "GiB", less_is_better=True)["ratio"] is None


def test_share_of_the_limit_by_hand():
    def share(unit, ours, limit):
        less = not unit.startswith("documents")
        row = speed_row("x", "", "", ours, 1.0, "peer", unit, less_is_better=less, limit=limit)
        return parts.table([row])["share of the machine's limit"][0]

    assert share("s", 4.0, 1.0) == share("GiB", 2.0, 0.5) == "25%"
    assert share("documents/s", 30.0, 40.0) == "75%"
    assert share("s", 4.0, None) == share("GiB", None, 4.0) == share("GiB", 0.0, 4.0) == ""


def test_ratios_are_drawn_against_the_strongest_peer():
    def row(name, ours, peer, unit="s", peer_name="peer"):
        return speed_row(name, "", "", ours, peer, peer_name, unit, less_is_better=True, limit=1.0)

    rows = [row("step", 2.0, 8.0), row("step", 2.0, 6.0), row("step", 2.0, 7.0)]
    rows += [row("step", 2.0, peer, peer_name=f"peer, our {peer}") for peer in (5.0, 4.0, 5.0)]
    rows += [row("memory", 1.0, 5.0, "GiB"), row("big", None, 1.0)]
    ax = figures.ratios(Figure().subplots(), rows)
    assert [bar.get_width() for bar in ax.patches] == [3.0, 5.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["step", "memory"]
    (lent,) = (line for line in ax.lines if line.get_marker() == "D")
    assert list(lent.get_xdata()) == [2.0] and list(lent.get_ydata()) == [0]
    assert all(map(math.isfinite, ax.get_xlim()))
