"""Encoded corpora: kept on disk, so that no evaluation encodes them twice; in blocks, so that the memory for
one does not grow with it.

N documents, V terms, H dimensions of a dense vector.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_matrix, issparse, vstack

from nblib.files import atomic_file

Reps = csr_matrix | np.ndarray  # [N, V] sparse or [N, H] dense
PART = 200_000  # documents that are encoded, kept and indexed together; no more are one block, in memory


class Blocks:
    """Sparse documents [N, V] in blocks of consecutive ones; each is read when asked for, and not kept.

    Args:
        sizes: documents of each block.
        read: number of a block -> its documents [size, V] CSR, the same at every call.
    """

    def __init__(self, sizes: list[int], read: Callable[[int], csr_matrix]) -> None:
        self.sizes, self._read = sizes, read

    @classmethod
    def whole(cls, d_reps: csr_matrix) -> "Blocks":
        """Take documents that are in memory as one block."""
        return cls([d_reps.shape[0]], lambda _: d_reps)

    def __iter__(self) -> Iterator[csr_matrix]:
        return map(self._read, range(len(self.sizes)))

    def row(self, number: int) -> csr_matrix:
        """Read one document: [1, V]."""
        for block, size in enumerate(self.sizes):
            if number < size:
                return self._read(block)[[number]]
            number -= size
        raise IndexError(f"there are {sum(self.sizes)} documents")

    def to_csr(self) -> csr_matrix:
        """Read all documents into memory."""
        return next(iter(self)) if len(self.sizes) == 1 else vstack(list(self), "csr")

    def map(self, change: Callable[[csr_matrix], csr_matrix]) -> "Blocks":
        """Change every document; of several blocks each when it is read."""
        if len(self.sizes) == 1:
            return Blocks.whole(change(self._read(0)))
        return Blocks(self.sizes, lambda block: change(self._read(block)))


def cached(
    folder: Path, version: list[str], texts: Sequence[str], encode: Callable[[Sequence[str]], Reps]
) -> tuple[Reps, float]:
    """Encode texts, or read what an earlier evaluation encoded.

    Args:
        folder: holds one npz for each pair of model and texts; may be removed at any time.
        version: strings that decide the result besides the texts: hash of the model, length.
        texts: every one enters the file's name by its hash.
        encode: texts -> reps.

    Returns:
        The reps, and the seconds that `encode` took when it ran.
    """
    return _cached(_path(folder, version, texts), texts, encode)


def cached_blocks(
    folder: Path, version: list[str], texts: Sequence[str], encode: Callable[[Sequence[str]], csr_matrix]
) -> tuple[Blocks, float]:
    """Encode a corpus in parts of PART documents, of which one is in memory at a time; as `cached`.

    A call that was killed goes on with the part that it was at. The reps of a corpus of several parts are
    read from the files whenever they are used, so these must stay so long.
    """
    if len(texts) <= PART:
        d_reps, seconds = cached(folder, version, texts, encode)
        return Blocks.whole(d_reps), seconds
    paths, sizes, seconds = [], [], 0.0
    for at in range(0, len(texts), PART):
        part = texts[at : at + PART]
        paths.append(_path(folder, version, part))
        sizes.append(len(part))
        seconds += _cached(paths[-1], part, encode)[1]
    return Blocks(sizes, lambda i: _read_reps(paths[i])[0]), seconds


def _path(folder: Path, version: list[str], texts: Sequence[str]) -> Path:
    digest = hashlib.sha256("\0".join(version).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return folder / f"{digest.hexdigest()[:20]}.npz"


def _cached(path: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], Reps]) -> tuple[Reps, float]:
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
