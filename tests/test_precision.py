"""The number format of training, and the attention that goes with it."""

import platform
from pathlib import Path

import pytest
import torch

from nblib.files import read_json
from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import GAIN, bf16_gain, choose_attention, quick_fp32, resolve_precision

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
    choose_attention(encoder, "fp32")
    fused = encoder.mlm.config._attn_implementation
    choose_attention(encoder, "bf16")
    assert (fused, encoder.mlm.config._attn_implementation) == ("sdpa", "eager")
    assert encoder.encode_documents(english_texts).toarray() == pytest.approx(before, abs=1e-5)
    encoder.save_pretrained(tmp_path)
    assert "eager" not in str(read_json(tmp_path / "config.json"))  # how it was trained binds nobody


def test_quick_fp32_changes_nothing_but_the_kernels(tiny_backbone, english_texts):
    encoder = NeuralSparseEncoder(str(tiny_backbone), max_length=32)
    before = encoder.encode_documents(english_texts).toarray()
    with quick_fp32():
        inside = encoder.encode_documents(english_texts).toarray()
    assert inside == pytest.approx(before, abs=0.02)  # with AMX the inputs have 8 bits
    with pytest.raises(ZeroDivisionError), quick_fp32():
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == "highest"
