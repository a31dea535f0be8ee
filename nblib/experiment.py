"""The data sets of an evaluation."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nblib.data.collections import catalogue, notices, open_collection, read_folder
from nblib.data.formats import BeirSet, document_text
from nblib.data.lines import DataError
from nblib.data.texts import SpooledTexts
from nblib.evaluate import Qrels
from nblib.files import at_root


@dataclass(frozen=True)
class EvalSet:
    """One split of a BEIR set, in the order in which all systems see it."""

    name: str
    split: str
    doc_ids: list[str]
    texts: Sequence[str]  # title and text, as every system gets them
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels  # only the queries above; a judged document may be absent from the corpus


def load_eval_set(
    name: str, data_dir: str, split: str, max_queries: int = 0, seed: int = 13, sets_dir: str = ""
) -> EvalSet:
    """Read the judged queries of one split and the whole corpus.

    Rows that cannot be used, as published sets have them, are left out, counted and printed; so is the split
    that is taken where "test" is asked for and the set has none.

    Args:
        name: looked for as a set that 01_data_prep built (a folder of <data_dir>/artifacts), a folder of
            sets_dir, a path to a BEIR folder, the name of a collection (nblib/data/collections.yaml).
        data_dir: folder of 01_data_prep; "" = none.
        split: file name in qrels/, without .tsv.
        max_queries: a random sample of so many queries; 0 takes all.
        seed: of the sample.
        sets_dir: folder of BEIR folders; "" = none.

    Raises:
        FileNotFoundError: no such set; names what there is.
        DataError: the set lacks the split, has no judged query there, or is a collection out of reach.
    """
    beir, own = _read_set(name, data_dir, split, sets_dir)
    ((split, judged),) = beir.qrels.items()
    query_ids = list(judged)
    if max_queries and max_queries < len(query_ids):
        chosen = np.random.default_rng(seed).choice(len(query_ids), max_queries, replace=False)
        query_ids = [query_ids[i] for i in sorted(chosen)]
    if not query_ids:
        raise DataError(f"split {split!r} of set {name!r} has no judged query")
    doc_ids = list(beir.corpus)
    return EvalSet(
        name=own,
        split=split,
        doc_ids=doc_ids,
        texts=[document_text(beir.corpus.pop(i)) for i in doc_ids],  # millions of texts are not held twice
        query_ids=query_ids,
        queries=[beir.queries[qid] for qid in query_ids],
        qrels={qid: judged[qid] for qid in query_ids},
    )


def _read_set(name: str, data_dir: str, split: str, sets_dir: str) -> tuple[BeirSet, str]:
    """Read one split of a set, and make the name that its files get."""
    folder = set_folder(name, data_dir, sets_dir)
    if folder:
        own = Path(os.path.abspath(folder)).name
        entry = catalogue().get(own)  # a copy of a collection is measured as the collection is
        rules = (entry.split, entry.splits) if entry else (split, None)
        beir, problems = read_folder(folder, split, *rules)
        for line in notices(problems):
            print(f"{own}: {line}")
        return beir, own
    if name in catalogue():
        return open_collection(name, split), name.replace(":", "-")
    raise FileNotFoundError(_not_found(name, data_dir, sets_dir))


def set_folder(name: str, data_dir: str, sets_dir: str = "") -> Path | None:
    """Find the folder of a set, in the order of load_eval_set; None if there is none."""
    places = [at_root(data_dir) / "artifacts" / name] if data_dir else []
    places += [at_root(sets_dir) / name] if sets_dir else []
    return next((folder for folder in (*places, at_root(name)) if folder.is_dir()), None)


def _not_found(name: str, data_dir: str, sets_dir: str) -> str:
    built = at_root(data_dir) / "artifacts"
    places = {"it holds no set: run 01_data_prep first": built} if data_dir else {}
    places |= {"it holds no set": at_root(sets_dir)} if sets_dir else {}
    said = [f"no data set {name!r}: no folder {at_root(name)}"]
    for empty, place in places.items():
        sets = sorted(p.parent.name for p in place.glob("*/qrels"))
        said.append(f"none in {place} ({'it holds ' + ', '.join(sets) if sets else empty})")
    near = difflib.get_close_matches(name, catalogue(), n=1)
    return ", ".join(said) + f", and no collection{f'; did you mean {near[0]}?' if near else ' of this name'}"


def load_eval_sets(
    names: list[str],
    data_dir: str,
    split: str,
    max_queries: int,
    seed: int,
    sets_dir: str,
    spool: Path,
) -> tuple[list[EvalSet], dict[str, str]]:
    """Read several sets; what cannot be read stops none of the others. See load_eval_set.

    The texts of one set are in memory while it is read; then they lie in a file of the folder `spool`.

    Returns:
        sets: those that were read.
        missing: name of a set that was not -> why, and what to do about it.

    Raises:
        DataError: none could be read.
        ValueError: two of them would write the same file names.
    """
    sets, missing = [], {}
    for name in names:
        try:
            sets.append(_spooled(load_eval_set(name, data_dir, split, max_queries, seed, sets_dir), spool))
        except (DataError, OSError) as error:
            missing[name] = str(error)
            print(f"NOT READ {name}: {error}")
    if not sets:
        raise DataError(
            "no data set could be read.\n" + "\n".join(f"{n}: {why}" for n, why in missing.items())
        )
    short = [data.name for data in sets]
    if twice := sorted({n for n in short if short.count(n) > 1}):
        raise ValueError(f"two data sets are called {', '.join(twice)}: rename one of the folders")
    return sets, missing


def _spooled(data: EvalSet, spool: Path) -> EvalSet:
    return replace(data, texts=SpooledTexts(data.texts, spool))


def missing_text(missing: dict[str, str]) -> str:
    """Say in Markdown which sets were not evaluated, why, and how they can be; "" if all were."""
    if not missing:
        return ""
    lines = "\n".join(f"- **{name}**: {why}" for name, why in missing.items())
    return (
        f"**Not evaluated: {len(missing)} of the data sets.** Means leave them out.\n\n{lines}\n\n"
        "Then run 05 again with `--force`: what was evaluated counts as done."
    )
