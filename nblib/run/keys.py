"""The key of a step: one hash of everything that decides its result, and words for what changed."""

import ast
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nbformat

from nblib.files import ROOT, at_root, sha256_paths
from nblib.run.params import BY_NOTEBOOK, DataPath, From, Neutral, NotebookParams, Recipe, marked

# They check, show and record, and decide nothing of a result: a new parameter of one notebook must not
# repeat the training of another.
NOT_HASHED = "nblib.run"


def read_cells(notebook: Path) -> tuple[str, list[str]]:
    """Read the source of the parameters cell, and those of the other code cells.

    Raises:
        ValueError: not exactly one cell is tagged `parameters`.
    """
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: {len(tagged)} cells are tagged 'parameters'; tag exactly one")
    return tagged[0], [c.source for c in cells if "parameters" not in c.metadata.get("tags", [])]


def cell_defaults(notebook: Path) -> dict[str, Any]:
    """Read the defaults of the parameters cell by its syntax tree; nothing is run.

    papermill's own reader works by regular expression and loses a line whose comment holds "=".

    Raises:
        ValueError: names the notebook and the line that is not `name = literal`.
    """
    source, _ = read_cells(notebook)
    defaults: dict[str, Any] = {}
    for node in ast.parse(source).body:
        where = f"{notebook}, parameters cell, line {node.lineno}"
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            raise ValueError(f"{where}: only `name = literal` may stand here, found: {ast.unparse(node)}")
        try:
            defaults[target.id] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise ValueError(
                f"{where}: the default of {target.id} must be a literal, found: {ast.unparse(node.value)}; "
                "a value derived here would not follow when papermill sets another one below"
            ) from None
    return defaults


def imported_modules(sources: list[str], package: Path = ROOT / "nblib") -> dict[str, Path]:
    """Find the modules of a package that some sources import, directly or through one another.

    Args:
        sources: Python texts, such as the code cells of a notebook.
        package: folder of the package; its name is the import name.

    Returns:
        dotted name -> file, sorted by name; the __init__ of each package on the way included.
    """
    found: dict[str, Path] = {}
    todo = [name for source in sources for name in _import_names(source, "", package.name)]
    while todo:
        name = todo.pop()
        for parent in ["", *_parents(name)]:
            full = parent or name
            file = _module_file(full, package)
            if file is None or full in found:
                continue
            found[full] = file
            inside = full if file.name == "__init__.py" else full.rpartition(".")[0]
            todo += _import_names(file.read_text(encoding="utf-8"), inside, package.name)
    return {name: found[name] for name in sorted(found)}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _module_file(name: str, package: Path) -> Path | None:
    stem = package.parent.joinpath(*name.split("."))
    files = [stem / "__init__.py", stem.with_name(stem.name + ".py")]
    return next((file for file in files if file.is_file()), None)


def _import_names(source: str, inside: str, root: str) -> list[str]:
    """List dotted names imported below `root`; `from a import b` gives a and a.b, as b may be a module."""
    names: list[str] = []
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == root]


def data_hashes(model: type[NotebookParams], params: dict[str, Any]) -> dict[str, str]:
    """Hash what lies at the DataPath parameters: "name=value" -> sha256 of each that exists.

    A file counts together with the corpus and the queries beside it, which rows of ids refer to. A recipe's
    paths count as "recipe.name=value".
    """
    hashes = {}
    for name, mark in marked(model, DataPath).items():
        values = [params[name]] if isinstance(params[name], str) else params[name]
        first = params.get(mark.within, "")
        for value in values:
            path = at_root(value.removeprefix("sparse:").removeprefix("cross:"))
            if first and (at_root(first) / value).exists():
                path = at_root(first) / value
            if value and path.exists():
                beside = [] if path.is_dir() else sorted(path.parent.glob("corpus.jsonl*"))
                beside += [] if path.is_dir() else sorted(path.parent.glob("queries.jsonl*"))
                hashes[f"{name}={value}"] = sha256_paths([path, *(p for p in beside if p != path)])
    for name, mark in marked(model, Recipe).items():
        inner = BY_NOTEBOOK[mark.notebook]
        held = dict.fromkeys(marked(inner, DataPath), "") | params[name]  # "" = not given, no path
        hashes |= {f"{name}.{key}": digest for key, digest in data_hashes(inner, held).items()}
    return hashes


