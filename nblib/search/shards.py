"""One shard of an inverted index: made from CSR, written to a folder, mapped back.

A folder holds meta.json and, for each shard, shard-00000.indptr.npy [V + 1] int64,
shard-00000.documents.npy [P] uint32 and shard-00000.weights.npy [P] float32, lists one after the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from nblib.files import atomic_folder, read_json, sha256_file, write_json

FORMAT, VERSION = "nblib inverted index", 1
AGAIN = "write the index again"
ARRAYS = {"indptr": np.int64, "documents": np.uint32, "weights": np.float32}


@dataclass(frozen=True)
class Shard:
    """Posting lists of consecutive documents, which count from 0 in each shard."""

    indptr: np.ndarray  # [V + 1] int64
    documents: np.ndarray  # [P] uint32, ascending in each list
    weights: np.ndarray  # [P] float32
    n_docs: int
    largest: float  # absolute weight

    @property
    def n_terms(self) -> int:
        """V."""
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.indptr.nbytes + self.documents.nbytes + self.weights.nbytes


def from_rows(d_reps: csr_matrix) -> Shard:
    """Turn documents [N, V] into posting lists; raises as `from_lists`."""
    return from_lists(csr_array(d_reps).T.tocsr())


def from_lists(lists: csr_array) -> Shard:
    """Take posting lists [V, N].

    Raises:
        ValueError: a weight is NaN or infinite in float32.
    """
    if not lists.has_canonical_format:
        lists = lists.copy()
        lists.sum_duplicates()  # sorts the documents too
    with np.errstate(over="ignore"):  # told below
        weights = lists.data.astype(np.float32, copy=False)
    largest = float(np.abs(weights).max()) if weights.size else 0.0
    if not np.isfinite(largest):
        raise ValueError("a document's weight is NaN or infinite: look for NaN in the model's weights")
    arrays = (lists.indptr.astype(np.int64), lists.indices.astype(np.uint32), weights)
    return Shard(*arrays, lists.shape[1], largest)


def write_folder(folder: Path, d_reps: Iterable[csr_matrix]) -> None:
    """Write blocks of documents [any number, V] as shards; the folder appears when it is whole."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "meta.json").exists():
        raise FileExistsError(f"{folder} holds files that are no index: give another folder, or empty it")
    with atomic_folder(folder) as tmp:
        held, n_terms = [], None
        for block in d_reps:
            n_terms = n_terms or block.shape[1]
            if block.shape[1] != n_terms:
                raise ValueError(f"shard {len(held)} has {block.shape[1]} terms, the first one {n_terms}")
            held.append(_write_shard(tmp, len(held), from_rows(block)))
            del block  # before the next one is made
        if not held:
            raise ValueError(f"{folder}: no documents were given to index")
        facts = {"format": FORMAT, "version": VERSION, "n_terms": n_terms}
        facts |= {name: sum(shard[name] for shard in held) for name in ("n_docs", "n_postings")}
        write_json(tmp / "meta.json", facts | {"shards": held})


def _write_shard(folder: Path, number: int, shard: Shard) -> dict[str, Any]:
    files = {}
    for name in ARRAYS:
        path = folder / _file(number, name)
        np.save(path, getattr(shard, name))
        files[path.name] = sha256_file(path)
    facts = {"n_docs": shard.n_docs, "n_postings": len(shard.documents), "largest": shard.largest}
    return facts | {"sha256": files}


def _file(number: int, name: str) -> str:
    return f"shard-{number:05}.{name}.npy"


def open_folder(folder: Path, verify: bool) -> list[Shard]:
    """Map the shards of a folder; raises as InvertedIndex.open."""
    if not (folder / "meta.json").exists():
        raise FileNotFoundError(f"{folder} holds no whole index (no meta.json): write it again")
    meta = read_json(folder / "meta.json")
    if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{folder / 'meta.json'}: want {FORMAT!r} version {VERSION}, got {meta.get('format')!r} "
            f"version {meta.get('version')}: write the index again"
        )
    return [_open_shard(folder, i, facts, meta["n_terms"], verify) for i, facts in enumerate(meta["shards"])]


def _open_shard(folder: Path, number: int, facts: dict[str, Any], n_terms: int, verify: bool) -> Shard:
    arrays = {name: _open_array(folder / _file(number, name), dtype) for name, dtype in ARRAYS.items()}
    indptr, postings = arrays["indptr"], facts["n_postings"]
    shapes = [array.shape for array in arrays.values()]
    if shapes != [(n_terms + 1,), (postings,), (postings,)] or not _whole(indptr, postings):
        raise ValueError(f"{folder}, shard {number}: sizes differ from meta.json: {AGAIN}")
    for name, want in facts["sha256"].items() if verify else ():
        if sha256_file(folder / name) != want:
            raise ValueError(f"{folder / name}: damaged, its checksum differs: {AGAIN}")
    return Shard(**arrays, n_docs=facts["n_docs"], largest=facts["largest"])


def _open_array(path: Path, dtype: type) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{path}: a part of the index is gone: {AGAIN}")
    try:
        # "c", though nothing writes: numba takes an array fast that is plain and not read-only.
        array = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}): {AGAIN}") from error
    if array.dtype != dtype:
        raise ValueError(f"{path}: holds {array.dtype}, not {np.dtype(dtype)}: {AGAIN}")
    return array


def _whole(indptr: np.ndarray, postings: int) -> bool:
    """Check that the lists lie one after the other in the arrays."""
    return indptr[0] == 0 and indptr[-1] == postings and bool((np.diff(indptr) >= 0).all())
