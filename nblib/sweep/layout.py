"""What the points of a sweep are made of: stages with complete parameters, each in the folder of its key.

All of it lies in one folder beside the steps' own (outputs/<profile>/points), which the runner never clears:
another list of points, or another parameter of the notebook, finds there what is done. A folder's name holds
the hash of parameters, data, upstream and code, so what other settings made is never taken for it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nblib.experiment import load_eval_set
from nblib.files import ROOT, at_root, sha256_paths
from nblib.model.encoder import CONFIG
from nblib.run.keys import NOT_HASHED, cell_defaults, counted, data_hashes, imported_modules, key_of
from nblib.run.params import (
    BeirEvalParams,
    DataPath,
    FinetuneParams,
    NotebookParams,
    PretrainParams,
    marked,
)
from nblib.sweep import stages
from nblib.train.pipeline import built_set

# What the head's warm-up does not read: points that differ in these alone share one head for each seed.
AFTER_HEAD = {
    "dense_teacher",
    "dense_weight",
    "sparse_weight",
    "bm25_analyzer",
    "num_steps",
    "batch_size",
    "learning_rate",
    "learning_rate_head",
    "warmup_steps",
    "lambda_flops",
    "lambda_ramp_steps",
    "scale_constant_S",
    "infonce_weight",
    "lexical_weight",
    "lexical_stemmer",
    "temperature",
    "query_side",
    "kl_weight",
    "normalise_teachers",
}
STAGE = "stage.json"
STAGES, TRAINING = stages.__name__, "import nblib.train.launch, nblib.train.pipeline, nblib.train.sparse"
ALONE = {"systems": ["finetuned"], "variants": {}, "hybrids": {}}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: what differs from the base.

    given_idf: searched with 02's weights, whatever it was trained with.
    """

    name: str
    seed: int
    finetune: dict[str, Any]
    pretrain: dict[str, Any] = field(default_factory=dict)
    given_idf: bool = False


@dataclass(frozen=True)
class Stage:
    """A step of a point, with all that decides its result."""

    kind: str  # head, pretrain, finetune; or point: the search, whose folder keeps the result
    params: NotebookParams
    parts: dict[str, Any]  # see nblib.run.keys.key_parts
    key: str
    folder: Path
    start: Path  # folder of the stage whose model it starts from

    @property
    def trained(self) -> bool:
        """Whether the model is there and whole."""
        model = self.folder / "artifacts" / stages.MODEL / CONFIG
        return model.exists() and (self.folder / STAGE).exists()


@dataclass(frozen=True)
class Base:
    """What all points of a sweep share.

    Args:
        folder: where the points live.
        params: parameters of 08 or 13: data_dir, idf_dir, finetune, evaluation; pretrain, or else
            pretrain_dir, a finished 03 that all start from.
        sets: what is searched: role, set, split.
    """

    folder: Path
    params: NotebookParams
    sets: stages.Sets

    @cached_property
    def searching(self) -> dict[str, str]:
        """Hash the modules that a point runs: name -> sha256; those that only show results are not there."""
        return _hashes(imported_modules([f"import {STAGES}"]))

    @cached_property
    def training(self) -> dict[str, str]:
        """Hash those of them that its training runs, so that a change to the search repeats no training."""
        return _hashes(imported_modules([TRAINING])) | {STAGES: self.searching[STAGES]}

    @cached_property
    def searched(self) -> dict[str, str]:
        """Hash the sets."""
        return {f"{role} {data.name}/{split}": stages.digest(data) for role, data, split in self.sets}

    @cached_property
    def _known(self) -> dict[Path, str]:
        return {}

    def hash_of(self, path: Path) -> str:
        """Hash a file or folder, once: all points read the same ones."""
        if path not in self._known:
            self._known[path] = sha256_paths([path])
        return self._known[path]


def _hashes(modules: dict[str, Path]) -> dict[str, str]:
    kept = {n: path for n, path in modules.items() if not f"{n}.".startswith(f"{NOT_HASHED}.")}
    return {name: sha256_paths([path]) for name, path in kept.items()}


