"""Execute one notebook by papermill, with a live line, its peak memory, and no process left behind."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nblib.files import ROOT, write_text
from nblib.run.layers import relative
from nblib.run.progress import clock, columns, line

POLL_S = 0.5
PLAIN_EVERY_S = 30.0
GRACE_S = 8.0  # for the kernel to remove its temporary files after Ctrl-C
ALLOCATOR = {
    # glibc then keeps freed tensors instead of mapping fresh pages: 13 % off a CPU training step
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    # With many arenas the heaps of forward and backward threads drift apart by gigabytes; with one the
    # tokenizer's threads queue for it and run at less than half their speed.
    "MALLOC_ARENA_MAX": "2",
}


@dataclass
class LiveLine:
    """One line on the screen: rewritten in place on a terminal, else a plain line at most every 30 s."""

    name: str
    stream: Any = field(default_factory=lambda: sys.stdout)
    started: float = field(default_factory=time.monotonic)
    last_plain: float = field(default_factory=time.monotonic)

    def show(self, progress: str) -> None:
        """Draw name, elapsed time and progress."""
        text = f"{self.name}  {clock(time.monotonic() - self.started)}  {progress}".rstrip()
        if self.stream.isatty():
            self._put("\r\033[K" + _cut(text, shutil.get_terminal_size().columns - 1))
        elif time.monotonic() - self.last_plain >= PLAIN_EVERY_S:
            self.last_plain = time.monotonic()
            self._put(text + "\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._put(("\r\033[K" if self.stream.isatty() else "") + text + "\n")

    def _put(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _cut(text: str, width: int) -> str:
    while columns(text) > width:
        text = text[:-1]
    return text


@dataclass
class Outcome:
    """How the execution of a notebook ended."""

    error: BaseException | None = None
    peak_bytes: int = 0  # kernel and its children
    total_bytes: int = 0  # with the runner itself
    group: int = 0  # process group of the kernel and of the workers that it starts


def execute(notebook: Path, run_dir: Path, params: dict[str, Any], live: LiveLine) -> Outcome:
    """Run a notebook into run_dir/executed.ipynb; the main thread draws, samples memory and takes Ctrl-C.

    Memory is the resident set of the kernel and its child processes, sampled by psutil twice a second, at
    first more often; pages that forked children share count once for each, so it is an upper bound between
    samples.

    Raises:
        KeyboardInterrupt: after the kernel has ended.
    """
    outcome, runner = Outcome(), psutil.Process()
    others = {child.pid for child in runner.children()}
    (run_dir / "progress.json").unlink(missing_ok=True)
    thread = threading.Thread(target=_papermill, args=(notebook, run_dir, params, outcome), daemon=True)
    thread.start()
    try:
        wait = POLL_S / 10  # a kernel may be gone within half a second
        while thread.is_alive():
            thread.join(wait)
            wait = min(POLL_S, 1.1 * wait)
            live.show(read_progress(run_dir))
            _sample(runner, others, outcome)
    except BaseException:
        live.say(f"{live.name}  stopping the kernel ...")
        _stop(runner, others, thread)
        raise
    finally:
        kill(_kernels(runner, others))
        kill_group(outcome.group)
        (run_dir / "progress.json").unlink(missing_ok=True)
    return outcome


def _papermill(notebook: Path, run_dir: Path, params: dict[str, Any], outcome: Outcome) -> None:
    import papermill  # here: the import takes seconds, and --help or --dry-run do without

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it has to say, we say
    environment = os.environ | {
        "NBLIB_PROGRESS_DIR": str(run_dir),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "30",  # one line per 30 s in the saved notebook
        **ALLOCATOR,
        "TOKENIZERS_PARALLELISM": "true",  # all cores; the notebooks start no worker processes that fork
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JUPYTER_PREFER_ENV_PATH": "1",  # this Python's kernel, not one of the same name in the home folder
    }
    try:
        with open(run_dir / "kernel.log", "w", encoding="utf-8") as log:
            papermill.execute_notebook(
                notebook,
                run_dir / "executed.ipynb",
                parameters=params,
                cwd=ROOT,
                progress_bar=False,
                kernel_name="python3",
                kernel_manager_class=_manager_class(environment, log, outcome),
            )
    except BaseException as error:  # the main thread decides what to say
        outcome.error = error
    with suppress(OSError, ValueError):
        scrub(run_dir / "executed.ipynb")


def _manager_class(environment: dict[str, str], log: Any, outcome: Outcome) -> type:
    """Make a kernel manager: sets the environment, keeps chatter off the live line, watches the runner."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        _watch: subprocess.Popen | None = None

        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            own = {k: v for k, v in kw.get("env", {}).items() if k not in os.environ}
            kw |= {"env": environment | own, "stdout": log, "stderr": log}
            await super()._async_launch_kernel(kernel_cmd, **kw)
            outcome.group = self.provisioner.pid  # jupyter_client makes each kernel the head of a session
            self._watch = _watchdog(outcome.group)

        _launch_kernel = _async_launch_kernel

        async def _async_cleanup_resources(self, restart: bool = False) -> None:
            await super()._async_cleanup_resources(restart)
            if self._watch:
                self._watch.kill()
                self._watch.communicate()

        cleanup_resources = _async_cleanup_resources

    return Manager


