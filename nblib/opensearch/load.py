"""How long a cluster takes for a search, and how many it answers, asked by several clients at a time."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import numpy as np
from opensearchpy import OpenSearch

from nblib.opensearch.modes import Mode, ask

WARM = 20  # searches of each client before any is timed
ROUNDS = 5


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
) -> list[Load]:
    """Time all modes by turns, so that a busy moment of the machine falls on all of them.

    The searches of each mode are split into ROUNDS, mode after mode in each round.

    Args:
        client: see nblib.opensearch.client.connect.
        modes: ways to search.
        queries, tokens: Q texts and Q weighted queries, taken in turn.
        size: hits of each search.
        clients: at a time.
        searches: of each mode, by all clients together.
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
                start = Barrier(clients + 1)
                warm = WARM if turn == 0 else 2
                jobs = [
                    pool.submit(_one_client, client, mode, bodies[mode.name], number, share, warm, start)
                    for number in range(clients)
                ]
                start.wait()
                begun = time.perf_counter()
                for job in jobs:
                    seen[mode.name] += job.result()
                spent[mode.name] += time.perf_counter() - begun
    return [_summed_up(mode.name, clients, seen[mode.name], spent[mode.name]) for mode in modes]


def _one_client(
    client: OpenSearch, mode: Mode, bodies: list[dict], number: int, share: int, warm: int, start: Barrier
) -> list[tuple[float, float]]:
    """Send searches one after the other: milliseconds as seen here, and as the cluster says."""
    first = number * len(bodies) // 7  # clients do not ask the same at the same time
    for turn in range(warm):
        ask(client, mode, bodies[(first + turn) % len(bodies)])
    start.wait()
    times = []
    for turn in range(share):
        body = bodies[(first + turn) % len(bodies)]
        begun = time.perf_counter()
        answer = ask(client, mode, body)
        times.append((1000 * (time.perf_counter() - begun), float(answer["took"])))
    return times


def _summed_up(name: str, clients: int, times: list[tuple[float, float]], seconds: float) -> Load:
    here, there = np.array(times).T
    marks = [*np.percentile(here, [50, 99]), *np.percentile(there, [50, 99])]
    return Load(name, clients, len(times), *map(float, marks), len(times) / seconds)
