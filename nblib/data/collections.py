"""Evaluation collections by name: BEIR, NanoBEIR, MS MARCO, Korean sets; fetched once, then cached.

What is cached lies under NBLIB_DATA (by default ~/.cache/nblib, or nblib under XDG_CACHE_HOME): beir/<name>
is an unpacked BEIR folder, which may also be put there by hand; hub/<owner>/<name> is a snapshot of a data
set of the Hugging Face hub put there by hand, for machines without a network. Else hub sets wait in the hub's
own cache (HF_HOME). With HF_HUB_OFFLINE=1 only what is cached is read.
"""

import difflib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nblib.backbones import offline
from nblib.data.download import fetch, unpack_beir
from nblib.data.formats import BeirSet, read_beir, split_files
from nblib.data.hub_sets import Layout, judgements, read_hub_set
from nblib.data.lines import DataError, Problem
from nblib.files import at_root
from nblib.run.lock import locked

CATALOGUE = Path(__file__).with_name("collections.yaml")
Say = Callable[[str], None]


class NoSplit(DataError):
    """A set was found, but not the split that was asked for."""


@dataclass(frozen=True)
class Zip:
    """A BEIR zip: its mirrors, and what its bytes must be."""

    urls: tuple[str, ...]
    md5: str
    bytes: int


@dataclass(frozen=True)
class Collection:
    """One entry of the catalogue.

    split: the one that is measured. splits: all that may be asked for, None = all there are.
    documents: as published, 0 = not known. packed: its zip, tried before the places on the hub.
    """

    name: str
    split: str
    splits: tuple[str, ...] | None
    documents: int
    packed: Zip | None
    hub: tuple[Layout, ...]


@cache
def catalogue(file: Path = CATALOGUE) -> dict[str, Collection]:
    """Read the catalogue: name -> collection."""
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: _entry(name, row, table.get("mirrors", [])) for name, row in table["collections"].items()}


def _entry(name: str, row: dict[str, Any], mirrors: list[str]) -> Collection:
    split, others = row.get("split", "test"), row.get("splits")
    urls = tuple(mirror.format(name=name) for mirror in mirrors)
    packed = Zip(urls, row["zip"]["md5"], row["zip"]["bytes"]) if "zip" in row else None
    hub = tuple(Layout(**place) for place in row.get("hub", []))
    splits = None if others is None else (split, *others)
    return Collection(name, split, splits, row.get("documents", 0), packed, hub)


