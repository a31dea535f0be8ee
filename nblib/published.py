"""Published figures of other systems on BEIR-13 and MIRACL-ko: shown beside our runs, never among them.

The figures and their sources stand in published.tsv; a FLOPS there is the model's average over BEIR-13.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("published.tsv")
# Documents and judged queries of the whole test set, by name: a set of another size is another set.
SIZES = {
    "trec-covid": (171_332, 50), "nfcorpus": (3_633, 323), "nq": (2_681_468, 3_452),
    "hotpotqa": (5_233_329, 7_405), "fiqa": (57_638, 648), "arguana": (8_674, 1_406),
    "webis-touche2020": (382_545, 49), "dbpedia-entity": (4_635_922, 400), "scidocs": (25_657, 1_000),
    "fever": (5_416_568, 6_666), "climate-fever": (5_416_593, 1_535), "scifact": (5_183, 300),
    "quora": (522_931, 10_000), "miracl-ko": (1_486_752, 213),
}  # fmt: skip
BEIR13 = tuple(name for name in SIZES if name != "miracl-ko")
MEAN = "mean of BEIR-13"
ROUGHLY = 0.01  # share of the documents that mirrors of one set may differ by


@cache
def published() -> tuple[dict[str, Any], ...]:
    """Read every published figure: dataset, system, ndcg_at_10, flops (None = not published), source."""
    with open(TABLE, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    return tuple(
        row | {"ndcg_at_10": float(row["ndcg_at_10"]), "flops": float(row["flops"]) if row["flops"] else None}
        for row in rows
    )


def published_for(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick the figures that may stand beside our own: those of the sets that were searched whole.

    Args:
        rows: metrics rows of our systems: dataset, n_docs, n_queries.

    Returns:
        Rows of `published` for each data set that has a published set's name and size (a sample of its
        queries, or another collection of the same name, is not comparable).
    """
    whole = {row["dataset"] for row in rows if is_whole(row)}
    return [row for row in published() if row["dataset"] in whole]


def is_whole(row: dict[str, Any]) -> bool:
    """Tell whether a metrics row is of a published set, with all its documents and queries."""
    n_docs, n_queries = SIZES.get(row["dataset"], (0, 0))
    return row["n_queries"] == n_queries and abs(row["n_docs"] - n_docs) <= ROUGHLY * n_docs


def beir13_mean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average nDCG@10 and FLOPS over BEIR-13 for each system that has all 13 sets; [] if none has.

    Args:
        rows: of `published`, or metrics rows.

    Returns:
        dataset (MEAN), system, ndcg_at_10, flops (None if one is missing).
    """
    held: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        held.setdefault(row["system"], {})[row["dataset"]] = row
    return [
        {"dataset": MEAN, "system": system, "ndcg_at_10": _mean(sets, "ndcg_at_10")}
        | {"flops": _mean(sets, "flops")}
        for system, sets in held.items()
        if set(BEIR13) <= sets.keys()
    ]


def _mean(sets: dict[str, dict[str, Any]], column: str) -> float | None:
    values = [sets[name][column] for name in BEIR13]
    return None if None in values else sum(values) / len(values)
