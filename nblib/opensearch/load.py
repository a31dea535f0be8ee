"""How long a cluster takes for a search, and how many it answers, asked by several clients at a time."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from opensearchpy import OpenSearch

from nblib.cost import THREADS
from nblib.opensearch.modes import Mode, ask

WARM = 20  # searches of each client before any is timed
ROUNDS = 5
BASE = "os-bm25"  # the mode that others are compared with


@dataclass(frozen=True)
class Load:
    """What `clients` clients saw, each sending one search after the other.

    p50_ms, p99_ms: from request to parsed answer. took_p50_ms, took_p99_ms: what the cluster says of itself,
    in whole milliseconds. queries_per_s: of all clients together.
    """

    mode: str
    clients: int
    searches: int
    p50_ms: float
    p99_ms: float
    took_p50_ms: float
    took_p99_ms: float
    queries_per_s: float


def measure(
    client: OpenSearch,
    modes: Sequence[Mode],
    queries: Sequence[str],
    tokens: Sequence[Mapping[str, float]],
    size: int,
    clients: int,
    searches: int,
    limit_s: float = 10.0,
) -> list[Load]:
    """Time all modes by turns, so that a busy moment of the machine falls on all of them.

    The searches of each mode are split into ROUNDS, mode after mode in each round; clients take queries one
    after the other, so that every number of clients asks the same ones.

    Args:
        client: see nblib.opensearch.client.connect.
        modes: ways to search.
        queries, tokens: Q texts and Q weighted queries, taken in turn.
        size: hits of each search.
        clients: at a time.
        searches: of each mode, by all clients together.
        limit_s: of each mode, so that a slow one is searched less often.

    Raises:
        TransportError, SearchError: a search failed.
    """
    bodies = {
        mode.name: [mode.request(text, weights, size) for text, weights in zip(queries, tokens, strict=True)]
        for mode in modes
    }
    share = max(1, searches // (clients * ROUNDS))
    seen: dict[str, list[tuple[float, float]]] = {mode.name: [] for mode in modes}
    spent = dict.fromkeys(seen, 0.0)
    with ThreadPoolExecutor(clients) as pool:
        for turn in range(ROUNDS):
            for mode in modes:
                asked = _Asked(client, mode, bodies[mode.name], limit_s / ROUNDS)
                list(pool.map(asked, range(-clients, 0), [WARM if turn == 0 else 2] * clients))
                begun = time.perf_counter()
                first = [(turn * clients + number) * share for number in range(clients)]
                for found in pool.map(asked, first, [share] * clients):
                    seen[mode.name] += found
                spent[mode.name] += time.perf_counter() - begun
    return [_summed_up(mode.name, clients, seen[mode.name], spent[mode.name]) for mode in modes]


@dataclass(frozen=True)
class _Asked:
    """One client: called with the number of its first query and how many it asks, one after the other, until
    limit_s is over. Gives the milliseconds of each, as seen here and as the cluster says."""

    client: OpenSearch
    mode: Mode
    bodies: list[dict]
    limit_s: float

    def __call__(self, first: int, searches: int) -> list[tuple[float, float]]:
        times, end = [], time.perf_counter() + self.limit_s
        for number in range(first, first + searches):
            begun = time.perf_counter()
            answer = ask(self.client, self.mode, self.bodies[number % len(self.bodies)])
            times.append((1000 * (time.perf_counter() - begun), float(answer["took"])))
            if time.perf_counter() > end:
                break
        return times


def _summed_up(name: str, clients: int, times: list[tuple[float, float]], seconds: float) -> Load:
    here, there = np.array(times).T
    marks = [*np.percentile(here, [50, 99]), *np.percentile(there, [50, 99])]
    return Load(name, clients, len(times), *map(float, marks), len(times) / seconds)


def relative(loads: Sequence[Load]) -> dict[tuple[str, int], float]:
    """Divide the p99 of each mode by that of BM25 at the same number of clients: (mode, clients) -> ratio."""
    base = {one.clients: one.p99_ms for one in loads if one.mode == BASE}
    return {(one.mode, one.clients): one.p99_ms / base[one.clients] for one in loads}


def into_rows(rows: list[dict[str, Any]], loads: Sequence[Load], dataset: str) -> None:
    """Put times of one client and rates of several into the metrics rows of the set that was timed."""
    by_name = {row["system"]: row for row in rows if row["dataset"] == dataset}
    for one in loads:
        row = by_name[one.mode]
        if one.clients == 1:
            row |= {"query_ms_p50": one.p50_ms, "query_ms_p99": one.p99_ms}
        if one.clients in THREADS:
            row[f"queries_per_s_{one.clients}"] = one.queries_per_s


def table(loads: Sequence[Load]) -> pd.DataFrame:
    """Lay loads out for reading, a line for each mode: p50, p99, and p99 over that of BM25 in brackets."""
    ratio, cells = relative(loads), {(one.mode, one.clients): one for one in loads}
    numbers = sorted({one.clients for one in loads})
    lines = []
    for mode in dict.fromkeys(one.mode for one in loads):
        line: dict[str, Any] = {f"way: p50 / p99 in ms (p99 over that of {BASE})": mode}
        for number in numbers:
            one = cells[mode, number]
            line[f"{number} at a time"] = f"{one.p50_ms:.2f} / {one.p99_ms:.2f} ({ratio[mode, number]:.2f})"
        line[f"searches/s, {numbers[-1]} at a time"] = f"{cells[mode, numbers[-1]].queries_per_s:,.0f}"
        counts = [cells[mode, number].searches for number in numbers]
        line["searches timed"] = " / ".join(f"{count:,}" for count in dict.fromkeys(counts))
        lines.append(line)
    return pd.DataFrame(lines)
