"""The form of every notebook, without a kernel; and every layer of params/ against the typed models."""

import ast
import importlib
import re
import subprocess
import sys

import nbformat
import pytest

from nblib.files import ROOT
from nblib.run.keys import cell_defaults, marked
from nblib.run.layers import Project, check_profiles, resolve
from nblib.run.params import BY_NOTEBOOK, From

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LAYERS = sorted((ROOT / "params").glob("*/[0-9][0-9]_*.yaml"))
MAX_CELLS, MAX_LINES, MAX_FUNCTIONS = 30, 15, 1
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_every_notebook_has_a_model_and_every_model_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == sorted(BY_NOTEBOOK)


@each
def test_first_and_last_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith(f"# {path.stem[:2]} · ")
    for part in ("**You will learn**", "**Reads**", "**Writes**", "**Time**"):
        assert part in cells[0].source
    assert not re.search(r"\bTIME\b|TODO|XXX", cells[0].source), "put in the measured time"
    assert cells[-1].source.startswith("## Next")
    assert len(cells) <= MAX_CELLS


@each
def test_parameters_come_second_and_are_checked_third(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [c for c in cells if "parameters" in c.metadata.get("tags", [])] == [cells[1]]
    model = BY_NOTEBOOK[path.stem].__name__
    assert f"P = {model}.from_cell(globals())" in cells[2].source


@each
def test_code_cells_are_short_and_plain(path):
    functions = 0
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= MAX_LINES or "parameters" in cell.metadata.get("tags", []), cell.source
        assert not [line for line in lines if line.lstrip().startswith(("%", "!"))], cell.source
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.ClassDef) for node in nodes), "a class belongs in nblib"
        functions += sum(isinstance(node, ast.FunctionDef) for node in nodes)
    assert functions <= MAX_FUNCTIONS


@each
def test_parameters_are_read_from_the_checked_model_only(path):
    names = set(cell_defaults(path))
    for cell in code_cells(path):
        used = {n.id for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)} & names
        assert not used or "parameters" in cell.metadata.get("tags", []), f"write P.{used}: {cell.source}"


@each
def test_every_import_from_nblib_exists(path):
    """A name that moved must be found here, not after five minutes of a run."""
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("nblib"):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name):
                        importlib.import_module(f"{node.module}.{name}")


@each
def test_no_machine_specific_path(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|root|work|tmp|mnt)/", text)


@each
def test_the_cell_and_the_model_agree(path):
    model, defaults = BY_NOTEBOOK[path.stem], cell_defaults(path)
    assert set(defaults) == set(model.model_fields)
    model(**defaults)  # raises on a default that the model refuses
    assert defaults["run_dir"] == f"outputs/lab/{path.stem}"
    for name, mark in marked(model, From).items():
        assert defaults[name] == f"outputs/lab/{mark.notebook}"
        assert mark.notebook in BY_NOTEBOOK and mark.notebook < path.stem


def test_stripped_of_outputs():
    extra = "metadata.papermill cell.metadata.papermill"
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", extra, *NOTEBOOKS]
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.returncode == 0, f"run: nbstripout notebooks/*.ipynb\n{got.stdout}"


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_layer_is_accepted(path, tmp_path):
    check_profiles(Project(), [path.parent.name])
    resolve(Project(), [path.parent.name], path.stem, {}, tmp_path)