def open_base(params, dev_sets: list[str] | None = None, dev_split: str = "dev") -> Base:
    """Load what is searched: 05's data sets as "test", others as "dev".

    Args:
        params: of 08 or 13.
        dev_sets, dev_split: on what is chosen; None where nothing is.
    """
    chosen = evaluation(params)
    asked = [("test", chosen.datasets, chosen.split)] + ([("dev", dev_sets, dev_split)] if dev_sets else [])
    sample = (chosen.max_queries, chosen.seed)
    sets = [
        (role, load_eval_set(name, params.data_dir, split, *sample, chosen.sets_dir), split)
        for role, names, split in asked
        for name in names
    ]
    return Base(at_root(params.run_dir).parent / "points", params, sets)


def recipe(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    """Complete a recipe by the notebook's parameters cell."""
    return cell_defaults(ROOT / "notebooks" / f"{notebook}.ipynb") | given


def evaluation(params, **change: Any) -> BeirEvalParams:
    """Give 05's parameters for a sweep's models, with the sweep's folders and the changes."""
    own = {name: getattr(params, name) for name in ("data_dir", "idf_dir", "run_dir")}
    return BeirEvalParams(**recipe("05_beir_eval", params.evaluation) | ALONE | own | change)


def stages_of(point: Point, base: Base) -> list[Stage]:
    """Lay out what a point needs, in order; the last stage is the search."""
    own = {"data_dir": base.params.data_dir, "idf_dir": base.params.idf_dir, "run_dir": "-"}
    found: list[Stage] = []
    if "pretrain" in type(base.params).model_fields:
        values = recipe("03_pretrain", base.params.pretrain) | point.pretrain | own
        found.append(_stage("head", PretrainParams(**values), base))
        found.append(_stage("pretrain", PretrainParams(**values), base, found[-1]))
    start = found[-1].folder if found else at_root(base.params.pretrain_dir)
    values = recipe("04_finetune", base.params.finetune) | point.finetune | own | {"pretrain_dir": str(start)}
    found.append(_stage("finetune", FinetuneParams(**values), base, *found[-1:], start=start))
    folders = {"pretrain_dir": str(start), "model_dir": str(found[-1].folder), "run_dir": "-"}
    last = evaluation(base.params, **folders)
    return [*found, _stage("point", last, base, found[-1], more={"given_idf": point.given_idf})]


def _stage(
    kind: str,
    params: NotebookParams,
    base: Base,
    before: Stage | None = None,
    start: Path | None = None,
    more: dict[str, Any] | None = None,
) -> Stage:
    """Collect what decides a stage's result, and put it into the folder of that key.

    Args:
        kind: see Stage.
        params: complete but for run_dir.
        base: of the sweep.
        before: the stage whose model it starts from; None where there is none.
        start: folder of that model where no stage made it.
        more: further parameters of the search.
    """
    model, head = type(params), AFTER_HEAD if kind == "head" else set()
    values = params.model_dump() | dict.fromkeys(head & marked(model, DataPath).keys(), "")
    upstream = {before.kind: before.key} if before else {}
    if start and not before:
        upstream = {"03_pretrain": base.hash_of(start / "artifacts" / stages.MODEL)}
    parts = {
        "cells": "",  # no notebook's
        "modules": base.searching if kind == "point" else base.training,
        "params": {n: v for n, v in counted(model, values).items() if n not in head} | (more or {}),
        "upstream": upstream,
        "data": _data(kind, params, base) | data_hashes(model, values),
        "lock": base.hash_of(ROOT / "requirements.lock"),
    }
    key = key_of(parts)
    folder = base.folder / f"{kind}-{key[:16]}"
    placed = params.model_copy(update={"run_dir": str(folder)})
    return Stage(kind, placed, parts, key, folder, before.folder if before else start or folder)


def _data(kind: str, params: NotebookParams, base: Base) -> dict[str, str]:
    """Hash the sets that a stage reads, and idf.json."""
    idf = {} if kind == "head" else {"idf.json": base.hash_of(at_root(params.idf_dir) / "artifacts/idf.json")}
    if kind == "point":
        return base.searched | idf
    names = [params.dataset, *getattr(params, "more_datasets", []), getattr(params, "dev_set", "")]
    return {name: base.hash_of(built_set(params.data_dir, name)) for name in names if name} | idf
