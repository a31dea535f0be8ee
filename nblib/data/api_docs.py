"""The embedded retrieval set: docstrings of the installed packages, read from their source, nothing imported.

The query is the summary paragraph of a docstring, the document is the rest. The qualified name is only an
identifier: no system sees it as text.
"""

import ast
import gc
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

from nblib.data.formats import BeirSet
from nblib.data.lines import Checker, DataError, Problem
from nblib.files import ROOT
from nblib.run.progress import track

PARALLEL_FROM = 500  # files: below it, starting more than one process costs more than it saves
LABEL = "read docstrings"
REPEAT = "the query or the text of its docstring stands under another name already"

TEST_PACKAGES = ("pandas", "matplotlib", "numpy")  # matplotlib's distribution holds mpl_toolkits too
# Near the test domain in kind (tables, numeric structures) and small: training keeps scipy and scikit-learn.
DEV_PACKAGES = ("narwhals", "networkx")
# They joined the lock file after the set was measured on: read, they would make it another one.
NOT_READ = ("events", "execnet", "opensearch-protobufs", "opensearch-py", "pytest-xdist")
# Words: a shorter query names nothing to look for; a longer one is an essay whose lead was never split off.
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 4, 64
MIN_DOC_WORDS = 15  # a shorter rest is a bare ":return: None" or a signature
TEST_PARTS = {"test", "tests", "conftest"}
# Copies of other packages, with or without a leading underscore.
COPIED_PARTS = {"extern", "external", "externals", "vendor", "vendored", "third_party", "thirdparty"}
RULE = re.compile(r"\W+")  # the underline of a heading: no word in it
SENTENCE = re.compile(r".*[.!?:]\n")  # a first line that ends a sentence
FIELD_LIST = re.compile(
    r"[:@](param|type|return|rtype|raise|arg|key)|(args|arguments|parameters|returns|raises|\w+ \(.*\)) ?:",
    re.I,
)


class DocPair(NamedTuple):
    """One docstring, cut in two."""

    name: str
    query: str
    text: str


def locked_packages(lock: Path) -> list[tuple[str, str, int]]:
    """Read the (name, version, line) of each pin in a lock file that holds on every platform.

    NOT_READ is left out, and pins with an environment marker, so that Linux and macOS have the same set.
    """
    pins = []
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.split(" #")[0].strip())
        if match and match[1] not in NOT_READ:
            pins.append((match[1], match[2], number))
    return pins


