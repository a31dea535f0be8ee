"""The data sets of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nblib.data.formats import document_text, read_beir
from nblib.evaluate import Qrels
from nblib.files import at_root


@dataclass(frozen=True)
class EvalSet:
    """One split of a BEIR set, in the order in which all systems see it."""

    name: str
    doc_ids: list[str]
    texts: list[str]  # title and text, as every system gets them
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels  # only the queries above


def load_eval_set(name: str, data_dir: str, split: str, max_queries: int = 0, seed: int = 13) -> EvalSet:
    """Read the judged queries of one split and the whole corpus.

    Args:
        name: a set that 01_data_prep built (a folder of <data_dir>/artifacts), or a path to a BEIR folder.
        data_dir: folder of 01_data_prep.
        split: file name in qrels/, without .tsv.
        max_queries: a random sample of so many queries; 0 takes all.
        seed: of the sample.

    Raises:
        FileNotFoundError: no such set; names the sets that are there.
        ValueError: the set lacks the split, or the split has no judged query.
    """
    beir = read_beir(_folder(name, data_dir))
    if split not in beir.qrels:
        raise ValueError(f"set {name!r} has no split {split!r}; it has: {', '.join(sorted(beir.qrels))}")
    query_ids = list(beir.qrels[split])
    if max_queries and max_queries < len(query_ids):
        chosen = np.random.default_rng(seed).choice(len(query_ids), max_queries, replace=False)
        query_ids = [query_ids[i] for i in sorted(chosen)]
    if not query_ids:
        raise ValueError(f"split {split!r} of set {name!r} has no judged query")
    return EvalSet(
        name=Path(name).name,
        doc_ids=list(beir.corpus),
        texts=[document_text(document) for document in beir.corpus.values()],
        query_ids=query_ids,
        queries=[beir.queries[qid] for qid in query_ids],
        qrels={qid: beir.qrels[split][qid] for qid in query_ids},
    )


def _folder(name: str, data_dir: str) -> Path:
    built = at_root(data_dir) / "artifacts"
    for folder in (built / name, at_root(name)):
        if folder.is_dir():
            return folder
    sets = sorted(p.name for p in built.iterdir() if (p / "qrels").is_dir()) if built.is_dir() else []
    cure = f"it holds {', '.join(sets)}" if sets else "it holds no set: run 01_data_prep first"
    raise FileNotFoundError(f"no data set {name!r}: neither a folder {at_root(name)} nor in {built} ({cure})")


def load_eval_sets(names: list[str], data_dir: str, split: str, max_queries: int, seed: int) -> list[EvalSet]:
    """Read several sets. Raises ValueError if two of them would write the same file names."""
    sets = [load_eval_set(name, data_dir, split, max_queries, seed) for name in names]
    short = [data.name for data in sets]
    if twice := sorted({n for n in short if short.count(n) > 1}):
        raise ValueError(f"two data sets are called {', '.join(twice)}: rename one of the folders")
    return sets
