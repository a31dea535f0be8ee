"""What happens around a training step: the JSONL log, the live line, the heap, and the guard."""

import ctypes
import json
import math
from collections import Counter
from collections.abc import Set
from pathlib import Path

from transformers import TrainerCallback

from nblib.files import write_text
from nblib.run.progress import report

TRAINING_LOG, DEV_LOG = "training_log.jsonl", "dev_log.jsonl"


class TrainingDiverged(RuntimeError):
    """The run is not worth going on with; the message says what to change."""


class JsonlLog(TrainerCallback):
    """Append one JSON object per log that holds one of `names`; a resumed run drops what it will repeat."""

    def __init__(self, path: Path, names: Set[str] = frozenset({"flops", "mlm"})) -> None:
        self.path, self.names = path, names

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step(line) is not None and _step(line) <= state.global_step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (self.names & set(logs or {})):
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> int | None:
    """Read the step of a log line; None for the torn last line of a killed run."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return None


def read_log(path: str | Path) -> list[dict]:
    """Read a training log, oldest step first; [] if there is none."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step(line) is not None]


class LiveLine(TrainerCallback):
    """Report finished steps to the runner's live line."""

    def __init__(self, label: str) -> None:
        self.label = label

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            report(self.label, state.global_step, state.max_steps)


class ReturnMemory(TrainerCallback):
    """Give freed memory back to the system now and then (glibc; elsewhere it does nothing).

    The kernel of a notebook is started with a heap that keeps what it frees (see nblib.run.kernel). Batches
    of ever other lengths leave gaps in it, which came to gigabytes in a thousand steps.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trim and state.global_step % self.every == 0:
            self.trim(0)


class Guard(TrainerCallback):
    """Stop a run whose reps collapse to zero or to one and the same, stay dense, or whose loss is not finite.

    Args:
        patience: steps in a row that must look bad before the run is stopped.
        min_terms: fewer active terms per document than this is a collapse.
        dense_terms: more than this after the ramp has ended is no sparse model.
        ramp_steps: steps before which dense reps, and with them equal terms, are expected.
    """

    same_terms = 0.98  # mean overlap of two documents' terms from which on they are all alike

    def __init__(self, patience: int, min_terms: float, dense_terms: float, ramp_steps: int) -> None:
        self.patience, self.min_terms, self.dense_terms = patience, min_terms, dense_terms
        self.ramp_steps = ramp_steps
        self.bad: Counter[str] = Counter()  # steps in a row, by what is wrong

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Check one logged step. Raises TrainingDiverged that names the remedy."""
        if not logs or "d_nnz" not in logs:
            return
        # under fp16 the loss scaler skips a step whose gradients overflow; that is how it finds its scale
        scaled = getattr(args, "fp16", False)
        check_finite({k: v for k, v in logs.items() if not (scaled and k == "grad_norm")}, state.global_step)
        for problem, found in self._signs(logs, late=state.global_step > self.ramp_steps).items():
            self.bad[problem] = self.bad[problem] + 1 if found else 0
            if self.bad[problem] >= self.patience:
                raise TrainingDiverged(f"step {state.global_step}, {self.patience} steps in a row: {problem}")

    def _signs(self, logs: dict, late: bool) -> dict[str, bool]:
        """Say which of the known failures a step shows; each with its remedy."""
        terms, overlap = logs["d_nnz"], logs.get("overlap", 0.0)
        return {
            f"documents hold under {self.min_terms:g} active terms on average: the reps collapse to zero. "
            "Lower lambda_flops (a tenth), lengthen lambda_ramp_steps, or lower the learning rates": (
                terms < self.min_terms
            ),
            f"documents hold over {self.dense_terms:g} active terms on average after the ramp: the reps stay "
            "dense. Raise lambda_flops (tenfold), or lower target_active_terms in 03_pretrain": (
                late and terms > self.dense_terms
            ),
            f"two documents share over {self.same_terms:.0%} of their terms on average after the ramp: all "
            "reps say the same. Lower the learning rates, or look in 01 for texts that begin alike": (
                late and overlap > self.same_terms
            ),
        }


def check_finite(logs: dict, step: int) -> None:
    """Raise TrainingDiverged if a logged loss term is NaN or infinite."""
    bad = [
        name
        for name in ("loss", "mlm", "kl", "infonce", "flops", "lexical", "grad_norm")
        if not _finite(logs.get(name, 0.0))
    ]
    if bad:
        raise TrainingDiverged(
            f"step {step}: {', '.join(bad)} not finite. Use precision bf16 or fp32 instead of fp16, lower "
            "the learning rates, or look for broken rows in the report of 01"
        )


def _finite(value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