def counted(model: type[NotebookParams], params: dict[str, Any]) -> dict[str, Any]:
    """Pick the parameters that decide a result: no folder, nothing Neutral; a recipe's as "recipe.name"."""
    skip = {"run_dir", *marked(model, From), *marked(model, Neutral), *marked(model, Recipe)}
    found = {name: value for name, value in params.items() if name not in skip}
    for name, mark in marked(model, Recipe).items():
        inner = counted(BY_NOTEBOOK[mark.notebook], params[name])
        found |= {f"{name}.{key}": value for key, value in inner.items()}
    return found


def key_parts(
    notebook: Path,
    model: type[NotebookParams],
    params: dict[str, Any],
    upstream: dict[str, str],
    package: Path = ROOT / "nblib",
    lock: Path = ROOT / "requirements.lock",
) -> dict[str, Any]:
    """Collect what decides the result of a step.

    Args:
        notebook: the .ipynb file.
        model: its typed model.
        params: its resolved parameters; run_dir and the upstream folders do not count, their content does;
            what is marked Neutral does not either.
        upstream: step name (or folder) -> key.
        package: folder of the library that notebooks import.
        lock: the pinned packages; the embedded data set is built from their docstrings.

    Returns:
        JSON-ready parts: cells, modules, params, upstream, data, lock, and environment (hashes) if it counts.
    """
    _, sources = read_cells(notebook)
    modules = imported_modules(sources, package)
    parts = {
        "cells": hashlib.sha256("\0".join(sources).encode()).hexdigest(),
        "modules": {
            n: sha256_paths([p]) for n, p in modules.items() if not f"{n}.".startswith(f"{NOT_HASHED}.")
        },
        "params": counted(model, params),
        "upstream": upstream,
        "data": data_hashes(model, params),
        "lock": sha256_paths([lock]) if lock.exists() else "",
    }
    if model.environment:
        parts["environment"] = {name: _digest(os.environ.get(name, "")) for name in model.environment}
    return parts


def _digest(value: str) -> str:
    """Hash a value that a manifest is not to hold."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def key_of(parts: dict[str, Any]) -> str:
    """Hash key_parts to 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def explain(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say which parts of two keys differ, such as "parameters changed: num_steps 450 -> 10"."""
    reasons = []
    modules = _changed(old, new, "modules")
    code = (["cells of the notebook"] if old.get("cells") != new["cells"] else []) + modules
    if code:
        reasons.append("code changed: " + ", ".join(code[:4]) + (" ..." if len(code) > 4 else ""))
    if params := _changed(old, new, "params"):
        a, b = old.get("params", {}), new["params"]
        shown = [f"{n} {_short(a.get(n, 'absent'))} -> {_short(b.get(n, 'absent'))}" for n in params]
        reasons.append("parameters changed: " + ", ".join(shown))
    if upstream := _changed(old, new, "upstream"):
        reasons.append("upstream changed: " + ", ".join(upstream))
    if data := _changed(old, new, "data"):
        reasons.append("data changed: " + ", ".join(data))
    if environment := _changed(old, new, "environment"):
        reasons.append("environment changed: " + ", ".join(environment))
    if old.get("lock") != new["lock"]:
        reasons.append("requirements.lock changed")
    return "; ".join(reasons) or "the key was made by another version of the runner"


def _changed(old: dict, new: dict, part: str) -> list[str]:
    a, b = old.get(part, {}), new.get(part, {})
    return [name for name in sorted({*a, *b}) if (name in a, a.get(name)) != (name in b, b.get(name))]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