def package_files(package: str) -> list[tuple[str, Path]]:
    """List (module name, path) of a distribution's public .py files, sorted by module name.

    Raises:
        importlib.metadata.PackageNotFoundError: not installed.
    """
    found = {}
    for file in metadata.distribution(package).files or []:
        parts = file.with_suffix("").parts
        if file.suffix != ".py" or parts[0] == ".." or not _is_public(parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Path(file.locate())
    return sorted(found.items())


def _is_public(parts: tuple[str, ...]) -> bool:
    """Say whether a file counts. Private modules do: NumPy and SciPy define their public functions there."""
    bare = {part.lstrip("_") for part in parts}
    return not bare & (TEST_PARTS | COPIED_PARTS) and not parts[-1].startswith("test_")


def docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, cleaned docstring) of a module and its public classes, functions and methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        tree = ast.parse(source)
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if doc := ast.get_docstring(node, clean=False):
            yield name, cleandoc(doc)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue  # what is defined inside a function is not part of the interface
        stack += [(f"{name}.{n.name}", n) for n in _definitions(node) if not n.name.startswith("_")]


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """Classes and functions of a body, also under if, try and with."""
    for child in getattr(node, "body", []) + getattr(node, "orelse", []) + getattr(node, "handlers", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _definitions(child)


def split_docstring(name: str, doc: str) -> DocPair | None:
    """Cut a cleaned docstring into summary paragraph and rest; without a blank line into first line and rest.

    Returns:
        None if either is too short or too long, or if the docstring starts with a list of parameters.
    """
    summary, _, rest = doc.strip().partition("\n\n")
    if not rest and SENTENCE.match(summary):
        summary, _, rest = summary.partition("\n")
    query = " ".join(_readable_lines(summary))
    text = "\n".join(_readable_lines(rest))
    if FIELD_LIST.match(query):
        return None
    if not MIN_QUERY_WORDS <= len(query.split()) <= MAX_QUERY_WORDS or len(text.split()) < MIN_DOC_WORDS:
        return None
    return DocPair(name, query, text)


def _readable_lines(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if not RULE.fullmatch(line) and line]


def file_pairs(job: tuple[str, Path]) -> list[DocPair]:
    """Read the pairs of one (module, path); a file that this Python cannot parse has none."""
    module, path = job
    try:
        found = docstrings(path.read_text(encoding="utf-8"), module)
        return [pair for name, doc in found if (pair := split_docstring(name, doc))]
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []


def start_worker() -> None:
    """Set up a process of the pool: no search for cycles (trees have none), and an end with its parent.

    Without the latter a parent that is killed leaves its workers waiting for ever.
    """
    gc.disable()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def read_pairs(packages: list[str]) -> dict[str, list[DocPair]]:
    """Read the pairs of installed packages on all cores (half a minute on two for the whole lock file).

    Returns:
        package -> its pairs, in the order of their names; a name that is defined twice counts once.
    """
    jobs = [(package, job) for package in packages for job in package_files(package)]
    files = [job for _, job in jobs]
    # spawn: a fork of a process in which torch or numpy started threads can hang
    workers = min(os.cpu_count() or 1, 8) if len(files) > PARALLEL_FROM else 1
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
            results = list(track(pool.map(file_pairs, files, chunksize=32), LABEL, len(files)))
    except (BrokenProcessPool, RuntimeError):  # called from a script that cannot be imported again
        results = list(track(map(file_pairs, files), LABEL, len(files)))
    found: dict[str, dict[str, DocPair]] = {package: {} for package in packages}
    for (package, _), pairs in zip(jobs, results, strict=True):
        for pair in pairs:
            found[package].setdefault(pair.name, pair)
    return {package: [pairs[name] for name in sorted(pairs)] for package, pairs in found.items()}


def build_api_docs(
    packages: list[str] | None = None, *, strict: bool = True, problems: list[Problem] | None = None
) -> list[BeirSet]:
    """Build "api-docs" (train), "api-docs-dev" (dev) and "api-docs-test" (test), each with its own corpus.

    A query or document text that stands in one set stands in no other and not twice in its own: the test set
    chooses first, then dev; inside a set the first name wins. Titles are empty, since the name is withheld.

    Args:
        packages: distributions to read; None reads all that requirements.lock pins on every platform.
        strict: raise if an installed version is not the locked one; else go on with what is there.
        problems: takes a Problem for each such package, and for each docstring that repeats another.

    Returns:
        The three sets. The same lock file gives the same sets on every machine.

    Raises:
        DataError: another version than the locked one (strict), or no pair at all in a set.
    """
    pairs = read_pairs(packages or installed_packages(ROOT / "requirements.lock", strict, problems))
    domains = {"api-docs-test": TEST_PACKAGES, "api-docs-dev": DEV_PACKAGES}
    held_out = {*TEST_PACKAGES, *DEV_PACKAGES}
    domains["api-docs"] = tuple(package for package in pairs if package not in held_out)
    seen: set[str] = set()
    sets = []
    for name, members in domains.items():
        candidates = sorted(pair for package in members for pair in pairs.get(package, []))
        kept = [pair for pair in candidates if not _is_repeat(pair, seen)]
        if problems is not None:
            repeats = sorted({pair.name for pair in candidates} - {pair.name for pair in kept})
            problems += [Problem(repeat, 0, REPEAT, "duplicate") for repeat in repeats]
        if not kept:
            raise DataError(f"{name}: no docstrings found in {', '.join(members)}; install requirements.lock")
        sets.append(_as_set(name, kept))
    return sets[::-1]


def installed_packages(lock: Path, strict: bool, problems: list[Problem] | None) -> list[str]:
    """List the packages of a lock file, checking that the installed version is the locked one."""
    check = Checker(lock, strict, problems)
    found = []
    for package, version, line in locked_packages(lock):
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != version:  # 2.13.0+cpu is 2.13.0
            cure = "run `pip install -r requirements.lock`"
            check.bad(line, f"{package} {version} is locked, installed is {installed}; {cure}")
        if installed != "none":
            found.append(package)
    return found


def _is_repeat(pair: DocPair, seen: set[str]) -> bool:
    """Say whether the name or a text (in any case and spacing) was seen before; if not, remember them."""
    texts = {"n:" + pair.name, "q:" + normalised(pair.query), "d:" + normalised(pair.text)}
    if texts & seen:
        return True
    seen |= texts
    return False


def normalised(text: str) -> str:
    """Reduce a text to its words in lower case, for comparison."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _as_set(name: str, pairs: list[DocPair]) -> BeirSet:
    split = {"api-docs": "train"}.get(name, name.rpartition("-")[2])
    corpus = {pair.name: {"title": "", "text": pair.text} for pair in pairs}
    queries = {f"q:{pair.name}": pair.query for pair in pairs}
    return BeirSet(name, corpus, queries, {split: {f"q:{pair.name}": {pair.name: 1} for pair in pairs}})
