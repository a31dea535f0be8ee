"""Run the notebooks of a profile: check all parameters, skip what is done, execute, record."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nblib.files import ROOT, remove_leftovers, sha256_paths, write_text
from nblib.run import kernel, manifest, report
from nblib.run.keys import explain, key_of, key_parts
from nblib.run.layers import (
    BadRequest,
    Project,
    Step,
    assign_overrides,
    check_profiles,
    pick,
    relative,
    resolve,
)
from nblib.run.lock import locked
from nblib.run.progress import clock

SKIP, RUN, RESUME = "skip", "run", "resume"


class StepFailed(RuntimeError):
    """A notebook raised; the message says where, and how to go on."""


@dataclass(frozen=True)
class Summary:
    """What a run leaves: the page, the time, and the most memory that kernel and runner held together."""

    index: Path
    wall_s: float
    peak_gib: float


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    profiles: list[str]
    overrides: list[str] = field(default_factory=list)
    only: str = ""
    start: str = ""  # --from
    force: bool = False
    outputs: Path = ROOT / "outputs"

    @property
    def profile(self) -> str:
        """Name the run: "quick", or "quick+mine" for two layers."""
        return "+".join(self.profiles)

    @property
    def folder(self) -> Path:
        """outputs/<profile>."""
        return Path(os.path.abspath(self.outputs)) / self.profile


def plan(project: Project, request: Request) -> list[Step]:
    """Select the steps and check every parameter of each, before anything starts.

    Raises:
        BadRequest: all that is wrong, one line each.
    """
    check_profiles(project, request.profiles)
    names = project.names()
    if not names:
        raise BadRequest(f"no notebooks NN_name.ipynb in {relative(project.notebooks)}")
    selected = [pick(names, request.only)] if request.only else project.chain(request.profiles)
    if request.start:
        first = pick(names, request.start)
        selected = [name for name in selected if name >= first]
        if not selected:
            raise BadRequest(
                f"--only {request.only} comes before --from {request.start}: nothing is left to run"
            )
    for name in selected:
        if name not in project.models:
            raise BadRequest(
                f"{name} has no typed parameters: add its model to BY_NOTEBOOK in nblib/run/params"
            )
    given = assign_overrides(project, selected, request.overrides)
    steps, wrong = [], []
    for name in selected:
        try:
            steps.append(resolve(project, request.profiles, name, given[name], request.folder, given))
        except ValueError as error:  # BadRequest, or a parameters cell that holds no literals
            wrong.append(str(error))
    if wrong:
        raise BadRequest("\n".join(wrong))
    _check_upstream(steps)
    return steps


def _check_upstream(steps: list[Step]) -> None:
    """Refuse a step whose input neither exists nor comes from a step of this run."""
    coming = {step.run_dir for step in steps}
    for step in steps:
        for name, folder in step.upstream.items():
            where = f"{step.name} reads {relative(folder)} ({name})"
            if folder in coming:
                continue
            status = manifest.read(folder).get("status")
            if not folder.exists() or status not in (None, "ok"):
                state = "has not finished there" if status else "is not there"
                own = folder.parent == step.run_dir.parent
                cure = (
                    f"run that step too, e.g. --from {folder.name[:2]}" if own else f"give -p {name}=FOLDER"
                )
                raise BadRequest(f"{where}, which {state}; {cure}")


def upstream_key(folder: Path, keys: dict[Path, str]) -> str:
    """Find the key of an upstream folder: of this run, of its manifest, or of its content."""
    return keys.get(folder) or manifest.read(folder).get("key") or sha256_paths([folder])


def decide(
    step: Step, key: str, parts: dict[str, Any], force: bool, rerun: list[str] | None = None
) -> tuple[str, str]:
    """Choose skip, run or resume, and say why.

    Args:
        step: the step.
        key: its key now.
        parts: what the key was made of.
        force: run even if it is done.
        rerun: --dry-run only: upstream steps that would run before it.
    """
    old = manifest.read(step.run_dir)
    if force:
        return RUN, "forced"
    if not old:
        return RUN, "no manifest"
    if old.get("key") != key:
        why = explain(old.get("key_parts", {}), parts)
        return RUN, f"{why}; upstream {', '.join(rerun)} will run" if rerun else why
    if rerun:
        return RUN, f"upstream {', '.join(rerun)} will run (skipped if that gives the same results)"
    results = {name: manifest.results(manifest.read(folder)) for name, folder in step.inputs().items()}
    if changed := [name for name, digest in results.items() if old["upstream_results"].get(name) != digest]:
        return RUN, f"results of {', '.join(changed)} changed"
    if old["status"] != "ok":
        state = "failed" if old["status"] == "failed" else "was killed"
        return RESUME, f"last run {state}: resumes"
    if gone := manifest.missing(step.run_dir, old):
        return RUN, f"{len(gone)} of its files are gone, such as {gone[0]}"
    return SKIP, f"done on {old['started'][:16].replace('T', ' ')} UTC, nothing changed"


def dry_run(project: Project, request: Request, say: Callable[[str], None] = print) -> None:
    """Print for each step what would happen and why; starts and writes nothing."""
    keys: dict[Path, str] = {}
    will_run: set[Path] = set()
    for step in plan(project, request):
        parts, key = step_key(step, keys)
        rerun = [name for name, folder in step.inputs().items() if folder in will_run]
        action, why = decide(step, key, parts, request.force, rerun)
        keys[step.run_dir] = key
        if action != SKIP:
            will_run.add(step.run_dir)
        say(f"{step.name:<16} {action:<7} {why}")


def step_key(step: Step, keys: dict[Path, str]) -> tuple[dict[str, Any], str]:
    """Compute the parts of a step's key, and the key."""
    upstream = {name: upstream_key(folder, keys) for name, folder in step.inputs().items()}
    parts = key_parts(step.notebook, step.model, step.params, upstream)
    return parts, key_of(parts)


