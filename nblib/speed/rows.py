"""Rows of the speed table: ours against a peer, and against what the machine allows."""

import re
from typing import Any


def row(
    name: str,
    regime: str,
    dtype: str,
    ours: float | None,
    peer: float | None,
    peer_name: str,
    unit: str,
    *,
    less_is_better: bool,
    limit: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Build a row of the speed table: ratio > 1 means ours is better, limit is what the machine allows.

    share: how near ours is to the limit, 1 at it. Ratio and share are None where a side gave nothing: it
    failed, or its memory drowned in that of the backbone.
    """

    def times_better(value: float | None, other: float | None) -> float | None:
        return None if not value or not other else other / value if less_is_better else value / other

    facts = {"row": name, "regime": regime, "dtype": dtype, "ours": ours, "peer": peer}
    facts |= {"peer_name": peer_name, "unit": unit, "ratio": times_better(ours, peer)}
    return facts | {"limit": limit, "share": times_better(ours, limit), **more}


def strongest(
    rows: list[dict[str, Any]],
) -> dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any] | None]]:
    """Find the strongest peer of each (row, regime, dtype): as shipped, and with something of ours if it was.

    The peers that were given something of ours say so in their names (", our ...").
    """
    found: dict[tuple[str, str, str], list[dict[str, Any] | None]] = {}
    for line in rows:
        best = found.setdefault((line["row"], line["regime"], line["dtype"]), [None, None])
        kind = int(", our " in line["peer_name"])
        if best[kind] is None or (line["ratio"] or 0) < (best[kind]["ratio"] or 0):
            best[kind] = line
    return {key: tuple(best) for key, best in found.items()}


def search_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Lay the search rows out for a page, one line for each collection at its smallest k: (head, lines).

    Ratios above 1 mean that ours is faster; a query at a time, on one thread.
    """
    cases: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for line in rows:
        if line["row"].startswith("search_") and line["peer"]:
            name, k, how = re.fullmatch(r"(.*), k=(\d+)(?:, (.*))?", line["regime"]).groups()
            cases.setdefault(name, {}).setdefault((line["row"], how or ""), line | {"k": int(k)})
    head = ["documents", "k", "ours, ms", "bm25s, ms", "ratio"]
    head += ["ours in two phases, ms", "ratio to bm25s", "recall@10 in two phases"]
    head += ["ratio to sentence-transformers", "to scipy", "to Seismic", "recall@10 of Seismic"]
    lines = []
    for name, found in cases.items():
        exact, two = found["search_bm25s", ""], found["search_bm25s", "two-phase"]
        cells = [name, str(exact["k"]), *(f"{exact[side]:.3g}" for side in ("ours", "peer"))]
        cells += [f"{exact['ratio']:.2f}", f"{two['ours']:.3g}", f"{two['ratio']:.2f}"]
        cells.append(f"{two['ours_recall_at_10']:.3f}")
        for peer in ("sentence_transformers", "scipy", "seismic"):
            line = found.get((f"search_{peer}", ""))
            cells.append(f"{line['ratio']:,.{0 if line['ratio'] >= 100 else 2}f}" if line else "")
        recall = found.get(("search_seismic", ""), {}).get("peer_recall_at_10")
        lines.append([*cells, "" if recall is None else f"{recall:.3f}"])
    return head, lines


def large_sentence(line: dict[str, Any]) -> str:
    """Say in words what the large index needs, and what MS MARCO's passages would."""
    peak, tenth = line["build_peak_gib"], line["build_peak_gib_tenth"]
    built = f"built in {line['build_seconds']:.0f} s, peak {peak:.2f} GiB ({tenth:.2f} with a tenth of them)"
    asked = f"{line['ms']:.2f} ms a query, {line['ms_two_phase']:.2f} in two phases"
    minutes, gib, ms = (line[f"ms_marco_{name}"] for name in ("build_minutes", "gib", "ms"))
    much = f"built in {minutes:.1f} minutes, {gib:.1f} GiB on disk, {ms:.1f} ms a query"
    return f"{line['regime']}: {built}, {asked}. Projected to 8.84 million passages: {much}."
