"""One training step, ours against the peer's: seconds in two regimes, memory of the head, a large vocabulary.

`python -m nblib.speed.steps` is the process of one side: it runs steps when asked to, or one for its peak.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nblib.backbones import load_tokenizer
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.padding import pad
from nblib.precision import prefers_onednn, quick_fp32
from nblib.run.kernel import ALLOCATOR
from nblib.speed import sides
from nblib.speed.measure import (
    answer_in_turn,
    autocast,
    in_fresh_process,
    least_head_gib,
    least_seconds,
    least_training_gib,
    processes_in_turn,
    trainable,
)
from nblib.speed.memory import peak_gib
from nblib.speed.rows import row
from nblib.train.warmup import shift_bias

REGIMES = {"sparse": 200, "dense": 29_800}  # active terms per document
QUERIES, QUERY_TERMS = 16, 8  # of the loss that both sides share


def step_rows(
    model: Path,
    texts: Sequence[str],
    folder: Path,
    sizes: Sequence[int],
    length: int,
    dtype: str,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time a training step (forward, loss, backward, AdamW) in both regimes, each side in its own process.

    Args:
        model: folder of the warmed-up encoder; its bias is shifted to the regimes' active terms.
        texts: documents; those of at least `length` tokens are used, cut there.
        folder: for the shifted models.
        sizes: documents per batch.
        length: tokens per document, no padding.
        dtype: "fp32" or "bf16".
        repeats: of each side; the medians count.
    """
    rows = []
    for regime, active in REGIMES.items():
        shifted = shifted_model(model, texts, folder / regime, active)
        encoder = sides.ours(shifted, length, dtype)
        for size in sizes:
            batch = folder / f"{regime}_{size}.pt"
            torch.save(full_batch(shifted, texts, size, length), batch)
            job = {"model": str(shifted), "length": length, "dtype": dtype, "batch": str(batch)}
            seconds = processes_in_turn(
                __name__, {name: (job | side, env) for name, (side, env) in _contestants().items()}, repeats
            )
            limit = least_seconds(encoder, size * length, length, dtype, trains=True)
            rows += [
                row(
                    "train_step",
                    f"{regime}, {size} x {length}",
                    dtype,
                    seconds["ours"],
                    seconds[name],
                    name,
                    "s",
                    less_is_better=True,
                    limit=limit,
                )
                for name in seconds
                if name != "ours"
            ]
    return rows


def _contestants() -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """Give each side of a step its job and its environment.

    Ours runs in the memory settings that our runner gives every notebook; the peer and the definition in
    glibc's own, as a script of their users does, and the peer once more in ours.
    """
    plain = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    peer = {"side": "peer"}
    return {
        "ours": ({"side": "ours"}, plain | ALLOCATOR),
        sides.PEER: (peer, plain),
        f"{sides.PEER}, chunk_size 32": (peer | {"chunk_size": 32}, plain),
        f"{sides.PEER}, our memory settings": (peer, plain | ALLOCATOR),
        f"{sides.PEER}, our memory settings, attention and matrix kernels": (
            peer | {"eager": True},
            plain | ALLOCATOR,
        ),
        "definition": ({"side": "definition"}, plain),
    }


def shifted_model(model: Path, texts: Sequence[str], folder: Path, active: int) -> Path:
    """Save the model with its decoder's bias shifted so that documents hold `active` terms on average."""
    encoder = NeuralSparseEncoder.load(model)
    shift_bias(encoder, list(texts[:32]), min(active, encoder.vocab_size - 1))
    encoder.save_pretrained(folder)
    return folder


