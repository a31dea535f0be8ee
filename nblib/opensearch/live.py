"""A data set in the cluster: its indexes, its queries, and the rows of metrics.json of each way to search it.

N documents, Q queries, V terms.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from opensearchpy import OpenSearch
from scipy.sparse import csr_matrix

from nblib.bags import query_matrix
from nblib.evaluate import metrics_row, score_run, write_trec
from nblib.experiment import EvalSet
from nblib.export.opensearch import token_strings
from nblib.model.prune import prune_reps
from nblib.opensearch.ingest import (
    WRITE_S,
    create_index,
    encoding_pipeline,
    index_documents,
    rows,
    seismic_index,
    sparse_index,
    vectors,
)
from nblib.opensearch.modes import Mode, Run, search
from nblib.opensearch.zips import ENCODER, TOKENIZER, Package, open_package
from nblib.search.exact import to_run
from nblib.search.inverted import top_k
from nblib.systems import System

PREFIX = "nblib-"  # of every index and pipeline that 07 makes
TWO_PHASE_PIPELINE, HYBRID_PIPELINE = PREFIX + "two-phase", PREFIX + "normalised"
FEWEST_POSTINGS = 1000  # kept of a list; OpenSearch's 0.0005 of the documents is meant for millions
ANALYZERS = {"english": "english", "korean": "cjk", "whitespace": "whitespace"}  # those that need no plugin


def exported_zips(folder: Path) -> tuple[Package, Package]:
    """Find and check the zips that 06 wrote: the document encoder and the query tokenizer.

    Raises:
        FileNotFoundError: there are none, or several of a kind.
        ValueError: see nblib.opensearch.zips.open_package.
    """
    packages = [open_package(file) for file in sorted(folder.glob("*.zip"))]
    found = []
    for function in (ENCODER, TOKENIZER):
        of_kind = [package for package in packages if package.config["function_name"] == function]
        if len(of_kind) != 1:
            names = ", ".join(package.file.name for package in of_kind) or "none"
            raise FileNotFoundError(
                f"{folder}: want one {function} zip, there are: {names}. Run 06_export, or set export_dir"
            )
        found += of_kind
    return found[0], found[1]


@dataclass
class LiveSet:
    """A data set whose documents are in the cluster, in the order of `data`.

    d_reps [N, V], q_reps [Q, V]: by this package. terms: V strings. seconds: step -> documents, and seconds
    that it took (encoding: when it was done). runs, per_query: of each mode that was searched.
    """

    data: EvalSet
    name: str
    d_reps: csr_matrix
    q_reps: csr_matrix
    terms: list[str]
    seconds: dict[str, tuple[int, float]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    per_query: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @cached_property
    def tokens(self) -> list[dict[str, float]]:
        """The weighted queries, as OpenSearch takes them."""
        return list(vectors(self.q_reps, self.terms))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id, by which the index of SEISMIC is keyed."""
        return {term: number for number, term in enumerate(self.terms)}


def encode_set(data: EvalSet, system: System, query_length: int, prune_ratio: float = 0.0) -> LiveSet:
    """Encode documents and queries here, or read what 05 has encoded; nothing is sent yet.

    Args:
        data: the set.
        system: of nblib.systems.learned_sparse, whose queries are bags of tokens.
        query_length: tokens kept of a query, as the tokenizer in the cluster does.
        prune_ratio: as in the zip.

    Raises:
        ValueError: tokens that OpenSearch would merge.
    """
    blocks, _, seconds = system.index(data.texts)
    d_reps = prune_reps(blocks.to_csr(), prune_ratio)
    core, special_ids = system.tokenizer.backend_tokenizer, system.tokenizer.all_special_ids
    terms = token_strings(core, special_ids, d_reps.shape[1])
    q_reps = query_matrix(data.queries, system.tokenizer, system.idf, query_length)
    return LiveSet(
        data, PREFIX + data.name.lower(), d_reps, q_reps, terms, {"encoded here": (len(data.texts), seconds)}
    )


