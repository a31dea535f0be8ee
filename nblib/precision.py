"""Which number format this machine multiplies in, and the attention that is fastest in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from statistics import median

import torch

from nblib.model.encoder import NeuralSparseEncoder

GAIN = 1.5  # bf16 must beat fp32 by this factor; machines lie near 4 or 2 (bf16 units) or near 0.3 (emulated)


def resolve_precision(name: str) -> str:
    """Turn "auto" into what the machine multiplies fastest: fp32, bf16 or fp16.

    On a CPU this is measured, in some 10 to 100 ms once per process: flags promise less than they tell. Seen
    on 2 cores of AVX-512 machines: with bf16 units 1,000 GFLOP/s in bf16 and 235 in fp32, without them 50
    and 130.
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if bf16_gain() > GAIN else "fp32"


@cache
def bf16_gain(rows: int = 512, width: int = 384, repeats: int = 7) -> float:
    """Measure how much faster this CPU multiplies [rows, width] x [width, 4 width] in bf16 than in fp32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = torch.ones(rows, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            torch.nn.functional.linear(hidden, weight)
            times.append(time.perf_counter() - start)
        seconds[dtype] = median(times[2:])  # the first two set up threads and kernels
    return seconds[torch.float32] / seconds[torch.bfloat16]


@contextmanager
def quick_fp32() -> Iterator[None]:
    """Let a CPU multiply fp32 by oneDNN instead of MKL for the length of the block; for encoding, not export.

    MKL is slow on some processors: on 2 cores of an AMD EPYC this encoded documents of 512 tokens 1.6 times
    as fast, with weights equal to 1e-5. Where the CPU has AMX, oneDNN may round the inputs to bf16.
    """
    before = torch.get_float32_matmul_precision()
    if not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_attention(encoder: NeuralSparseEncoder, precision: str) -> None:
    """Give the backbone the attention that trains fastest.

    torch's fused attention for CPUs is slow backwards in bf16: 8 documents of 128 tokens and 12 heads took
    12.7 ms forwards and backwards, the plain products 2.9; in fp32 6.3 and 16.0.
    """
    if encoder.device.type == "cpu" and precision == "bf16":
        encoder.mlm.set_attn_implementation("eager")
