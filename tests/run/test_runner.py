"""The runner on three small notebooks, really executed by papermill."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import psutil
import pytest
import yaml

from nblib.files import ROOT, sha256_file
from nblib.run.cli import main
from tests.run import tiny

pytestmark = pytest.mark.notebook
PATIENCE_S = 300  # of a test on a busy machine; each takes seconds on an idle one
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_process_left():
    """End what a failing test has left running."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def start(folder: Path, *words: str, max_file: int = 0, ignore: int = 0) -> subprocess.Popen:
    """Start the command line on the project in `folder`, as a user would: a process of its own."""

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # a test run in the background inherits an ignored SIGINT
        if ignore:
            signal.signal(ignore, signal.SIG_IGN)
        if max_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))

    command = [
        sys.executable,
        tiny.__file__,
        folder,
        "run",
        "--profile=small",
        f"--outputs={folder}/out",
        *words,
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,  # not the repository: paths must not depend on it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    STARTED.append(process)
    return process


def run(folder: Path, *words: str, code: int = 0) -> tuple[str, str]:
    """Run to the end in this process, which spares seconds of imports; returns stdout and stderr."""
    arguments = ["run", "--profile=small", f"--outputs={folder}/out", *words]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        got = main(arguments, tiny.open_project(folder))
    assert got == code, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


def record(folder: Path, name: str = "02_train") -> dict:
    return json.loads((folder / "out/small" / name / "manifest.json").read_text())


def model(folder: Path) -> dict:
    return json.loads((folder / "out/small/02_train/artifacts/model.json").read_text())


def actions(folder: Path, *words: str) -> dict[str, tuple[str, str]]:
    """Ask --dry-run: step -> (action, reason)."""
    lines = run(folder, "--dry-run", *words)[0].splitlines()
    return {name: (action, why) for name, action, why in (line.split(maxsplit=2) for line in lines)}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


def pid_in(folder: Path, name: str) -> int:
    """Read a process id that the training notebook has written."""
    return int((folder / "out/small/02_train" / name).read_text())


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def training(tmp_path):
    """A project, and the words that run its training alone, slowly, on an input that is there already."""
    tiny.tiny_project(tmp_path)
    (tmp_path / "made/artifacts").mkdir(parents=True)
    (tmp_path / "made/artifacts/words.json").write_text('["a"]')
    settings = (f"make_dir={tmp_path / 'made'}", "pause_s=0.5", "num_steps=200")
    return tmp_path, ["--only=02", *(word for setting in settings for word in ("-p", setting))]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A project whose three steps have run once, and what the run printed."""
    folder = tmp_path_factory.mktemp("project")
    tiny.tiny_project(folder)
    process = start(folder)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    return folder, out, err


@pytest.fixture
def project(first):
    """The same project for tests that change it; each leaves it finished as it was."""
    return first[0]


def test_what_a_run_prints(first):
    _, out, err = first
    lines = out.splitlines()
    assert lines[0] == "01_make  run: no manifest"
    (end,) = [line for line in lines if line.startswith("01_make  ok in ")]
    assert re.fullmatch(r"01_make  ok in \d+:\d\d, peak memory 0\.\d+ GiB", end)
    assert "한국어   finetuned    0.500   0.400       0.900      -             95" in lines
    assert lines[-1].endswith("out/small/index.html")
    assert err == ""


def test_the_record_of_a_step(first):
    folder = first[0]
    got, step = record(folder), folder / "out/small/02_train"
    assert (got["status"], got["notebook"], got["seed"], got["profile"]) == (
        "ok",
        "02_train.ipynb",
        13,
        "small",
    )
    assert got["artifacts"] == {"artifacts/model.json": sha256_file(step / "artifacts/model.json")}
    words = folder / "out/small/01_make/artifacts/words.json"
    assert got["inputs"] == {"01_make/artifacts/words.json": sha256_file(words)}
    assert got["key_parts"]["upstream"] == {"01_make": record(folder, "01_make")["key"]}
    assert 0.01 < got["peak_gib"] < got["peak_gib_with_runner"] < 2
    assert 0 < got["wall_s"] < PATIENCE_S
    assert got["device"] not in ("", "unknown") and got["packages"]["papermill"].startswith("2.")
    assert {p.name for p in step.iterdir()} == {
        *("artifacts", "checkpoint.json", "executed.ipynb", "kernel.log", "manifest.json", "params.yaml"),
        *("pid", "report.html"),
    }


def test_params_yaml_repeats_the_step_by_plain_papermill(first, tmp_path):
    folder = first[0]
    values = yaml.safe_load((folder / "out/small/01_make/params.yaml").read_text())
    assert values == record(folder, "01_make")["params"] and values["rate"] == 2.0e-5
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values | {"run_dir": str(tmp_path / "again")}))
    book = folder / "notebooks/01_make.ipynb"
    command = [sys.executable, "-m", "papermill", book, tmp_path / "out.ipynb", "-f", tmp_path / "p.yaml"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=env)
    assert (tmp_path / "again/artifacts/words.json").read_text() == '[\n  "a",\n  "b"\n]\n'


def test_a_finished_step_is_skipped_and_force_repeats_it(project):
    book = project / "out/small/01_make/executed.ipynb"
    stamp = book.stat().st_mtime_ns
    out, _ = run(project)
    assert out.count("  skip: done on ") == 3 and book.stat().st_mtime_ns == stamp
    out, _ = run(project, "--only", "01", "--force")
    assert "01_make  run: forced" in out and book.stat().st_mtime_ns > stamp
    # The same results came out, so what follows stands.
    assert {action for action, _ in actions(project).values()} == {"skip"}


def test_a_changed_parameter_repeats_the_step_and_what_follows(project):
    told = actions(project, "-p", "num_steps=5")
    assert told["01_make"][0] == "skip"
    assert told["02_train"] == ("run", "parameters changed: num_steps 3 -> 5")
    assert told["05_beir_eval"] == ("run", "upstream changed: 02_train; upstream 02_train will run")
    (project / "out/small/02_train/stale.txt").write_text("of the old run")
    run(project, "--only", "02", "-p", "num_steps=5")
    assert model(project)["steps"] == 5 and model(project)["first"] == 0, (
        "not resumed from the old checkpoint"
    )
    assert not (project / "out/small/02_train/stale.txt").exists()
    assert actions(project, "--only", "05")["05_beir_eval"] == ("run", "upstream changed: 02_train")
    run(project, "--only", "02")
    assert model(project)["steps"] == 3 and {action for action, _ in actions(project).values()} == {"skip"}


def test_a_missing_artifact_is_made_again(project):
    (project / "out/small/01_make/artifacts/words.json").unlink()
    told = actions(project)
    assert told["01_make"] == ("run", "1 of its files are gone, such as artifacts/words.json")
    assert told["02_train"] == ("run", "upstream 01_make will run (skipped if that gives the same results)")
    out, _ = run(project)
    assert "01_make  ok" in out and "02_train  skip" in out


def test_a_dry_run_starts_and_writes_nothing(tmp_path):
    tiny.tiny_project(tmp_path)
    assert set(actions(tmp_path).values()) == {("run", "no manifest")}
    assert not (tmp_path / "out").exists()


def test_an_empty_selection_is_refused(tmp_path):
    tiny.tiny_project(tmp_path)
    _, told = run(tmp_path, "--only", "01", "--from", "02", code=2)
    assert "--only 01 comes before --from 02" in told


def test_a_bad_parameter_of_the_last_step_stops_the_run_before_the_first(tmp_path):
    tiny.tiny_project(tmp_path)
    tiny.layer(tmp_path, "small", "05_beir_eval", "system: 5\n")
    out, err = run(tmp_path, code=2)
    assert out == "" and not (tmp_path / "out").exists()
    assert err.startswith("refused: ") and "05_beir_eval.yaml, line 1: system = 5" in err


def test_a_failed_step_says_so_briefly_and_is_resumed(tmp_path):
    tiny.tiny_project(tmp_path)
    out, err = run(tmp_path, "-p", "break_at=2", code=1)
    lines = err.splitlines()
    assert (
        lines[0] == '02_train  failed in cell [4], line 5: raise RuntimeError("loss is not finite\\n" * 40)'
    )
    assert lines[1] == "RuntimeError: loss is not finite"
    assert "02_train/executed.ipynb" in err and "same command goes on" in err
    assert len(lines) < 16, "the traceback belongs in the notebook"
    assert record(tmp_path)["status"] == "failed" and "not finite" in record(tmp_path)["error"]
    assert "not finite" in (tmp_path / "out/small/index.html").read_text()
    assert "not finite" in (tmp_path / "out/small/02_train/report.html").read_text()
    assert "05_beir_eval" not in out
    assert actions(tmp_path, "-p", "break_at=2")["02_train"] == ("resume", "last run failed: resumes")

    (tmp_path / "out/small/mended").touch()
    out, _ = run(tmp_path, "-p", "break_at=2")
    assert "01_make  skip" in out and record(tmp_path)["status"] == "ok"
    assert model(tmp_path)["first"] == 2, "went on from the checkpoint of step 2"


WORKER = """import subprocess
worker = subprocess.Popen(["sleep", "300"])
_ = (out / "worker").write_text(str(worker.pid))"""


def test_kill_9_leaves_no_kernel_no_worker_and_the_next_run_resumes(training):
    folder, words = training
    tiny.write_notebook(folder / "notebooks/02_train.ipynb", [*tiny.TRAIN[:-1], WORKER, tiny.TRAIN[-1]])
    process = start(folder, *words)
    wait_for(folder / "out/small/02_train/checkpoint.json", process)
    kernel, worker = pid_in(folder, "pid"), pid_in(folder, "worker")

    out, err = run(folder, *words, code=2)
    assert err.startswith(f"refused: process {process.pid} is already running in ")
    assert record(folder)["status"] == "running", "the second run touched nothing"

    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert gone(kernel) and gone(worker)
    assert record(folder)["status"] == "running"
    assert actions(folder, *words)["02_train"] == ("resume", "last run was killed: resumes")
    (folder / "out/small/fast").touch()
    run(folder, *words)
    assert record(folder)["status"] == "ok"
    assert 0 < model(folder)["first"] < 200
    assert gone(pid_in(folder, "worker")), "nor does a run that ends well"


def test_a_run_under_nohup_outlives_its_terminal(training):
    folder, words = training
    process = start(folder, *words, ignore=signal.SIGHUP)
    wait_for(folder / "out/small/02_train/checkpoint.json", process)
    process.send_signal(signal.SIGHUP)
    (folder / "out/small/fast").touch()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_kernel_and_can_be_resumed(training, number, code):
    folder, words = training
    process = start(folder, *words)
    wait_for(folder / "out/small/02_train/checkpoint.json", process)
    kernel = pid_in(folder, "pid")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code and "Traceback" not in out + err
    assert "the same command goes on from here" in err
    assert gone(kernel)
    assert record(folder)["status"] == "failed"
    assert actions(folder, *words)["02_train"][0] == "resume"


def test_a_kernel_that_dies_is_told_apart(training):
    folder, words = training
    process = start(folder, *words)
    wait_for(folder / "out/small/02_train/checkpoint.json", process)
    os.kill(pid_in(folder, "pid"), signal.SIGKILL)  # as the system does when memory runs out
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and err.startswith("02_train  failed: the kernel died")
    assert record(folder)["status"] == "failed"


def test_a_folder_that_is_no_run_is_not_removed(tmp_path):
    tiny.tiny_project(tmp_path)
    precious = tmp_path / "out/small/01_make/thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    _, err = run(tmp_path, code=2)
    assert "holds files but no manifest.json; move it away" in err and precious.read_text() == "mine"


def test_a_full_disk_fails_the_step_and_leaves_no_half_artifact(training):
    folder, words = training
    last = [*tiny.TRAIN[:-1], 'write_json(out / "artifacts/model.json", ["x" * 1000] * 500)']
    tiny.write_notebook(folder / "notebooks/02_train.ipynb", last)
    process = start(folder, *words, max_file=100_000)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "OSError: [Errno 27] File too large" in err
    assert list((folder / "out/small/02_train/artifacts").iterdir()) == []
    assert record(folder)["status"] == "failed" and "report.html could not be made" in out
    assert not (folder / "out/small/02_train/report.html").exists()