def full_batch(model: Path, texts: Sequence[str], size: int, length: int) -> tuple[Tensor, Tensor]:
    """Take the first documents that fill `length` tokens; short ones are joined until they do."""
    encoder = NeuralSparseEncoder.load(model)
    joined = [" ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    ids = [x for x in encoder.tokenize(joined[: 4 * size], length) if len(x) == length][:size]
    if len(ids) < size:
        raise ValueError(f"{len(ids)} documents of {length} tokens, want {size}: give more texts")
    return pad(ids, encoder.tokenizer.pad_token_id)


def adamw(module: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """AdamW at a rate so small that the regime stays as it is."""
    return torch.optim.AdamW(module.parameters(), 1e-9, fused=fused)


def shared_loss(reps: Tensor) -> Tensor:
    """In-batch contrast of fixed queries plus FLOPS: cheap, and the same for all sides."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randint(0, reps.shape[1], (QUERIES, QUERY_TERMS), generator=generator)
    queries = reps.new_zeros(QUERIES, reps.shape[1]).scatter_(1, terms, 1.0)
    labels = torch.arange(QUERIES) % len(reps)
    return (
        cross_entropy(queries.float() @ reps.float().T, labels) + 1e-3 * reps.float().mean(0).square().sum()
    )


def one_step(
    module: nn.Module, optimizer, batch: tuple[Tensor, Tensor], dtype: str, onednn: bool = False
) -> Tensor:
    """Run one optimizer step; `onednn` allows our choice of fp32 matrix kernels."""
    module.train()
    if onednn:
        with quick_fp32():
            return one_step(module, optimizer, batch, dtype)
    with autocast(dtype):
        loss = shared_loss(module(*batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


class BackboneOnly(nn.Module):
    """The backbone without any head: what a step needs before the first logit."""

    def __init__(self, encoder: NeuralSparseEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Give the mean hidden state of each document: [B, L] -> [B, H]."""
        hidden = self.encoder.hidden_states(input_ids, attention_mask)
        return hidden.reshape(len(input_ids), -1, hidden.shape[-1]).mean(dim=1)


def memory_row(shifted: Path, size: int, length: int) -> dict[str, Any]:
    """Compare what the head adds to the peak memory of a step, ours against SpladePooling's.

    All sides take our attention and matrix kernels: only then is the backbone's share the same in all, and
    goes away. The limit is what any head must hold, see least_head_gib. A side that fails is None; ours
    counts as NOISE_GIB at least, measured_gib says what was seen.
    """
    job = {"model": str(shifted), "size": size, "length": length, "eager": prefers_onednn()}
    used = {side: in_fresh_process(__name__, side=side, **job) for side in ("backbone", "ours", "peer")}
    base = used["backbone"].get("peak_gib")
    head = {side: _above(used[side].get("peak_gib"), base) for side in ("ours", "peer")}
    ours = head["ours"]
    return row(
        "head_memory",
        f"sparse, {size} x {length}",
        "fp32",
        None if ours is None else max(ours, NOISE_GIB),
        head["peer"],
        sides.PEER,
        "GiB above the backbone's own",
        less_is_better=True,
        limit=least_head_gib(size, len(load_tokenizer(str(shifted)))),
        backbone_gib=base,
        measured_gib=ours,
    )


# Two runs of one process differ by so much. Where the head adds less, the ratio is a lower bound.
NOISE_GIB = 0.1


def _above(peak: float | None, base: float | None) -> float | None:
    return None if peak is None or base is None else max(peak - base, 0.0)


def large_vocabulary_row(folder: Path, vocabulary: int, size: int, length: int, peer_sizes: Sequence[int]):
    """Train one step of a backbone with a large vocabulary; extrapolate what the peer would need.

    The backbone is made from a config (random weights, 12 layers of 384): memory does not depend on what it
    learned. The peer runs with few documents; its need grows linearly with them. The limit is what any AdamW
    step must hold, see least_training_gib. A side that fails is None.
    """
    model = big_backbone(folder, vocabulary, length)
    used = in_fresh_process(__name__, side="ours", model=str(model), size=size, length=length)
    runs = [
        in_fresh_process(__name__, side="peer", model=str(model), size=n, length=length) for n in peer_sizes
    ]
    peaks = [run.get("peak_gib") for run in runs]
    needed = None
    if all(peaks):
        slope = (peaks[-1] - peaks[0]) / (peer_sizes[-1] - peer_sizes[0])
        needed = peaks[0] + slope * (size - peer_sizes[0])
    return row(
        "large_vocabulary",
        f"V {vocabulary:,}, {size} x {length}",
        "fp32",
        used.get("peak_gib"),
        needed,
        f"{sides.PEER}, extrapolated from {' and '.join(map(str, peer_sizes))} documents",
        "GiB, whole process",
        less_is_better=True,
        limit=least_training_gib(used["parameters"]) if "parameters" in used else None,
        seconds=used.get("seconds"),
    )


def big_backbone(folder: Path, vocabulary: int, length: int) -> Path:
    """Write a masked-LM folder with a WordPiece vocabulary of that size, made from a config."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = specials + [f"w{i}" for i in range(vocabulary - len(specials))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=max(512, length),
    )
    mlm = BertForMaskedLM(config)
    with torch.no_grad():
        mlm.cls.predictions.bias.fill_(-1.0)  # random logits lie around 0: some thousand active terms
    mlm.save_pretrained(folder)
    return folder


def main() -> None:
    """Read a job, a JSON line, and run steps of one side.

    With "batch" (a file of ids and mask) it runs a step whenever asked to, see answer_in_turn. Without one
    it runs a single step on random ids and prints {"peak_gib", "seconds", "parameters"}. "eager" in the job
    says which attention the side takes, and that it takes our matrix kernels and fused AdamW; without it the
    peer runs as it is shipped.
    """
    import sentence_transformers  # noqa: F401  its code takes memory: on every side, so that it goes away

    print("code loaded", flush=True)
    job = json.loads(sys.stdin.readline())
    tuned = job["side"] == "ours" or "eager" in job
    if "batch" in job:
        module = _side(job)
        step = (module, adamw(module, tuned), torch.load(job["batch"]), job["dtype"], tuned)
        return answer_in_turn(partial(one_step, *step))

    generator = torch.Generator().manual_seed(0)
    vocabulary = len(load_tokenizer(job["model"]))
    ids = torch.randint(1000, vocabulary - 1, (job["size"], job["length"]), generator=generator)
    module = _side(job | {"dtype": "fp32"})
    optimizer = adamw(module, True)
    start = time.perf_counter()
    one_step(module, optimizer, (ids, torch.ones_like(ids)), "fp32", tuned or job["side"] != "peer")
    found = {"peak_gib": peak_gib(), "seconds": time.perf_counter() - start}
    print(json.dumps(found | {"parameters": trainable(module)}))


def _side(job: dict[str, Any]) -> nn.Module:
    """Load one side; nothing else may hold its weights, or the peak would count them twice."""
    eager = job.get("eager")
    if job["side"] == "peer":
        return sides.Peer(job["model"], job.get("chunk_size"), eager=bool(eager))
    if job["side"] == "definition":
        return sides.Plain(job["model"])
    encoder = sides.ours(job["model"], job["length"], job["dtype"])
    if eager is not None:
        encoder.mlm.set_attn_implementation("eager" if eager else "sdpa")
    return encoder if job["side"] == "ours" else BackboneOnly(encoder)


if __name__ == "__main__":
    main()
