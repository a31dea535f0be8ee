"""Rows of the speed table: ours against a peer, and against what the machine allows."""

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
