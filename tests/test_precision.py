"""The number format of training, and the attention that goes with it."""

import math
import platform
from pathlib import Path

import pytest
import torch

from nblib import precision
from nblib.files import read_json
from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import (
    GAIN,
    bf16_gain,
    choose_kernels,
    gemm_rates,
    memory_bandwidth,
    prefers_onednn,
    quick_fp32,
    resolve_precision,
)

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA decides here, not the CPU")


def test_a_named_format_is_taken_as_it_is():
    assert [resolve_precision(name) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]


@on_cpu
def test_auto_follows_the_measured_gain():
    assert 0 < bf16_gain() < 100
    assert resolve_precision("auto") == ("bf16" if bf16_gain() > GAIN else "fp32")


@on_cpu
@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="reads CPU flags")
def test_a_processor_without_bf16_units_trains_in_fp32():
    flags = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        pytest.skip("this processor has bf16 units")
    assert resolve_precision("auto") == "fp32"


@on_cpu
def test_the_attention_chosen_for_bf16_gives_the_same_reps(tiny_backbone, english_texts, tmp_path):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32).eval()
    before = encoder.encode_documents(english_texts).toarray()
    choose_kernels(encoder, "bf16")
    assert encoder.mlm.config._attn_implementation == "eager" and not encoder.screen
    assert encoder.encode_documents(english_texts).toarray() == pytest.approx(before, abs=1e-5)
    encoder.save_pretrained(tmp_path)
    assert "eager" not in str(read_json(tmp_path / "config.json"))  # how it was trained binds nobody


@on_cpu
def test_kernels_follow_the_measured_rates(tiny_backbone, monkeypatch):
    """Rates as seen on three kinds of machines; what is chosen must follow them."""
    seen = {
        "bf16 units, slow MKL": ({"fp32": 190, "fp32_onednn": 430, "bf16": 850}, "eager", True),
        "no bf16 units": ({"fp32": 130, "fp32_onednn": 120, "bf16": 50}, "sdpa", False),
        "AMX, where oneDNN rounds": ({"fp32": 400, "fp32_onednn": 0.0, "bf16": 3000}, "sdpa", True),
    }
    for name, (rates, attention, screen) in seen.items():
        monkeypatch.setattr(precision, "gemm_rates", lambda rates=rates: rates)
        encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
        choose_kernels(encoder, "fp32")
        assert (encoder.mlm.config._attn_implementation, encoder.screen) == (attention, screen), name
        with quick_fp32():
            chosen = torch.get_float32_matmul_precision()
        assert chosen == ("medium" if attention == "eager" else "highest"), name


@on_cpu
def test_the_preferred_fp32_kernel_rounds_no_inputs():
    rates = gemm_rates()
    assert rates["fp32"] > 1e8 and rates["bf16"] > 1e8
    left, right = torch.randn(50, 384), torch.randn(384, 50)
    plain = left @ right
    with quick_fp32():
        assert (left @ right - plain).abs().max() < 1e-5 * plain.abs().max()
    assert prefers_onednn() == (rates["fp32_onednn"] > GAIN * rates["fp32"])


def test_memory_bandwidth_is_measured():
    assert 0 < memory_bandwidth() < math.inf


def test_memory_bandwidth_by_hand(monkeypatch):
    """128 MiB read and as many written; copies that take 4, 2 and 8 s: the best counts."""
    ticks = iter([0, 4, 10, 12, 20, 28])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert memory_bandwidth.__wrapped__(repeats=3) == 128 * 2**20


def test_quick_fp32_changes_nothing_but_the_kernels(tiny_backbone, english_texts):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    before = encoder.encode_documents(english_texts).toarray()
    with quick_fp32():
        inside = encoder.encode_documents(english_texts).toarray()
    assert inside == pytest.approx(before, abs=1e-4)
    with pytest.raises(ZeroDivisionError), quick_fp32():
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == "highest"
