"""What this machine multiplies fastest with and how fast its memory is: measured, as flags say too little."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from nblib.model.encoder import NeuralSparseEncoder

ROUNDS = 20  # of each product; some 0.1 to 0.5 s in all
GAIN = 1.5  # another format or kernel must be faster by this factor; machines lie well off it on either side
COPIED = 2**25  # float32 numbers, 128 MiB: more than the caches of most machines hold
SAME = 1e-5  # fp32 kernels may differ by this much, relative to the largest value; bf16 inputs differ by 1e-3


def resolve_precision(name: str) -> str:
    """Turn "auto" into what the machine multiplies fastest: fp32, bf16 or fp16.

    On a CPU this is measured, in some 10 to 100 ms once per process. Seen on 2 cores of AVX-512 machines:
    with bf16 units 1,000 GFLOP/s in bf16 and 235 (MKL) or 530 (oneDNN) in fp32, without them 50 and 130.
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if bf16_gain() > GAIN else "fp32"


@cache
def gemm_rates() -> dict[str, float]:
    """Measure matrix products on this CPU: {"fp32", "fp32_onednn", "bf16"} in FLOP/s.

    "fp32_onednn" is 0 where that kernel rounds its inputs (oneDNN does on processors with AMX).
    """
    left, right = torch.randn(64, 384), torch.randn(384, 64)
    plain = left @ right
    with _matmul_precision("medium"):
        same = (left @ right - plain).abs().max() < SAME * plain.abs().max()
    kernels = {"fp32": (torch.float32, "highest"), "bf16": (torch.bfloat16, "highest")}
    if same:
        kernels["fp32_onednn"] = (torch.float32, "medium")
    return {"fp32_onednn": 0.0} | _best_rates(kernels)


def _best_rates(
    kernels: dict[str, tuple[torch.dtype, str]], rows: int = 512, width: int = 384
) -> dict[str, float]:
    """Time [rows, width] x [width, 4 width] in turn, each many times: FLOP/s of the best time.

    A median would make a busy moment at the start of a training look like a slow machine.
    """
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(ROUNDS):
        for name, (dtype, precision) in kernels.items():
            hidden, weight = torch.ones(rows, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
            with _matmul_precision(precision):
                start = time.perf_counter()
                torch.nn.functional.linear(hidden, weight)
                times[name].append(time.perf_counter() - start)
    return {name: 8 * rows * width**2 / min(values) for name, values in times.items()}


@cache
def memory_bandwidth(repeats: int = 5) -> float:
    """Measure how fast this machine's main memory is: bytes read plus written per second of a large copy.

    torch copies on all its threads; the best of the repeats counts, as others may use the memory too. Some
    0.2 s once per process.
    """
    source, target = torch.ones(COPIED), torch.ones(COPIED)  # written once, so that their pages exist
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def bf16_gain() -> float:
    """Say how much faster this CPU multiplies in bf16 than in its faster fp32."""
    rates = gemm_rates()
    return rates["bf16"] / max(rates["fp32"], rates["fp32_onednn"])


def prefers_onednn() -> bool:
    """Say whether fp32 products run on a CPU whose oneDNN is much faster than MKL, with the same values."""
    return not torch.cuda.is_available() and gemm_rates()["fp32_onednn"] > GAIN * gemm_rates()["fp32"]


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quick_fp32() -> Iterator[None]:
    """Let a CPU multiply fp32 by the faster of MKL and oneDNN for the length of the block; not for export.

    MKL is slow on processors of another maker: on 2 cores of an AMD EPYC oneDNN is 2.2 times as fast.
    """
    with _matmul_precision("medium" if prefers_onednn() else torch.get_float32_matmul_precision()):
        yield


def choose_kernels(encoder: NeuralSparseEncoder, precision: str) -> None:
    """Give the encoder the attention and the head that run fastest in this format on its device.

    torch's fused attention for CPUs is slow in bf16 and under oneDNN: 8 documents of 128 tokens and 12 heads
    took 12.7 ms forwards and backwards in bf16, the plain products 2.9; in fp32 by oneDNN 17 ms backwards
    against 2. In fp32 by MKL it is the faster one (6.3 against 16.0).
    """
    if encoder.device.type != "cpu":
        return
    if precision == "bf16" or prefers_onednn():
        encoder.mlm.set_attn_implementation("eager")
    encoder.screen = precision == "fp32" and bf16_gain() > GAIN
