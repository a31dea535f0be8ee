"""Encoded corpora on disk, so that an interrupted evaluation does not encode them twice.

N documents, V terms, H dimensions of a dense vector.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_matrix, issparse

from nblib.files import atomic_file

Reps = csr_matrix | np.ndarray  # [N, V] sparse or [N, H] dense


def cached(
    folder: Path, version: list[str], texts: list[str], encode: Callable[[list[str]], Reps]
) -> tuple[Reps, float]:
    """Encode a corpus, or read what an earlier, interrupted evaluation encoded.

    Args:
        folder: holds one npz for each pair of model and corpus.
        version: strings that decide the result besides the texts: hash of the model, length.
        texts: the corpus; every text enters the file's name by its hash.
        encode: texts -> reps.

    Returns:
        The reps, and the seconds that `encode` took when it ran.
    """
    digest = hashlib.sha256("\0".join(version).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    path = folder / f"{digest.hexdigest()[:20]}.npz"
    if path.exists():
        try:
            return _read_reps(path)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            print(f"{path.name} cannot be read ({error}); encoding again")
    start = time.perf_counter()
    reps = encode(texts)
    seconds = time.perf_counter() - start
    _write_reps(path, reps, seconds)
    return reps, seconds


def _write_reps(path: Path, reps: Reps, seconds: float) -> None:
    arrays = {"dense": reps}
    if issparse(reps):
        arrays = {name: getattr(reps, name) for name in ("data", "indices", "indptr")}
        arrays["shape"] = np.array(reps.shape)
    with atomic_file(path) as tmp, open(tmp, "wb") as handle:  # a handle: numpy would append .npz to a name
        np.savez(handle, seconds=seconds, **arrays)


def _read_reps(path: Path) -> tuple[Reps, float]:
    with np.load(path, allow_pickle=False) as held:
        if "dense" in held:
            return held["dense"], float(held["seconds"])
        parts = (held["data"], held["indices"], held["indptr"])
        return csr_matrix(parts, shape=tuple(held["shape"])), float(held["seconds"])
