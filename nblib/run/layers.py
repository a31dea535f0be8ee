"""Parameters of a step: parameters cell < YAML layer of each profile < -p, then the typed model."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nblib.files import ROOT, at_root
from nblib.run.keys import cell_defaults, marked
from nblib.run.params import BY_NOTEBOOK, From, NotebookParams, Recipe

PROFILE = "profile.yaml"  # in a profile's folder: what the profile runs
CHAIN = ("01", "06")  # what it runs without one: the first to the last notebook of the chain


class BadRequest(ValueError):
    """What the user asked for cannot be run; the message names the place and the cure."""


@dataclass(frozen=True)
class Project:
    """Where the notebooks, their layers and their typed models are."""

    notebooks: Path = ROOT / "notebooks"
    params: Path = ROOT / "params"
    models: dict[str, type[NotebookParams]] = field(default_factory=lambda: BY_NOTEBOOK)

    def names(self) -> list[str]:
        """List the notebooks in the order in which they run."""
        return sorted(path.stem for path in self.notebooks.glob("[0-9][0-9]_*.ipynb"))

    def chain(self, profiles: list[str]) -> list[str]:
        """List the notebooks that the profiles run; the rightmost that says so decides.

        Raises:
            BadRequest: a profile.yaml that does not list notebooks.
        """
        for profile in reversed(profiles):
            file = self.params / profile / PROFILE
            if file.exists():
                asked = read_layer(file).get("notebooks", (None, ""))[0]
                if not isinstance(asked, list) or not asked:
                    raise BadRequest(f"{relative(file)}: want the one line `notebooks: [01, ...]`")
                return sorted({pick(self.names(), str(name)) for name in asked})
        return [name for name in self.names() if CHAIN[0] <= name[:2] <= CHAIN[1]]

    def profiles(self) -> list[str]:
        """List the profiles."""
        return sorted(path.name for path in self.params.glob("*") if path.is_dir())


@dataclass(frozen=True)
class Step:
    """One notebook with its resolved parameters."""

    name: str
    notebook: Path
    model: type[NotebookParams]
    params: dict[str, Any]
    run_dir: Path
    upstream: dict[str, Path]  # parameter -> folder that it reads

    def inputs(self) -> dict[str, Path]:
        """Name the upstream folders: step name, or parameter=folder where the user named another folder."""
        steps = {name: mark.notebook for name, mark in marked(self.model, From).items()}
        own = self.run_dir.parent
        return {
            steps[n] if folder == own / steps[n] else f"{n}={relative(folder)}": folder
            for n, folder in self.upstream.items()
        }


def relative(path: Path) -> str:
    """Write a path from the repository root where it lies inside, so that records hold no machine's paths."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def hint(name: str, known: Iterable[str]) -> str:
    """Say "did you mean X?" when something known is near, else list what is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"


def pick(names: list[str], asked: str) -> str:
    """Find a notebook by its name or number. Raises BadRequest for an unknown one."""
    found = [name for name in names if asked in (name, name[:2], f"{name}.ipynb")]
    if not found:
        raise BadRequest(f"unknown notebook {asked}; {hint(asked, names)}")
    return found[0]


def read_layer(path: Path) -> dict[str, tuple[Any, str]]:
    """Read a flat YAML layer: key -> (value, "file, line N").

    Raises:
        BadRequest: broken YAML, not a flat mapping, or a key given twice (YAML would take the last).
    """
    where = relative(path)
    try:
        text = path.read_text(encoding="utf-8")
        tree, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{where}: not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadRequest(f"{where}: want lines of `key: value`, found: {values!r}")
    layer: dict[str, tuple[Any, str]] = {}
    for key_node, _ in tree.value:
        line = f"{where}, line {key_node.start_mark.line + 1}"
        if key_node.value in layer:
            raise BadRequest(f"{line}: {key_node.value} stands twice in this file; keep one")
        layer[key_node.value] = (values.get(key_node.value), line)
    return layer


def profile_layers(project: Project, profiles: list[str], name: str) -> dict[str, tuple[Any, str]]:
    """Merge the layers of the profiles for one notebook, left to right."""
    merged: dict[str, tuple[Any, str]] = {}
    for profile in profiles:
        path = project.params / profile / f"{name}.yaml"
        if path.exists():
            merged |= read_layer(path)
    return merged


def check_profiles(project: Project, profiles: list[str]) -> None:
    """Refuse an unknown profile, and a file in one that would never be read."""
    for profile in profiles:
        folder = project.params / profile
        if not profile or not folder.is_dir():
            raise BadRequest(f"unknown profile {profile}; {hint(profile, project.profiles())}")
        for file in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
            names = sorted({*project.names(), *project.models, Path(PROFILE).stem})
            if file.suffix != ".yaml" or file.stem not in names:
                raise BadRequest(
                    f"{relative(file)}: no notebook reads it; {hint(file.name, [f'{n}.yaml' for n in names])}"
                )


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split "04.num_steps=10" into ("04", "num_steps", 10); the value is YAML, so JSON lists work too."""
    name, equals, value = text.partition("=")
    notebook, _, key = name.strip().rpartition(".")
    if not equals or not key:
        raise BadRequest(f"-p {text}: want key=value, or NN.key=value for one notebook")
    try:
        return notebook, key, yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise BadRequest(f"-p {text}: not YAML: {error}") from None