def _watchdog(group: int) -> subprocess.Popen:
    """Kill the kernel's group when this process ends in any way: it alone holds the pipe's other end.

    ipykernel notices a dead parent by itself, but the workers that it started do not.
    """
    command = ["sh", "-c", 'read -r _; kill -9 "-$0"', str(group)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **quiet)


def kill_group(group: int) -> None:
    """Kill what is left of a kernel's process group, such as workers of a kernel that died."""
    with suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(group, signal.SIGKILL)


def scrub(executed: Path) -> None:
    """Take this machine's paths out of papermill's record in the executed notebook."""
    if not executed.exists():
        return
    book = json.loads(executed.read_text(encoding="utf-8"))
    record = book.get("metadata", {}).get("papermill", {})
    for name in ("input_path", "output_path"):
        if record.get(name):
            record[name] = relative(Path(record[name]))
    write_text(executed, json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def read_progress(run_dir: Path) -> str:
    """Put the kernel's progress.json into words; "" while there is none."""
    try:
        return line(json.loads((run_dir / "progress.json").read_text(encoding="utf-8")), time.time())
    except (OSError, ValueError, KeyError):
        return ""


def _kernels(runner: psutil.Process, others: set[int]) -> list[psutil.Process]:
    children = [child for child in runner.children() if child.pid not in others]
    found = list(children)
    for child in children:
        with suppress(psutil.Error):
            found += child.children(recursive=True)
    return found


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has ended since
        return 0


def _sample(runner: psutil.Process, others: set[int], outcome: Outcome) -> None:
    kernel = sum(map(_resident, _kernels(runner, others)))
    outcome.peak_bytes = max(outcome.peak_bytes, kernel)
    outcome.total_bytes = max(outcome.total_bytes, kernel + _resident(runner))


def _stop(runner: psutil.Process, others: set[int], thread: threading.Thread) -> None:
    """Interrupt the cell, so that it can remove its temporary files; kill what is left after a while."""
    family = _kernels(runner, others)
    for process in family:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGINT)  # papermill then saves the notebook with the interrupted cell
    with suppress(KeyboardInterrupt):  # a second Ctrl-C: at once
        thread.join(GRACE_S)
    kill(family)
    thread.join(2.0)


def kill(processes: list[psutil.Process]) -> None:
    """End processes, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def brief(error: BaseException) -> str:
    """Say in a few lines what went wrong in which cell; the whole traceback is in the notebook."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    text = f"{name}: {_plain(value)}".strip().rstrip(":")
    if type(error).__name__ == "DeadKernelError":
        text = "the kernel died without a Python error; most often the system ran out of memory"
    lines = [part.rstrip() for part in text.splitlines() if part.strip()]
    lines = [part if len(part) <= 300 else part[:297] + "..." for part in lines]
    if len(lines) > 8:
        lines = [*lines[:5], "...", *lines[-2:]]
    if source := getattr(error, "source", ""):
        lines.insert(0, f"in cell [{error.exec_count}], {_where(error, source)}")
    return "\n".join(lines)


def _where(error: Any, source: str) -> str:
    """Show the line of the cell that was running: its frame is the outermost of the traceback."""
    number = re.search(r"^Cell In\s?\[\d+\], line (\d+)", _plain("\n".join(error.traceback)), re.MULTILINE)
    lines = source.splitlines()
    at = min(int(number[1]), len(lines)) if number else 1
    return f"line {at}: {lines[at - 1].strip()[:100]}"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
