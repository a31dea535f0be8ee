"""The document side as one TorchScript file; `python -m nblib.export.trace` runs in a process of its own.

The first trace of a process is the same bytes each time; a second one numbers its classes on, and a
notebook kernel may have traced before.

Letters: B documents, L tokens, V vocabulary.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from nblib.files import ROOT, atomic_file
from nblib.model.pooling import Pooling, activate

DROPPED = (".debug_pkl", "/.data/serialization_id")  # both hold or hash this machine's source paths
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


class DocumentModule(nn.Module):
    """What ML Commons calls: {input_ids, attention_mask} -> {"output": [B, V]}.

    Args:
        mlm: masked-LM model with eager attention; OpenSearch 2.x's libtorch cannot run an SDPA trace.
        special_ids: ids whose weight is always 0.
        prune_ratio: weights of at most this share of the document's largest become 0; 0 keeps all.
        pooling: fields of nblib.model.encoder.Pooling that are not the default ones.
    """

    def __init__(
        self, mlm: nn.Module, special_ids: list[int], prune_ratio: float = 0.0, pooling: dict | None = None
    ) -> None:
        super().__init__()
        self.mlm = mlm
        self.prune_ratio = prune_ratio
        self.pooling = Pooling(**(pooling or {}))
        term_mask = torch.ones(mlm.get_output_embeddings().out_features)
        term_mask[special_ids] = 0.0
        self.register_buffer("term_mask", term_mask)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encode one batch: int64 [B, L] input_ids and attention_mask -> {"output": float [B, V]}."""
        mask = inputs["attention_mask"]
        logits = self.mlm(input_ids=inputs["input_ids"], attention_mask=mask).logits  # [B, L, V]
        logits = logits * mask.unsqueeze(-1)  # a padded 0 cannot pass the relu
        if self.pooling.strategy == "max":
            reps = activate(logits.amax(dim=1), self.pooling.activation) * self.term_mask
        else:
            reps = activate(logits, self.pooling.activation).sum(dim=1) * self.term_mask
        if self.pooling.activation_threshold > 0:
            reps = reps * (reps >= self.pooling.activation_threshold)
        if self.prune_ratio > 0:
            reps = reps * (reps > reps.amax(dim=1, keepdim=True) * self.prune_ratio)
        return {"output": reps}


def trace_in_fresh_process(
    mlm_folder: Path, special_ids: list[int], prune_ratio: float, path: Path, pooling: Pooling
) -> None:
    """Trace the masked-LM folder into the TorchScript file `path`.

    Raises:
        RuntimeError: the trace failed; holds the end of its error output.
    """
    job = {"special_ids": list(special_ids), "prune_ratio": prune_ratio, "pooling": asdict(pooling)}
    run_python_module("nblib.export.trace", str(mlm_folder), str(path), json.dumps(job))


def run_python_module(name: str, *args: str) -> str:
    """Run `python -m name args` from the repository root, without hub access; return its standard output.

    Raises:
        RuntimeError: exit code other than 0; holds the end of the error output.
    """
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", name, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"python -m {name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def write_zip(path: Path, entries: dict[str, bytes], align: int = 1) -> None:
    """Write a zip whose bytes follow from `entries` alone: fixed times, their order, stored (zlib varies).

    Args:
        path: written atomically.
        entries: name in the zip -> content.
        align: each content starts at a multiple of this; libtorch's own writer uses 64.
    """
    with atomic_file(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every platform
            # local header of 30 bytes + name + extra field of 4 bytes + filler
            filler = -(archive.fp.tell() + 34 + len(name.encode())) % align
            info.extra = b"FB" + filler.to_bytes(2, "little") + b"\0" * filler if align > 1 else b""
            archive.writestr(info, content)


def without_machine_traces(source: Path, path: Path) -> None:
    """Rewrite a TorchScript archive without source paths and under a fixed folder name inside."""
    with zipfile.ZipFile(source) as archive:
        names = [n for n in archive.namelist() if not n.endswith(DROPPED)]
        entries = {"model/" + n.split("/", 1)[1]: archive.read(n) for n in names}
    write_zip(path, entries, align=64)


def main() -> None:
    """Trace a masked-LM folder on the CPU in float32; job: {"special_ids", "prune_ratio", "pooling"}."""
    from transformers import AutoModelForMaskedLM

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("mlm_folder")
    parser.add_argument("path", type=Path)
    parser.add_argument("job", type=json.loads)
    args = parser.parse_args()
    mlm = AutoModelForMaskedLM.from_pretrained(
        args.mlm_folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    module = DocumentModule(mlm.eval(), **args.job).eval()
    # Two rows, one of them padded: neither the batch size nor a full mask may become a constant.
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    example = {"input_ids": mask.cumsum(1) * mask, "attention_mask": mask}
    with torch.no_grad():
        traced = torch.jit.trace(module, (example,), strict=False, check_trace=False)
    raw = args.path.with_name(args.path.name + ".raw")
    try:
        notes = {"torch": torch.__version__.split("+")[0], "prune_ratio": str(module.prune_ratio)}
        torch.jit.save(traced, str(raw), _extra_files=notes)
        without_machine_traces(raw, args.path)
    finally:
        raw.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