def with_recipes(project: Project, selected: list[str]) -> list[str]:
    """Add the notebooks whose parameters a selected one holds as a recipe."""
    recipes = {m.notebook for name in selected for m in marked(project.models[name], Recipe).values()}
    return sorted({*selected, *recipes})


def assign_overrides(
    project: Project, selected: list[str], overrides: list[str]
) -> dict[str, dict[str, tuple[Any, str]]]:
    """Give each -p to the selected notebooks that have its key, and to those that a selected one holds as a
    recipe. A folder may be named without its `_dir`. Raises BadRequest if none has the key.
    """
    reached = with_recipes(project, selected)
    given: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in reached}
    for text in overrides:
        notebook, key, value = parse_override(text)
        scope = [pick(reached, notebook)] if notebook else reached
        takes = {name: _taken(project.models[name], name in selected) for name in scope}
        known = set().union(*takes.values())
        if key not in known and f"{key}_dir" in known:
            key += "_dir"  # `-p model=FOLDER` is clear enough
        takers = [name for name in scope if key in takes[name]]
        if not takers:
            keys = {key, f"{key}_dir"}
            elsewhere = [
                n for n, m in project.models.items() if keys & m.model_fields.keys() and n not in scope
            ]
            cure = f"only {', '.join(elsewhere)} has it" if elsewhere else hint(key, sorted(known))
            raise BadRequest(f"-p {text}: unknown parameter {key} of {', '.join(scope)}; {cure}")
        for name in takers:
            given[name][key] = (value, f"-p {text}")
    return given


def _taken(model: type[NotebookParams], selected: bool) -> set[str]:
    """Name the parameters that -p may give: of a recipe all but the folders, which the sweep sets."""
    return model.model_fields.keys() - (set() if selected else marked(model, From).keys())


def resolve(
    project: Project,
    profiles: list[str],
    name: str,
    given: dict,
    outputs: Path,
    of_recipes: dict[str, dict] | None = None,
) -> Step:
    """Merge the layers of one notebook and check them by its typed model.

    Args:
        project: notebooks, layers, models.
        profiles: left to right; the right one wins.
        name: the notebook, such as "04_finetune".
        given: key -> (value, where) from -p.
        outputs: outputs/<profile>, the folder that holds every step's run_dir.
        of_recipes: notebook that this one holds as a recipe -> key -> (value, where) from -p.

    Raises:
        BadRequest: one line per bad value, each with the place it came from.
    """
    if name not in project.models:
        raise BadRequest(f"{name} has no typed parameters: add its model to BY_NOTEBOOK in nblib/run/params")
    notebook, model = project.notebooks / f"{name}.ipynb", project.models[name]
    cell = f"{relative(notebook)}, parameters cell"
    layered = {key: (value, cell) for key, value in cell_defaults(notebook).items()}
    upstream = {key: outputs / mark.notebook for key, mark in marked(model, From).items()}
    layered |= {key: (relative(folder), "the runner") for key, folder in upstream.items()}
    chosen = profile_layers(project, profiles, name) | given
    if "run_dir" in chosen:
        raise BadRequest(f"{chosen['run_dir'][1]}: run_dir is set by the runner; use --outputs FOLDER")
    layered |= chosen | {"run_dir": (relative(outputs / name), "the runner")}
    for key, mark in marked(model, Recipe).items():
        value, where = layered.get(key, ({}, cell))
        if isinstance(value, dict):
            own = {k: (v, where) for k, v in value.items()} | (of_recipes or {}).get(mark.notebook, {})
            layered[key] = (_recipe(project, profiles, mark.notebook, own, outputs), where)
    try:
        params = model(**{key: value for key, (value, _) in layered.items()}).model_dump()
    except ValidationError as error:
        lines = dict.fromkeys(_complaint(e, layered, name, model) for e in error.errors())
        raise BadRequest("\n".join(lines)) from None
    upstream = {key: Path(os.path.normpath(at_root(params[key]))) for key in upstream if params[key]}
    return Step(name, notebook, model, params, outputs / name, upstream)


def _recipe(project: Project, profiles: list[str], name: str, given: dict, outputs: Path) -> dict[str, Any]:
    """Resolve another notebook's parameters as its own step would be, less the folders."""
    step = resolve(project, profiles, name, given, outputs)
    return {k: v for k, v in step.params.items() if k not in {"run_dir", *step.upstream}}


def _complaint(error: dict, layered: dict, name: str, model: type[NotebookParams]) -> str:
    reason = error["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    if not error["loc"]:  # no one value is wrong: they do not go together
        return f"{name}: {reason}"
    key, *inner = (str(part) for part in error["loc"])
    _, where = layered.get(key, (None, f"{name}, parameters cell"))
    if error["type"] == "extra_forbidden" and inner:
        return f"{where}: unknown option {inner[-1]} in {'.'.join([key, *inner[:-1]])}"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown parameter {key} of {name}; {hint(key, model.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: {'.'.join([key, *inner])} is missing; give it a value there"
    bad = error["input"]
    text = f"{where}: {'.'.join([key, *inner])} = {bad!r}: {reason}"
    number = (
        re.fullmatch(r"([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)[eE]([+-]?)(\d+)", bad)
        if isinstance(bad, str)
        else None
    )
    if number:
        mantissa = number[1] if "." in number[1] else number[1] + ".0"
        text += f"; YAML reads {bad} as text: write {mantissa}e{number[2] or '+'}{number[3]}"
    elif isinstance(bad, bool):
        text += "; YAML reads yes, no, on, off as true and false: put text in quotes"
    return text
