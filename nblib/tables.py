"""Tables of results, for a reader: text in cells, CSV, Markdown."""

from pathlib import Path
from typing import Any

import pandas as pd

from nblib.cost import THREADS
from nblib.files import write_text

RELEVANCE_HEADS = {
    "ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "map": "MAP", "recall_at_10": "R@10",
    "recall_at_100": "R@100", "recall_at_1000": "R@1000",
}  # fmt: skip


def relevance_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Lay the relevance of metrics rows out for reading, one line per data set and system.

    A comparison reads "+.031 [+.012, +.050] p<.001": mean difference of nDCG@10, 95 % interval, p after
    Holm's correction.
    """
    lines = []
    for row in rows:
        line = {"dataset": row["dataset"], "system": row["system"]}
        line |= {heading: dot3(row[name]) for name, heading in RELEVANCE_HEADS.items()}
        baselines = [key.removeprefix("diff_vs_") for key in row if key.startswith("diff_vs_")]
        lines.append(line | {f"against {name}": _comparison(row, name) for name in baselines})
    return pd.DataFrame(lines)


def cost_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Lay the cost of metrics rows out for reading; empty where a system has no such cost.

    What is measured several times stands in one cell, "0.21 / 0.35", so that the table fits a page.
    """
    threads = [f"queries_per_s_{n}" for n in THREADS]
    return pd.DataFrame(
        {
            "dataset": row["dataset"],
            "system": row["system"],
            "FLOPS": _number(row["flops"], 2),
            "terms/query": _number(row["q_nnz"], 1),
            "terms/document": _number(row["d_nnz"], 1),
            "L1": _number(row["l1"], 1),
            "index MB": _number(row["index_bytes"], 1, 1e6),
            "build s": _number(row["build_s"], 2),
            "documents/s": _number(row["encode_docs_per_s"], 0),
            "query ms (p50 / p99)": _numbers(row, ["query_ms_p50", "query_ms_p99"], 2),
            f"queries/s ({' / '.join(map(str, THREADS))} threads)": _numbers(row, threads, 0),
        }
        for row in rows
    )


def dot3(value: float) -> str:
    """Write .123, and 1.000."""
    return f"{value:.3f}".removeprefix("0")


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _numbers(row: dict[str, Any], names: list[str], digits: int) -> str:
    return " / ".join(filter(None, (_number(row[name], digits) for name in names)))


def _comparison(row: dict[str, Any], baseline: str) -> str:
    diff, low, high, p = (row[f"{name}_vs_{baseline}"] for name in ("diff", "ci_low", "ci_high", "p_holm"))
    if diff is None:
        return ""
    signed = [f"{v:+.3f}".replace("0.", ".", 1) for v in (diff, low, high) if v is not None]
    interval = f" [{signed[1]}, {signed[2]}]" if len(signed) == 3 else ""
    return f"{signed[0]}{interval} p{'<.001' if p < 0.001 else '=' + dot3(p)}"


def write_table(table: pd.DataFrame, stem: str | Path) -> None:
    """Write <stem>.csv and <stem>.md (a pipe table)."""
    write_text(f"{stem}.csv", table.to_csv(index=False))
    write_text(f"{stem}.md", pipe_table(list(table.columns), table.values.tolist()))


def pipe_table(head: list[str], lines: list[list[Any]]) -> str:
    """Write a Markdown table; a bar in a cell is escaped."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |\n" for row in rows)


def per_query_table(per_query: dict[tuple[str, str], dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Lay (dataset, system) -> query id -> metrics out, one line per query, for questions of one's own."""
    return pd.DataFrame(
        {"dataset": dataset, "system": system, "query_id": qid, **values}
        for (dataset, system), queries in per_query.items()
        for qid, values in queries.items()
    )
