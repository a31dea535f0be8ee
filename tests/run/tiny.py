"""A project of three small notebooks that really run; `python tiny.py FOLDER run ...` is its command line."""

import sys
from pathlib import Path
from typing import Annotated

import nbformat
from pydantic import Field

from nblib.run.cli import main
from nblib.run.layers import Project
from nblib.run.params import DataPath, From, NotebookParams


class MakeParams(NotebookParams):
    words: list[str]
    source: Annotated[str, DataPath()]
    rate: Annotated[float, Field(gt=0)]
    seed: int
    run_dir: str


class TrainParams(NotebookParams):
    make_dir: Annotated[str, From("01_make")]
    num_steps: Annotated[int, Field(gt=0)]
    pause_s: Annotated[float, Field(ge=0)]
    break_at: int
    seed: int
    run_dir: str


class EvalParams(NotebookParams):
    train_dir: Annotated[str, From("02_train")]
    system: str
    run_dir: str


MODELS = {"01_make": MakeParams, "02_train": TrainParams, "05_beir_eval": EvalParams}

MAKE = [
    """words = ["a", "b"]  # b = the second
source = "nothing"
rate = 0.5
seed = 13
run_dir = "outputs/lab/01_make"
""",
    """import json
from nblib.files import at_root, write_json
write_json(at_root(run_dir) / "artifacts/words.json", words)""",
]
# The training of the real notebooks in small: a checkpoint after each step, and a start from the last one.
TRAIN = [
    """make_dir = "outputs/lab/01_make"
num_steps = 3
pause_s = 0.0
break_at = -1
seed = 13
run_dir = "outputs/lab/02_train"
""",
    """import os, time
from nblib.files import at_root, read_json, write_json
from nblib.run.progress import report
out = at_root(run_dir)
words = read_json(at_root(make_dir) / "artifacts/words.json")
(out / "pid").write_text(str(os.getpid()))""",
    """checkpoint = out / "checkpoint.json"
first = read_json(checkpoint)["step"] if checkpoint.exists() else 0
for step in range(first, num_steps):
    if step == break_at and not (out.parent / "mended").exists():  # mended without a change to the key
        raise RuntimeError("loss is not finite\\n" * 40)
    time.sleep(0 if (out.parent / "fast").exists() else pause_s)
    write_json(checkpoint, {"step": step + 1})
    report("train", step + 1, num_steps)
write_json(out / "artifacts/model.json", {"words": words, "first": first, "steps": num_steps})""",
]
EVAL = [
    """train_dir = "outputs/lab/02_train"
system = "finetuned"
run_dir = "outputs/lab/05_beir_eval"
""",
    """import base64
from nblib.files import at_root, read_json, write_json
out = at_root(run_dir)
model = read_json(at_root(train_dir) / "artifacts/model.json")
row = {"dataset": "한국어", "system": system, "ndcg_at_10": 0.5, "mrr_at_10": 0.4, "recall_at_100": 0.9,
       "flops": None, "d_nnz": 95.2}
write_json(out / "metrics.json", [row])""",
    """(out / "figures").mkdir(exist_ok=True)
png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_ = (out / "figures/ndcg.png").write_bytes(base64.b64decode(png))""",
]


def write_notebook(path: Path, cells: list[str]) -> None:
    """Write a notebook: a heading, the parameters cell, and code cells."""
    v4 = nbformat.v4
    made = [v4.new_code_cell(source) for source in cells]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Tiny"), *made], metadata=kernel), path)


def tiny_project(folder: Path) -> Project:
    """Write the notebooks and one profile, "small"."""
    for name, cells in {"01_make": MAKE, "02_train": TRAIN, "05_beir_eval": EVAL}.items():
        write_notebook(folder / "notebooks" / f"{name}.ipynb", cells)
    layer(folder, "small", "01_make", "rate: 2.0e-5\n")
    return open_project(folder)


def open_project(folder: Path) -> Project:
    """Open a project written before."""
    return Project(folder / "notebooks", folder / "params", MODELS)


def layer(folder: Path, profile: str, name: str, text: str) -> None:
    """Write params/<profile>/<name>.yaml."""
    path = folder / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], open_project(Path(sys.argv[1]))))
