"""The data sets and the result table of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nblib.data.formats import document_text, read_beir
from nblib.evaluate import Qrels
from nblib.files import at_root, write_text


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


def relevance_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Lay the relevance of metrics rows out for reading, one line per data set and system.

    A comparison reads "+.031 [+.012, +.050] p<.001": mean difference of nDCG@10, 95 % interval, p after
    Holm's correction.
    """
    lines = []
    for row in rows:
        line = {"dataset": row["dataset"], "system": row["system"]}
        line |= {"nDCG@10": _dot3(row["ndcg_at_10"]), "MRR@10": _dot3(row["mrr_at_10"])}
        line |= {f"R@{k}": _dot3(row[f"recall_at_{k}"]) for k in (10, 100, 1000)}
        baselines = [key.removeprefix("diff_vs_") for key in row if key.startswith("diff_vs_")]
        lines.append(line | {f"against {name}": _comparison(row, name) for name in baselines})
    return pd.DataFrame(lines)


def cost_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Lay the cost of metrics rows out for reading; empty where a system has no such cost."""
    return pd.DataFrame(
        {
            "dataset": row["dataset"],
            "system": row["system"],
            "FLOPS": _number(row["flops"], 2),
            "terms per query": _number(row["q_nnz"], 1),
            "terms per document": _number(row["d_nnz"], 1),
            "index MB": _number(row["index_bytes"], 1, 1e6),
            "documents/s": _number(row["encode_docs_per_s"], 0),
            "query ms, median": _number(row["query_ms_p50"], 1),
            "query ms, p99": _number(row["query_ms_p99"], 1),
        }
        for row in rows
    )


def _dot3(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _comparison(row: dict[str, Any], baseline: str) -> str:
    diff, low, high, p = (row[f"{name}_vs_{baseline}"] for name in ("diff", "ci_low", "ci_high", "p_holm"))
    if diff is None:
        return ""
    signed = [f"{v:+.3f}".replace("0.", ".", 1) for v in (diff, low, high) if v is not None]
    interval = f" [{signed[1]}, {signed[2]}]" if len(signed) == 3 else ""
    return f"{signed[0]}{interval} p{'<.001' if p < 0.001 else '=' + _dot3(p)}"


def write_table(table: pd.DataFrame, stem: str | Path) -> None:
    """Write <stem>.csv and <stem>.md (a pipe table)."""
    write_text(f"{stem}.csv", table.to_csv(index=False))
    cells = [list(table.columns), ["---"] * table.shape[1], *table.values.tolist()]
    lines = ("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells)
    write_text(f"{stem}.md", "\n".join(lines) + "\n")


def per_query_table(per_query: dict[tuple[str, str], dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Lay (dataset, system) -> query id -> metrics out, one line per query, for questions of one's own."""
    return pd.DataFrame(
        {"dataset": dataset, "system": system, "query_id": qid, **values}
        for (dataset, system), queries in per_query.items()
        for qid, values in queries.items()
    )