def data_home() -> Path:
    """Find the folder of cached collections, see the head of this module."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return at_root(os.environ.get("NBLIB_DATA") or f"{base}/nblib")


def open_collection(
    name: str, split: str | None = None, *, file: Path = CATALOGUE, say: Say = print
) -> BeirSet:
    """Read one split of a collection from the cache, or fetch it first.

    Published sets hold rows that cannot be used (empty texts, ids with white space, negative grades): they
    are left out, counted and named by `say`. Judgements of documents that the corpus lacks stay, as in BEIR's
    own evaluation.

    Args:
        name: of the catalogue, such as "scifact", "nanobeir:scifact", "miracl-ko".
        split: None takes the one that is measured. "test" gives that one too where a set has no test split
            (msmarco is measured on dev), which `say` is told; any other split must be there.
        file: the catalogue.
        say: takes notices, one line each.

    Returns:
        The set with this one split.

    Raises:
        DataError: unknown, no such split, or unreachable; the message names each place tried and the cure.
    """
    known = catalogue(file)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        said = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise DataError(f"no collection is called {name!r}; {said}")
    entry, problems = known[name], []
    beir = _read(entry, split or entry.split, problems, say)
    for line in notices(problems):
        say(f"{name}: {line}")
    left_out = sum(p.kind == "bad" and "corpus" in Path(p.file).name for p in problems)
    documents = len(beir.corpus) + left_out
    if entry.documents and documents != entry.documents:
        say(f"{name}: it has {documents:,} documents, not the {entry.documents:,} that are published")
    return beir


def _read(entry: Collection, split: str, problems: list[Problem], say: Say) -> BeirSet:
    """Read the first place that has the set."""
    reasons, places = [], [lambda place=place: _read_hub(entry, place, split, say) for place in entry.hub]
    if entry.packed:
        places.insert(0, lambda: read_folder(_folder(entry, say), split, entry.split, entry.splits, say))
    for read in places:
        try:
            beir, found = read()
        except NoSplit:
            raise
        except (DataError, OSError) as error:
            reasons.append(str(error))
        else:
            problems += found
            return beir
    raise DataError(f"collection {entry.name!r} cannot be read. {'; '.join(reasons)}. Cure: {_cure(entry)}")


def _cure(entry: Collection) -> str:
    by_hand = f"a BEIR folder, named in datasets or put at {data_home() / 'beir' / entry.name}"
    if not entry.packed:
        by_hand = f"a snapshot of {entry.hub[0].repo} at {data_home() / 'hub' / entry.hub[0].repo}"
    network = "unset HF_HUB_OFFLINE" if offline() else "try again later (a broken download goes on)"
    return f"{network}, or give {by_hand}"


def choose_split(name: str, asked: str, there: Iterable[str], measured: str, say: Say) -> str:
    """Choose the split to read: the one asked for, or for an absent "test" the one that is measured.

    Raises:
        NoSplit: neither is there; another split than "test" is never replaced, so that nothing is tuned on
            test data by mistake.
    """
    there = sorted(there)
    if asked in there:
        return asked
    if asked == "test" and measured in there:
        say(f"{name}: has no split 'test'; its split {measured!r} is measured")
        return measured
    raise NoSplit(f"set {name!r} has no split {asked!r}; it has: {', '.join(there) or 'none'}")


def read_folder(
    folder: Path, split: str, measured: str, splits: Iterable[str] | None = None, say: Say = print
) -> tuple[BeirSet, list[Problem]]:
    """Read one split of a BEIR folder; rows that cannot be used are left out.

    Args:
        folder: the set.
        split: asked for.
        measured: taken where "test" is asked for and absent.
        splits: those that may be asked for, None = all there are.
        say: takes a notice when another split is taken.

    Returns:
        The set, and what was left out.
    """
    problems: list[Problem] = []
    there = [name for name in split_files(folder) if splits is None or name in splits]
    chosen = choose_split(folder.name, split, there, measured, say)
    beir = read_beir(folder, strict=False, problems=problems, split=chosen, keep_absent=True)
    return beir, problems


def _folder(entry: Collection, say: Say) -> Path:
    """Find the cached folder of a BEIR set; fetch and unpack it if there is none. Raises DataError."""
    home = data_home() / "beir"
    folder = home / entry.name
    if folder.is_dir():
        return folder
    if offline():
        raise DataError(f"{folder} is not there and HF_HUB_OFFLINE is set")
    try:
        with locked(data_home() / "locks" / entry.name, wait=True):
            if not folder.is_dir():  # another process may have made it meanwhile
                _fetch(entry, folder, say)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}; free the disk or set NBLIB_DATA") from error
    return folder


def _fetch(entry: Collection, folder: Path, say: Say) -> None:
    packed, archive = entry.packed, folder.with_name(f"{entry.name}.zip")
    for old in folder.parent.glob(f".{entry.name}.*.tmp"):  # of a process that was killed while unpacking
        shutil.rmtree(old, ignore_errors=True)
    if not archive.is_file():  # else an earlier call had checked it, and could not unpack it
        url = fetch(packed.urls, archive, packed.md5, packed.bytes)
        say(f"{entry.name}: fetched {packed.bytes / 1e6:,.1f} MB from {url} into {folder}")
    unpack_beir(archive, folder)
    archive.unlink()


def _read_hub(entry: Collection, place: Layout, split: str, say: Say) -> tuple[BeirSet, list[Problem]]:
    """Read one split from a snapshot in the cache or from the hub."""
    where = replace(place, repo=_snapshot(place.repo), judged=_snapshot(place.judged))
    parts = judgements(where)
    there = [name for name in parts if entry.splits is None or name in entry.splits]
    chosen = choose_split(entry.name, split, there, entry.split, say)
    problems: list[Problem] = []
    only = {chosen: parts[chosen]}
    beir = read_hub_set(where, entry.name, only, strict=False, problems=problems, keep_absent=True)
    return beir, problems


def _snapshot(repo: str) -> str:
    folder = data_home() / "hub" / repo
    return str(folder) if repo and folder.is_dir() else repo


def notices(problems: Iterable[Problem]) -> list[str]:
    """Say in a line per file and kind what was left out of a set, with the first case."""
    said = {
        "bad": "rows that cannot be used, left out",
        "duplicate": "rows that repeat another, counted once",
        "absent": "judgements of documents that the corpus lacks, counted as not found, as in BEIR",
        "bom": "byte order mark",
    }
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.file, problem.kind), []).append(problem)
    return [
        f"{said[kind]}: {len(group):,} ({Path(file).name}, line {group[0].line}: {group[0].reason})"
        for (file, kind), group in groups.items()
    ]
