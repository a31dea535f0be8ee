"""What the processes of test_once do; importable, so that a spawned process can run it."""

import os
import signal
from pathlib import Path

import numpy as np
import torch

from nblib.teachers import EnsembleTeacher, once

N = 11
WORDS = [f"{a} {b} the {c}" for a in ("oil", "bread", "moons") for b in ("of", "in") for c in ("loaf", "sea")]
PAIRS = [(q, d) for q in range(4) for d in range(12)]


def rows_and_ranks(file: Path, kill_at: int = -1) -> np.ndarray:
    """Compute N rows [row number, rank of the process that computed it], two rows a chunk."""
    once.CHUNK = 2

    def compute(rows: slice, tick) -> np.ndarray:
        if rows.start == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = np.arange(rows.start, rows.stop)
        return np.stack([numbers, np.full_like(numbers, once.processes()[0])], axis=1)

    return once.compute_once(file, N, once.ARRAY, compute)


def in_group(rank: int, world: int, meeting: str, file: Path, out: Path) -> None:
    """Join a gloo group, then compute."""
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    np.save(out / f"{rank}.npy", rows_and_ranks(file))
    torch.distributed.destroy_process_group()


def as_torchrun(rank: int, world: int, file: Path, out: Path) -> None:
    """Compute as torchrun's environment says, without a group."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    np.save(out / f"{rank}.npy", rows_and_ranks(file))


def prepare_ensemble(rank: int, world: int, names: tuple[str, str, str], cache: Path, out: Path) -> None:
    """Prepare a dense, a sparse and a cross teacher in one cache and write their scores."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    once.CHUNK = 2
    dense, sparse, cross = names
    options = {"cross_teacher_name": cross, "cross_weight": 0.3, "max_length": 24}
    teacher = EnsembleTeacher(dense, sparse, 0.4, 0.3, 10.0, **options)
    teacher.prepare(WORDS[:4], WORDS, cache, pairs=PAIRS)
    rows = np.arange(4), np.arange(12)
    parts = [part.scores(*rows).numpy() for part in [*teacher.teachers, teacher]]
    np.save(out / f"{rank}.npy", np.stack(parts))
