"""What several processes compute together against one process with the whole batch; real processes, gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nblib.distributed import share
from nblib.files import ROOT
from nblib.train.callbacks import read_log


def launch(script, processes, *args):
    """Run a script of this folder, under torchrun if there are several processes; return what it printed."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(Path(__file__).with_name(script)), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def step(backbone, folder, out, processes, rows, accumulation=1, query_side="idf"):
    """Run tests/train/one_step.py and return the gradients of its step and its log."""
    out.mkdir(parents=True)
    launch("one_step.py", processes, backbone, folder, out, rows, accumulation, query_side)
    return torch.load(out / "gradients.pt"), read_log(out / "training_log.jsonl")


def distance(part, whole):
    """Length of the difference of two gradients, over all parameters, relative to the gradient's own."""
    assert part.keys() == whole.keys()
    far = sum(float((part[name] - gradient).double().square().sum()) for name, gradient in whole.items())
    return (far / sum(float(gradient.double().square().sum()) for gradient in whole.values())) ** 0.5


# processes, rows, accumulation
SPLITS = {"2x4": (2, 4), "4x2": (4, 2), "8x1": (1, 1, 8), "2x2x2": (2, 2, 2)}


@pytest.mark.parametrize(
    ("query_side", "splits"), [("learned-idf", "2x4 4x2 8x1"), ("siamese", "2x4 8x1 2x2x2")]
)
def test_gradient_depends_on_neither_processes_nor_accumulation(
    tiny_backbone, mined_set, tmp_path, query_side, splits
):
    whole, log = step(tiny_backbone, mined_set, tmp_path / "1x8", 1, 8, query_side=query_side)
    assert ("query_weights" in whole) == (query_side == "learned-idf")
    for name in splits.split():
        part, part_log = step(tiny_backbone, mined_set, tmp_path / name, *SPLITS[name], query_side=query_side)
        assert part.keys() == whole.keys() and len(part_log) == 1
        assert distance(part, whole) < 1e-6, name
        for parameter, gradient in whole.items():
            far = (part[parameter] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-3)
            assert far < 1e-5, f"{name}: {parameter} differs by {far:.1e}"
        for term, value in log[0].items():
            if term != "examples_per_s":
                assert part_log[0][term] == pytest.approx(value, rel=1e-5), f"{name}: {term}"


def test_fewer_texts_than_processes(tiny_backbone, tmp_path):
    """Two documents and one query for three processes: one has nothing to encode, two no query."""
    for processes in (1, 3):
        launch("few_texts.py", processes, tiny_backbone, tmp_path / f"{processes}.pt")
    whole, part = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "3.pt")
    assert distance(part, whole) < 1e-5 and max(g.abs().max() for g in whole.values()) > 1e-3


def test_processes_run_their_exit_handlers_and_are_not_torn_down():
    """A gloo thread that asks for the interpreter's lock while it is torn down aborts its process."""
    printed = launch("ending.py", 2)
    assert printed.count("exit handler ran") == 2 and "torn down" not in printed
    assert "torn down" in launch("ending.py", 1)


def test_shares_cover_all_items_once():
    for n in range(12):
        for parts in (1, 2, 3, 5):
            cut = [share(n, part, parts) for part in range(parts)]
            assert [i for s in cut for i in range(n)[s]] == list(range(n))
            sizes = [s.stop - s.start for s in cut]
            assert max(sizes) - min(sizes) <= 1
