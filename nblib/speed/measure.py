"""Side-by-side timing, peak memory in a process of its own, and the limits that the machine sets."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from nblib.files import ROOT
from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import gemm_rates, memory_bandwidth

ADAMW_BYTES = 7 * 4  # per parameter: it, its gradient and two moments read, all but the gradient written


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int, warmups: int = 1) -> dict[str, float]:
    """Time callables in turn, so that whatever slows the machine slows all of them: median seconds each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmups + repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn >= warmups:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def processes_in_turn(
    module: str,
    jobs: Mapping[str, tuple[dict[str, Any], Mapping[str, str]]],
    repeats: int,
    warmups: int = 2,
) -> dict[str, float]:
    """Time processes that take turns, as `interleaved` does with callables: median seconds each.

    For sides that live on large tensors: in one process, what one of them has left in memory makes the next
    one faster or slower. Each process runs `python -m module`, see answer_in_turn.

    Args:
        module: loads its code and prints a line, reads its job, and calls answer_in_turn.
        jobs: for each side its job and its environment.
        repeats, warmups: turns that count, and turns before them.

    Raises:
        RuntimeError: a process died; with what it said last.
    """
    with ExitStack() as stack:
        ask = {
            name: stack.enter_context(_Asked.started(module, name, environment))
            for name, (_, environment) in jobs.items()
        }
        for side in ask.values():  # all load their code, together, before one measures its kernels
            side.answer()
        for name, (job, _) in jobs.items():
            ask[name](json.dumps(job))
        return interleaved({name: partial(side, "step") for name, side in ask.items()}, repeats, warmups)


class _Asked:
    """A process that answers each line with a line."""

    def __init__(self, name: str, process: subprocess.Popen, said: Any) -> None:
        self.name, self.process, self.said = name, process, said

    @classmethod
    @contextmanager
    def started(cls, module: str, name: str, environment: Mapping[str, str]):
        """Start `python -m module`; kill it at the end of the block."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with tempfile.TemporaryFile("w+") as said:
            command = [sys.executable, "-m", module]
            process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), stderr=said, **pipes)
            try:
                yield cls(name, process, said)
            finally:
                process.kill()
                process.wait()
                with suppress(BrokenPipeError):  # a question that it did not live to read
                    process.stdin.close()
                process.stdout.close()

    def __call__(self, question: str) -> str:
        with suppress(BrokenPipeError):  # the process is dead, and has no answer
            print(question, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> str:
        """Wait for its next line."""
        answer = self.process.stdout.readline().strip()
        if not answer:
            self.said.seek(0)
            last = self.said.read().strip().splitlines()[-5:] or [f"exit code {self.process.wait()}"]
            raise RuntimeError(f"{self.name}: " + "\n".join(last))
        return answer


def answer_in_turn(step: Callable[[], Any]) -> None:
    """Be the process of processes_in_turn, its job read: run one step for each line, and say so."""
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)


def in_fresh_process(module: str, **job: Any) -> dict[str, Any]:
    """Run `python -m module` with a job on its standard input; read the JSON object that it prints last.

    A process that dies (as one that runs out of memory does) gives {"failed": what it said last}.
    """
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"killed, exit code {done.returncode}"]
        return {"failed": last[0][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def backbone_flops(encoder: NeuralSparseEncoder, tokens: int, length: int) -> float:
    """Count the multiplications and additions of the backbone's forward pass: linear layers and attention."""
    linear = sum(
        m.weight.numel()
        for m in encoder.mlm.modules()
        if isinstance(m, nn.Linear) and m is not encoder.decoder
    )
    config = encoder.mlm.config
    attention = 2 * config.num_hidden_layers * length * config.hidden_size
    return 2.0 * tokens * (linear + attention)


def head_flops(encoder: NeuralSparseEncoder, tokens: int) -> float:
    """Count the multiplications and additions of the logits' forward pass."""
    return 2.0 * tokens * encoder.decoder.in_features * encoder.vocab_size


def least_seconds(encoder: NeuralSparseEncoder, tokens: int, length: int, dtype: str, trains: bool) -> float:
    """Divide the work that cannot be left out by what was measured of this machine.

    Over the rate of matrix products: the backbone's forward pass (and twice that backwards), and the logits'
    forward pass, in bf16 where the screening finds the active pairs. The backward pass of the active pairs is
    not counted. A training step then waits for AdamW, over the memory's bandwidth: each parameter, its
    gradient and two moments are read, the parameter and the moments written, 7 x 4 bytes.
    """
    rates = gemm_rates()
    rate = rates["bf16"] if dtype == "bf16" else max(rates["fp32"], rates["fp32_onednn"])
    head_rate = rates["bf16"] if encoder.screen else rate
    passes = 3 if trains else 1
    products = passes * backbone_flops(encoder, tokens, length) / rate
    products += head_flops(encoder, tokens) / head_rate
    return products + (ADAMW_BYTES * trainable(encoder) / memory_bandwidth() if trains else 0.0)


def trainable(module: nn.Module) -> int:
    """Count the parameters that a step updates; tied ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def least_head_gib(size: int, vocabulary: int) -> float:
    """Give what any head must hold to train: the [B, V] float32 maxima and their gradient, in GiB."""
    return 2 * 4 * size * vocabulary / 2**30


def least_training_gib(parameters: int) -> float:
    """Give what any AdamW step must hold: float32 weights, gradients and two moments, in GiB."""
    return 4 * 4 * parameters / 2**30


def autocast(dtype: str):
    """Open bf16 autocast on the CPU, or nothing for fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")
