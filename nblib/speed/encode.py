"""Documents to a sparse matrix, and documents to IDF: ours against the peer and against the bare tokenizer.

`python -m nblib.speed.encode` counts generated passages in a process of its own, to see its memory.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import sparse

from nblib.backbones import load_tokenizer
from nblib.idf import count_df
from nblib.model.encoder import NeuralSparseEncoder
from nblib.precision import quick_fp32
from nblib.run.progress import report
from nblib.speed import sides
from nblib.speed.measure import autocast, in_fresh_process, interleaved, least_seconds
from nblib.speed.memory import peak_gib
from nblib.speed.rows import row

MS_MARCO = 8_841_823  # passages
PARTS = 8  # the documents go through in so many parts, each side in turn
BATCH_SIZES = (4, 8, 16, 32, 64)  # tried for the peer
WARMUP = 4  # documents of each side before the clock starts


def encode_rows(model: Path, texts: Sequence[str], length: int) -> list[dict[str, Any]]:
    """Encode documents to CSR in fp32 and bf16, against sentence-transformers at its best batch size in fp32.

    Args:
        model: folder of the encoder.
        texts: documents.
        length: tokens kept per document.

    Raises:
        AssertionError: our fp32 weights differ from the peer's by more than 1e-4.
    """
    peer = peer_model(model, length)
    encoder = sides.ours(model, length, "fp32")
    sample = list(texts[:: max(1, len(texts) // 64)][:64])
    best = best_batch_size(peer, sample)
    _compare(encoder, ours_csr(encoder, sample, "fp32"), peer_csr(peer, sample, best))
    encode = {
        "peer": lambda part: peer_csr(peer, part, best),
        "fp32": lambda part: ours_csr(encoder, part, "fp32"),
        "bf16": lambda part: ours_csr(encoder, part, "bf16"),
    }
    for side in encode.values():
        side(sample[:WARMUP])
    rates: dict[str, list[float]] = {name: [] for name in encode}
    for i in range(PARTS):
        part = list(texts[i::PARTS])
        for name, side in encode.items():
            rates[name].append(len(part) / _seconds(side, part))
            report("encode side by side", i, PARTS)
    speed = {name: median(values) for name, values in rates.items()}
    tokens = sum(map(len, encoder.tokenize(list(texts))))
    rows = []
    for dtype in ("fp32", "bf16"):
        limit = len(texts) / least_seconds(encoder, tokens, length, dtype, trains=False)
        name = f"sentence-transformers SparseEncoder, fp32, batch size {best}"
        setting = f"{len(texts):,} documents, {length} tokens"
        speeds = (speed[dtype], speed["peer"], name, "documents/s")
        rows.append(row("encode", setting, dtype, *speeds, less_is_better=False, limit=limit))
    return rows


def peer_model(model: Path, length: int):
    """Open the folder as sentence-transformers' SparseEncoder."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    transformer = Transformer(str(model), transformer_task="fill-mask", max_seq_length=length)
    return SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")


def best_batch_size(peer, sample: list[str]) -> int:
    """Find the batch size with which the warm peer encodes the sample fastest; the sizes take turns."""
    peer_csr(peer, sample[:WARMUP], WARMUP)
    tries = {str(size): partial(peer_csr, peer, sample, size) for size in BATCH_SIZES}
    seconds = interleaved(tries, repeats=3, warmups=0)
    return int(min(seconds, key=seconds.__getitem__))


def peer_csr(peer, texts: list[str], batch_size: int) -> sparse.csr_matrix:
    """Encode with the peer and turn its tensor into CSR."""
    reps = peer.encode(texts, batch_size=batch_size, show_progress_bar=False).coalesce()
    rows, columns = reps.indices().numpy()
    return sparse.csr_matrix((reps.values().numpy(), (rows, columns)), shape=tuple(reps.shape))


def ours_csr(encoder: NeuralSparseEncoder, texts: list[str], dtype: str) -> sparse.csr_matrix:
    """Encode with our encoder."""
    with quick_fp32(), autocast(dtype):
        return encoder.encode_documents(texts)


def _seconds(side, *args) -> float:
    start = time.perf_counter()
    side(*args)
    return time.perf_counter() - start


def _compare(encoder: NeuralSparseEncoder, mine: sparse.csr_matrix, theirs: sparse.csr_matrix) -> None:
    theirs = theirs[:, : encoder.vocab_size].multiply(encoder.term_mask.numpy()[None]).tocsr()
    far = abs(mine - theirs).max()
    assert far <= 1e-4, f"our weights differ from sentence-transformers' by {far:.1e}"


def idf_rows(
    tokenizer_name: str, texts: Sequence[str], passages: int, rounds: int = 5
) -> list[dict[str, Any]]:
    """Count documents per token, against the tokenizer alone on the same passages.

    Args:
        tokenizer_name: folder or name of the backbone.
        texts: real documents, from whose words passages are drawn.
        passages: generated passages of the long run, whose memory is compared with a tenth of it.
        rounds: interleaved repeats on 20,000 passages each.

    Returns:
        One row. long_run_seconds is what the long run took, the making of its passages included, and
        ms_marco_minutes is that for MS MARCO's number of passages; both are None if the run failed.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    vocabulary = _vocabulary(texts)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(rounds + 1):
        batch = list(generated(vocabulary, 20_000, turn))
        bare = len(batch) / _seconds(_bare, tokenizer, batch)
        mine = len(batch) / _seconds(count_df, batch, tokenizer)
        if turn:
            rates["bare"].append(bare)
            rates["ours"].append(mine)
        report("count side by side", turn, rounds)
    speed = {name: median(values) for name, values in rates.items()}
    job = {"tokenizer": tokenizer_name, "vocabulary": vocabulary[:20_000]}
    runs = [in_fresh_process(__name__, passages=n, **job) for n in (passages // 10, passages)]
    return [
        row(
            "idf",
            f"{passages:,} generated passages",
            "",
            speed["ours"],
            speed["bare"],
            "the bare tokenizer",
            "documents/s",
            less_is_better=False,
            limit=speed["bare"],
            peak_gib_tenth=runs[0].get("peak_gib"),
            peak_gib=runs[1].get("peak_gib"),
            long_run_seconds=runs[1].get("seconds"),
            ms_marco_minutes=_ms_marco_minutes(runs[1].get("seconds"), passages),
        )
    ]


def _ms_marco_minutes(seconds: float | None, passages: int) -> float | None:
    return None if seconds is None else MS_MARCO / passages * seconds / 60


def _bare(tokenizer, batch: list[str]) -> None:
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    for start in range(0, len(batch), 10_000):
        core.encode_batch_fast(batch[start : start + 10_000], add_special_tokens=False)


def _vocabulary(texts: Sequence[str]) -> list[str]:
    """List the words of real documents as often as they stand there, at most 200,000."""
    return [word for text in texts[:5000] for word in text.split()][:200_000]


def generated(words: list[str], n: int, seed: int) -> Iterator[str]:
    """Draw passages of 20 to 90 words, as long as MS MARCO's, from a list of words."""
    rng = np.random.default_rng(seed)
    pool = np.array(words, dtype=object)
    for _ in range(n):
        yield " ".join(pool[rng.integers(0, len(pool), rng.integers(20, 91))])


def main() -> None:
    """Count generated passages and print {"peak_gib", "seconds"}."""
    job = json.load(sys.stdin)
    start = time.perf_counter()
    count_df(generated(job["vocabulary"], job["passages"], 1), load_tokenizer(job["tokenizer"]))
    print(json.dumps({"peak_gib": peak_gib(), "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