def fill(client: OpenSearch, live: LiveSet, analyzer: str, threads: int = 2) -> None:
    """Write two indexes: text and vectors that were encoded here; the vectors keyed by ids, for SEISMIC."""
    data, n = live.data, len(live.data.doc_ids)
    create_index(client, live.name, sparse_index(ANALYZERS[analyzer]))
    documents = rows(data.doc_ids, data.texts, vectors(live.d_reps, live.terms))
    live.seconds["text and vectors sent"] = n, index_documents(client, live.name, documents, n, threads)
    keyed = vectors(live.d_reps, [str(number) for number in range(len(live.terms))])
    target = f"{live.name}-seismic"
    create_index(client, target, seismic_index(n_postings=max(FEWEST_POSTINGS, n // 2000)))
    documents = rows(data.doc_ids, None, keyed, allow_empty=False)
    live.seconds["vectors sent for SEISMIC"] = n, index_documents(client, target, documents, n, threads)
    for index in (live.name, target):
        client.indices.forcemerge(index=index, max_num_segments=1, request_timeout=WRITE_S)
        client.indices.refresh(index=index, request_timeout=WRITE_S)


def fill_there(client: OpenSearch, live: LiveSet, model_id: str, documents: int) -> str:
    """Let the cluster encode the first documents by an ingest pipeline; returns the name of their index."""
    data, target = live.data, f"{live.name}-encoded-there"
    n = min(documents, len(data.doc_ids))
    client.ingest.put_pipeline(id=target, body=encoding_pipeline(model_id))
    create_index(client, target, sparse_index(pipeline=target))
    first = rows(data.doc_ids[:n], data.texts[:n], None)
    live.seconds["encoded by the cluster"] = n, index_documents(client, target, first, n, chunk=20)
    return target


def stored_vectors(client: OpenSearch, index: str, doc_ids: list[str]) -> list[dict[str, float]]:
    """Read what an index holds of these documents, in their order."""
    answer = client.mget(index=index, body={"ids": doc_ids})
    return [doc["_source"].get("embedding", {}) for doc in answer["docs"]]


def evaluate_mode(
    client: OpenSearch,
    live: LiveSet,
    mode: Mode,
    size: int,
    ignore_identical_ids: bool,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Search a set in one way: a row of metrics.json; the run stays in the set, and in folder."""
    data = live.data
    run = search(client, mode, data.query_ids, data.queries, live.tokens, size)
    return _row(live, mode.name, run, size, ignore_identical_ids, folder, _index_bytes(client, mode.index))


def evaluate_here(
    live: LiveSet, size: int, ignore_identical_ids: bool, folder: Path | None = None
) -> dict[str, Any]:
    """Search the same vectors by this package's exact engine, by which the others are measured."""
    run = to_run(live.data.query_ids, live.data.doc_ids, *top_k(live.q_reps, live.d_reps, size))
    return _row(live, "in process", run, size, ignore_identical_ids, folder, None)


def _row(
    live: LiveSet, name: str, run: Run, size: int, ignore: bool, folder: Path | None, index_bytes: int | None
) -> dict[str, Any]:
    data = live.data
    live.runs[name] = run
    live.per_query[name] = score_run(data.qrels, run, ignore_identical_ids=ignore)
    if folder:
        tag = name.replace(" ", "-")
        write_trec(folder / f"{data.name}.{tag}.trec.gz", run, tag)
    cost = {"index_bytes": index_bytes} if index_bytes else {}
    rules = {"top_k": size, "ignore_identical_ids": ignore}
    return metrics_row(data.name, data.split, name, live.per_query[name], cost, len(data.doc_ids), **rules)


def _index_bytes(client: OpenSearch, index: str) -> int:
    return client.indices.stats(index=index)["_all"]["primaries"]["store"]["size_in_bytes"]


def clean_up(client: OpenSearch, lives: list[LiveSet]) -> None:
    """Remove the indexes and pipelines that 07 made."""
    for live in lives:
        for index in (live.name, f"{live.name}-seismic", f"{live.name}-encoded-there"):
            client.indices.delete(index=index, ignore=[404])
        client.ingest.delete_pipeline(id=f"{live.name}-encoded-there", ignore=[404])
    for pipeline in (TWO_PHASE_PIPELINE, HYBRID_PIPELINE):
        client.transport.perform_request("DELETE", f"/_search/pipeline/{pipeline}", params={"ignore": 404})