def run(project: Project, request: Request, say: Callable[[str], None] = print) -> Summary:
    """Run what has to be run, in order, and write the index page outputs/<profile>/index.html.

    Raises:
        BadRequest: before anything starts.
        nblib.run.lock.Locked: another run holds the folder.
        StepFailed: a notebook failed; steps after it have not run.
        KeyboardInterrupt: Ctrl-C; the kernel has ended and the step can be resumed.
    """
    start, steps = time.monotonic(), plan(project, request)
    keys: dict[Path, str] = {}
    with locked(request.folder):
        try:
            for step in steps:
                parts, key = step_key(step, keys)
                keys[step.run_dir] = key
                action, why = decide(step, key, parts, request.force)
                say(f"{step.name}  {action}: {why}")
                if action != SKIP:
                    run_step(step, request, key, parts, keep=action == RESUME)
        finally:
            with suppress(OSError):  # on a full disk the step's own error is the one to tell
                report.write_index(request.folder, request.profile, project.names())
    peaks = [manifest.read(step.run_dir).get("peak_gib_with_runner", 0.0) for step in steps]
    return Summary(request.folder / "index.html", time.monotonic() - start, max(peaks))


def run_step(step: Step, request: Request, key: str, parts: dict[str, Any], keep: bool) -> None:
    """Execute one notebook into its folder; `keep` keeps what a failed run left, so that it resumes."""
    if not keep:
        remove_run(step.run_dir)
    step.run_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(step.run_dir)
    manifest.start_device_probe()
    record = manifest.begin(step, request.profile, key, parts)
    header = (
        f"# {step.notebook.name}; by hand: papermill notebooks/{step.notebook.name} out.ipynb -f this.yaml\n"
    )
    values = yaml.safe_dump(step.params, sort_keys=False, allow_unicode=True, width=1000)
    write_text(step.run_dir / "params.yaml", header + values)
    live, start = kernel.LiveLine(step.name), time.monotonic()
    outcome = kernel.Outcome(error=KeyboardInterrupt("interrupted"))
    try:
        outcome = kernel.execute(step.notebook, step.run_dir, step.params, live)
    finally:
        error = kernel.brief(outcome.error) if outcome.error else None
        facts = {
            "status": "failed" if error else "ok",
            "error": error,
            "wall_s": round(time.monotonic() - start, 1),
            "peak_gib": round(outcome.peak_bytes / 2**30, 2),
            "peak_gib_with_runner": round(outcome.total_bytes / 2**30, 2),
        }
        _record(step, record, facts, live)
    if error:
        raise StepFailed(_failure(step, error)) from outcome.error
    live.say(f"{step.name}  ok in {clock(facts['wall_s'])}, peak memory {facts['peak_gib']} GiB")


def _record(step: Step, record: dict[str, Any], facts: dict[str, Any], live: kernel.LiveLine) -> None:
    if not (facts["error"] or "").startswith("KeyboardInterrupt"):  # who pressed Ctrl-C wants to leave now
        try:
            report.write_report(step.run_dir, step.name)
        except Exception as error:  # a page less, but the results stand
            live.say(f"{step.name}  report.html could not be made: {kernel.brief(error)}")
    try:
        manifest.finish(step, record, **facts)
    except OSError as error:  # full disk: the manifest still says "running", so the next call resumes
        live.say(f"{step.name}  the manifest could not be written: {error}")
        if facts["status"] == "ok":
            raise


def _failure(step: Step, error: str) -> str:
    book = step.run_dir / "executed.ipynb"
    where = f"\nhalf-executed notebook: {relative(book)}" if book.exists() else ""
    said = f" {error}" if error.startswith("in cell") else f": {error}"
    return (
        f"{step.name}  failed{said}{where}\nkernel messages: {relative(step.run_dir / 'kernel.log')}\n"
        "The same command goes on from here: finished steps are skipped, training resumes at its\n"
        "last checkpoint."
    )


def remove_run(run_dir: Path) -> None:
    """Remove an earlier run's folder; renamed first, so that no half of it is ever taken for a run.

    Raises:
        BadRequest: the folder holds files but no manifest, so it is not known to be a run.
    """
    old = run_dir.with_name(f".{run_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not run_dir.exists():
        return
    if any(run_dir.iterdir()) and not (run_dir / "manifest.json").exists():
        raise BadRequest(f"{relative(run_dir)} holds files but no manifest.json; move it away")
    run_dir.rename(old)
    shutil.rmtree(old, ignore_errors=True)
