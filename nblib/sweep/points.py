"""Run the points of a sweep, each once: train, search, keep the result, reuse it ever after."""

import datetime
import gc
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nblib.files import read_json, remove_leftovers, write_json
from nblib.run.keys import explain
from nblib.run.lock import locked
from nblib.run.manifest import git_state, versions
from nblib.run.progress import clock, report
from nblib.sweep import stages
from nblib.sweep.layout import STAGE, Base, Point, Stage, stages_of
from nblib.train.callbacks import TrainingDiverged

RESULT = "result.json"
Result = dict[str, Any]


class SweepIncomplete(RuntimeError):
    """Points are missing because the time is spent; what there is has been written."""


def run_points(
    points: list[Point],
    base: Base,
    minutes: float = 0.0,
    keep_weights: bool = False,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run the points that are not finished, one after the other, and give the results of all that are.

    Args:
        points: what is wanted.
        base: what they share.
        minutes: after which no further point begins; at least one is run. 0 = no limit.
        keep_weights: leave the models of finished points in place; else they go when no point that is still
            to run starts from them.
        say: told of every point as it ends.

    Returns:
        Results in the order of `points`, see _finish; those that are missing left out.

    Raises:
        nblib.run.lock.Locked: another process runs points in this folder.
    """
    start, ran = time.monotonic(), 0
    laid = [(point, stages_of(point, base)) for point in points]
    with locked(base.folder):
        todo = [(point, chain) for point, chain in laid if not finished(point, chain)]
        say(f"{len(points) - len(todo)} of {len(points)} points are done")
        while todo and not (ran and minutes and time.monotonic() - start >= 60 * minutes):
            report("points", len(points) - len(todo), len(points))
            (point, chain), ran = todo.pop(0), ran + 1
            if why := why_anew(point, chain, base.folder):
                say(f"{point.name}, seed {point.seed}: anew, {why}")
            result = _run_point(point, chain, base)
            _tidy(chain, {stage.folder for _, other in todo for stage in other}, keep_weights)
            say(f"{point.name}, seed {point.seed}: {_words(result)}, {clock(result['wall_s'])}")
            gc.collect()
    return [result for point, chain in laid if (result := finished(point, chain))]


def finished(point: Point, chain: list[Stage]) -> Result | None:
    """Read the result of a point with these stages; None if it is not there."""
    result = _read(chain[-1].folder / RESULT)
    if result is None or result["key"] != chain[-1].key:
        return None
    return result | {"point": point.name, "seed": point.seed}  # another sweep may have named it otherwise


def _read(path: Path) -> Result | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def why_anew(point: Point, chain: list[Stage], folder: Path) -> str:
    """Say why the last result of this name and seed does not count; "" if there is none."""
    found = [result for path in folder.glob(f"point-*/{RESULT}") if (result := _read(path))]
    found = [result for result in found if (result["point"], result["seed"]) == (point.name, point.seed)]
    old = max(found, key=lambda result: result["finished"])["stages"] if found else {}
    changed = [s for s in chain if s.kind in old and old[s.kind]["parts"] != s.parts]
    return f"{changed[0].kind}: {explain(old[changed[0].kind]['parts'], changed[0].parts)}" if changed else ""


def _run_point(point: Point, chain: list[Stage], base: Base) -> Result:
    """Train what is not trained, search, and write the result. A diverged training is a result, too."""
    done: dict[str, dict[str, Any]] = {}
    rows, diverged = [], None
    try:
        for stage in chain[:-1]:
            done[stage.kind] = read_json(stage.folder / STAGE) if stage.trained else _train(stage)
        begin = time.monotonic()
        rows = _search(chain[-1], point, base)
        done["point"] = {"wall_s": round(time.monotonic() - begin, 1)}
    except TrainingDiverged as error:
        diverged = str(error)
    return _finish(point, chain, done, rows, diverged)


def _train(stage: Stage) -> dict[str, Any]:
    """Run a training from its last checkpoint on, and note how long it took."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(stage.folder)
    resumed, begin = any(stage.folder.rglob("checkpoint-*")), time.monotonic()
    if stage.kind == "pretrain":
        row = stages.pretrain(stage.params, stage.start)
    else:
        row = (stages.head if stage.kind == "head" else stages.finetune)(stage.params)
    facts = {"wall_s": round(time.monotonic() - begin, 1), "resumed": resumed, "training": row}
    write_json(stage.folder / STAGE, facts)
    return facts


def _search(stage: Stage, point: Point, base: Base) -> list[dict[str, Any]]:
    params = stage.params
    if point.given_idf:
        plain = stages.with_given_idf(Path(params.model_dir), stage.folder / "model")
        params = params.model_copy(update={"model_dir": str(plain)})
    return stages.search(params, base.sets, stage.folder / "cache")


def _finish(
    point: Point, chain: list[Stage], done: dict[str, dict], rows: list[dict], diverged: str | None
) -> Result:
    """Write result.json of a point, whole or not at all.

    wall_s of a stage that points share is that of its one run; of a resumed stage, that of its last session.
    """
    result = {
        "point": point.name,
        "seed": point.seed,
        "key": chain[-1].key,
        "rows": rows,  # of stages.search
        "diverged": diverged,
        "wall_s": round(sum(facts["wall_s"] for facts in done.values()), 1),
        "stages": {
            s.kind: {"folder": s.folder.name, **done.get(s.kind, {}), "parts": s.parts} for s in chain
        },
        "finished": datetime.datetime.now(datetime.UTC).isoformat(),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": versions(),
        "device": _device(),
    }
    write_json(chain[-1].folder / RESULT, result)
    return result


def _device() -> str:
    on_gpu = torch.cuda.is_available()
    return torch.cuda.get_device_name(0) if on_gpu else f"cpu, {torch.get_num_threads()} threads"


def _tidy(chain: list[Stage], wanted: set[Path], keep_weights: bool) -> None:
    """Remove what a finished point no longer needs: checkpoints, cached documents, and mostly its weights."""
    spent = [chain[-1].folder / "cache", chain[-1].folder / "model"]
    for stage in chain[:-1]:
        spent += stage.folder.rglob("checkpoint-*")
        if not (keep_weights or stage.folder in wanted):
            spent.append(stage.folder / "artifacts" / stages.MODEL)
    for path in spent:
        shutil.rmtree(path, ignore_errors=True)


def _words(result: Result) -> str:
    if result["diverged"]:
        return f"diverged ({result['diverged']})"
    means = mean_over_sets(result, "test")
    return f"nDCG@10 {means['ndcg_at_10']:.3f}, FLOPS {means['flops']:.2f}"


def mean_over_sets(result: Result, role: str) -> dict[str, float]:
    """Average a point's relevance and cost over the sets of a role ("dev" or "test")."""
    rows = [row for row in result["rows"] if row["role"] == role]
    return {name: sum(row[name] for row in rows) / len(rows) for name in ("ndcg_at_10", "flops", "d_nnz")}


def metrics(results: list[Result]) -> list[dict[str, Any]]:
    """Lay the results out as rows of metrics.json, one for each point and set."""
    facts = ("point", "seed", "key", "wall_s")
    return [{name: result[name] for name in facts} | row for result in results for row in result["rows"]]


def require_all(points: list[Point], results: list[Result]) -> None:
    """Refuse to end as done while points are missing, so that the runner does not skip the step next time.

    Raises:
        SweepIncomplete: names what is missing.
    """
    held = {(result["point"], result["seed"]) for result in results}
    if missing := [f"{p.name} (seed {p.seed})" for p in points if (p.name, p.seed) not in held]:
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise SweepIncomplete(
            f"{len(missing)} of {len(points)} points are missing: {shown}. The time of this call is spent; "
            "tables and figures show what there is, and the same command goes on with the rest"
        )
