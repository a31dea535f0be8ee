"""Compute a large result once: in chunks, shared out over processes, kept on disk under what decides it.

Each chunk becomes a file of its own, so a run that is killed halfway goes on where it stopped, with any
number of processes. The last step joins the chunks into one file.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from scipy import sparse

from nblib.files import atomic_file

CHUNK = 2048  # texts or pairs of one file: enough of them to sort by length, few enough to lose
POLL_S = 0.3
STALL_S = 7200.0  # without a new chunk of another process
Tick = Callable[[int], None]


def texts_key(*parts: Sequence[str]) -> str:
    """Hash texts and settings into the key of a cache entry; 16 hex digits. Order and borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        for text in part:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:16]


def processes() -> tuple[int, int]:
    """Give this process's number and how many there are: by torch.distributed, or as torchrun says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str) -> str:
    """Give the GPU of this process where torchrun started several on one machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@dataclass(frozen=True)
class Form:
    """How rows are kept. write(path, rows); read(path); join(iterable of parts) in memory; merge(paths, n,
    path) on disk.
    """

    suffix: str
    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]
    join: Callable[[Iterable[Any]], Any]
    merge: Callable[[list[Path], int, Path], None]


def _write_array(path: Path, rows: np.ndarray) -> None:
    with open(path, "wb") as handle:  # a handle: numpy would append its suffix to a temporary name
        np.save(handle, rows)


def _read_array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")  # pages come from disk as rows are asked for


def _merge_arrays(paths: list[Path], n: int, target: Path) -> None:
    first = _read_array(paths[0])
    merged = np.lib.format.open_memmap(target, mode="w+", dtype=first.dtype, shape=(n, *first.shape[1:]))
    at = 0
    for path in paths:  # one at a time: each open map holds a file descriptor
        part = _read_array(path)
        merged[at : at + len(part)] = part
        at += len(part)
    merged.flush()


def _write_csr(path: Path, rows: sparse.csr_matrix) -> None:
    with open(path, "wb") as handle:
        sparse.save_npz(handle, rows, compressed=False)


def _stack(parts: Iterable[sparse.csr_matrix]) -> sparse.csr_matrix:
    return sparse.vstack(list(parts), format="csr")


ARRAY = Form(".npy", _write_array, _read_array, lambda parts: np.concatenate(list(parts)), _merge_arrays)
CSR = Form(
    ".npz",
    _write_csr,
    sparse.load_npz,
    _stack,
    lambda paths, n, target: _write_csr(target, _stack(map(sparse.load_npz, paths))),
)


def compute_once(
    file: Path | None,
    n: int,
    form: Form,
    compute: Callable[[slice, Tick], Any],
    progress: Tick | None = None,
) -> Any:
    """Compute n rows, or read what was computed before under the same file name.

    Process r of W computes every W-th chunk that is not there yet, waits for the others' chunks, and process
    0 joins them. All processes must see the same folder. Without a file each process computes all.

    Args:
        file: where the result lies, without the suffix; its name must hold all that decides the result.
        n: number of rows.
        form: ARRAY [n, ...] or CSR [n, V].
        compute: (rows, tick) -> the rows of that slice; it may call tick with how many of them are done.
        progress: called with how many of the n rows are done.

    Returns:
        The rows; an ARRAY of a file is mapped, not read.

    Raises:
        ValueError: n is 0.
        TimeoutError: another process gave no chunk for STALL_S seconds.
    """
    if n == 0:
        raise ValueError("no text to score; is the training set empty?")
    progress = progress or (lambda done: None)
    slices = [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    if file is None:
        rows = form.join(compute(s, lambda k, s=s: progress(s.start + k)) for s in slices)
        progress(n)
        return rows
    final = file.with_name(file.name + form.suffix)
    if not final.exists():
        folder = file.with_name(f"{file.name}.parts-{CHUNK}")
        paths = [folder / f"{i:06}{form.suffix}" for i in range(len(slices))]
        _compute_own(final, paths, slices, form, compute, progress)
        joins = processes()[0] == 0
        _wait(final, paths, joins, lambda there: progress(min(n, there * CHUNK)))
        if joins:
            _merge(final, folder, paths, n, form)
    progress(n)
    return form.read(final)


def _compute_own(
    final: Path, paths: list[Path], slices: list[slice], form: Form, compute: Callable, progress: Tick
) -> None:
    """Write every W-th chunk of this process that is not there."""
    rank, world = processes()
    finished = sum(slices[i].stop - slices[i].start for i, path in enumerate(paths) if path.exists())
    for i in range(rank, len(paths), world):
        if paths[i].exists() or final.exists():  # in this order: chunks go only after the final file came
            continue
        rows = compute(slices[i], lambda k, done=finished: progress(done + k))
        with atomic_file(paths[i]) as tmp:
            form.write(tmp, rows)
        finished += slices[i].stop - slices[i].start


def _wait(final: Path, paths: list[Path], joins: bool, progress: Tick) -> None:
    """Return when the final file is there; for the process that joins the chunks, when all of them are."""
    there, since = -1, time.monotonic()
    while not final.exists():
        missing = [path for path in paths if not path.exists()]
        if joins and not missing:
            return
        if len(paths) - len(missing) > there:
            there, since = len(paths) - len(missing), time.monotonic()
            progress(there)
        if time.monotonic() - since > STALL_S:
            raise TimeoutError(
                f"no new chunk in {STALL_S:.0f} s, {len(missing)} missing in {paths[0].parent}: are all "
                f"{processes()[1]} processes alive, and is this folder the same one for all of them?"
            )
        time.sleep(POLL_S)


def _merge(final: Path, folder: Path, paths: list[Path], n: int, form: Form) -> None:
    """Join the chunks and put the result in place."""
    try:
        if not final.exists():
            with atomic_file(folder / final.name) as tmp:  # there a killed merge leaves no litter
                form.merge(paths, n, tmp)
            os.replace(folder / final.name, final)
    except FileNotFoundError:
        if not final.exists():  # else another run with the same input was faster and has cleared up
            raise
    shutil.rmtree(folder, ignore_errors=True)
