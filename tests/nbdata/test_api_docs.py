"""The embedded set: how a docstring is cut, which files count, no leakage, the same bytes twice."""

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from nblib.data.api_docs import (
    build_api_docs,
    docstrings,
    installed_packages,
    locked_packages,
    normalised,
    package_files,
    read_pairs,
    split_docstring,
)
from nblib.data.formats import write_beir
from nblib.data.lines import DataError
from nblib.files import ROOT, sha256_paths

# One or two packages of each domain: seconds in place of a minute. werkzeug and click are training packages.
FEW = ["numpy", "networkx", "click", "werkzeug"]
REST = "Words that stand for a body of at least fifteen words, so that the pair is kept at all."


@pytest.fixture(scope="module")
def sets():
    return {s.name: s for s in build_api_docs(FEW)}


def test_source_is_read_without_import():
    source = f'''
"""Module about something useful."""
raise RuntimeError("would stop an import")
if True:
    class Public:
        """Class of public things."""
        def method(self):
            """Method of the class."""
            def inner():
                """Not part of the interface."""
        def _hidden(self):
            """Not public either."""
        def bare(self): pass
try:
    import nothing
except ImportError:
    async def fallback():
        """{REST}

        Indented more.
        """
'''
    assert dict(docstrings(source, "m")) == {
        "m": "Module about something useful.",
        "m.Public": "Class of public things.",
        "m.Public.method": "Method of the class.",
        "m.fallback": f"{REST}\n\nIndented more.",
    }


def test_cut():
    doc = f"Sort the\n  rows  by key.\n\nParameters\n----------\nkey : str\n    {REST}\n"
    pair = split_docstring("m.f", doc)
    assert pair.query == "Sort the rows by key."
    assert pair.text == f"Parameters\nkey : str\n{REST}"  # the underline says nothing


def test_cut_without_blank_line():
    assert split_docstring("m.f", f"Sort the rows by key.\n{REST}").text == REST
    assert split_docstring("m.f", f"A first line that goes\non in the next. {REST}") is None


@pytest.mark.parametrize(
    "doc",
    [
        f"Three words only\n\n{REST}",
        "A good summary of this.\n\nBut a short rest.",
        f"{'word ' * 65}\n\n{REST}",
        f"Args:\n    x: one two three four\n\n{REST}",
        f"input_ids (`torch.Tensor` of shape [B]): the tokens\n\n{REST}",
        f":param x: what it stands for\n\n{REST}",
        "",
    ],
)
def test_what_is_not_kept(doc):
    assert split_docstring("m.f", doc) is None


def test_markers_and_comments_in_the_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# made by uv\nclick==8.1  # via flask\ntriton==3 ; sys_platform == 'linux'\n-e .\n")
    assert locked_packages(lock) == [("click", "8.1", 2)]
    with pytest.raises(
        DataError, match=r"requirements.lock, line 2: click 8.1 is locked, installed is .*pip install -r"
    ):
        installed_packages(lock, True, None)
    problems = []
    assert installed_packages(lock, False, problems) == ["click"] and len(problems) == 1
    lock.write_text("no-such-package==1\n")
    assert installed_packages(lock, False, problems) == [] and "installed is none" in problems[1].reason
    lock.write_text("click==8.1\nopensearch-py==3.2.0\n")
    assert locked_packages(lock) == [("click", "8.1", 1)], "the set was measured on without it"


def test_tests_and_copies_of_other_packages_are_left_out():
    names = [name for package in ["numpy", "setuptools", "joblib"] for name, _ in package_files(package)]
    assert "numpy.lib._function_base_impl" in names  # private module, public functions
    assert not [n for n in names if {"tests", "_vendor", "externals", "conftest"} & set(n.split("."))]
    every = [f.as_posix() for f in metadata.files("numpy")]
    assert "numpy/lib/tests/test_function_base.py" in every


def test_domains(sets):
    assert {name: list(s.qrels) for name, s in sets.items()} == {
        "api-docs": ["train"],
        "api-docs-dev": ["dev"],
        "api-docs-test": ["test"],
    }
    assert {n.split(".")[0] for n in sets["api-docs-test"].corpus} == {"numpy"}
    assert {n.split(".")[0] for n in sets["api-docs"].corpus} == {"click", "werkzeug"}
    assert all(len(s.corpus) == len(s.queries) > 100 for s in sets.values())


def test_name_is_no_text(sets):
    doc = sets["api-docs-test"].corpus["numpy.lib._function_base_impl.gradient"]
    assert doc["title"] == "" and not doc["text"].startswith("numpy.lib")
    query = sets["api-docs-test"].queries["q:numpy.lib._function_base_impl.gradient"]
    assert query == "Return the gradient of an N-dimensional array."


def texts_of(s) -> list[str]:
    return [normalised(t) for t in [*s.queries.values(), *(d["text"] for d in s.corpus.values())]]


def test_no_text_stands_twice(sets):
    """Neither across the sets (leakage) nor inside one (two documents equally right)."""
    for s in sets.values():
        queries = [normalised(q) for q in s.queries.values()]
        assert len(set(queries)) == len(queries)
    test = set(texts_of(sets["api-docs-test"]))
    assert not test & set(texts_of(sets["api-docs"])) and not test & set(texts_of(sets["api-docs-dev"]))


def test_training_loses_what_the_test_set_says(monkeypatch, tmp_path):
    """The same package as test and as training domain: nothing may be left to train on."""
    monkeypatch.setattr("nblib.data.api_docs.TEST_PACKAGES", ("click",))
    monkeypatch.setattr("nblib.data.api_docs.DEV_PACKAGES", ("networkx",))
    pairs = read_pairs(["click", "networkx"])
    pairs["copy-of-click"] = [pair._replace(name=f"copy.{pair.name}") for pair in pairs["click"]]
    monkeypatch.setattr("nblib.data.api_docs.read_pairs", lambda packages: pairs)
    with pytest.raises(DataError, match="api-docs: no docstrings found in copy-of-click"):
        build_api_docs(["click", "networkx", "copy-of-click"])


def test_building_twice_gives_the_same_bytes(sets, tmp_path):
    problems = []
    for folder, built in (("a", sets.values()), ("b", build_api_docs(FEW[::-1], problems=problems))):
        for s in built:
            write_beir(tmp_path / folder / s.name, s)
    assert sha256_paths([tmp_path / "a"]) == sha256_paths([tmp_path / "b"])
    assert {p.kind for p in problems} == {"duplicate"}


ORPHANS = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from nblib.data.api_docs import start_worker
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_worker)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""


def test_a_killed_parent_leaves_no_workers():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # raises if it is not there
        parent.kill()
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_locked_package_is_installed_as_locked():
    packages = installed_packages(ROOT / "requirements.lock", True, None)
    assert {"numpy", "pandas", "matplotlib", "networkx", "narwhals", "torch"} <= set(packages)
    assert all(isinstance(path, Path) and path.exists() for _, path in package_files("networkx"))
