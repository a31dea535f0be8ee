"""Where data comes from: the embedded set, a BEIR folder, a file of training rows or the Hugging Face hub."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nblib.data.api_docs import build_api_docs
from nblib.data.formats import BeirSet, read_beir, read_documents, read_queries
from nblib.data.lines import NO_DOWNLOAD, DataError, Problem, with_gz
from nblib.data.rows import Row, read_rows
from nblib.files import at_root

EMBEDDED = "api-docs"
BUCKETS = 10  # of the hash of a query: 0 is test, 1 is dev, the others are train
ROW_FILES = (".jsonl", ".jsonl.gz", ".json", ".ndjson", ".ndjson.gz")


@dataclass
class Source:
    """What was read.

    sets: the retrieval sets; at most one has a "train" split. problems: rows that were left out, and why.
    given: training query id -> document id -> score, or None for a negative without a score.
    """

    sets: list[BeirSet]
    problems: list[Problem] = field(default_factory=list)
    given: dict[str, dict[str, float | None]] = field(default_factory=dict)


def load(source: str, dataset: str, hf_split: str = "train", *, strict: bool = True) -> Source:
    """Read a source into sets with splits.

    Args:
        source: "api-docs"; a BEIR folder; a file of training rows (any of the five forms, .gz too; rows of
            ids need corpus.jsonl and queries.jsonl beside the file); or the id of a Hugging Face data set,
            "owner/name" or "owner/name:config".
        dataset: name of the set that a folder, file or hub id becomes ("api-docs" brings its own names).
        hf_split: split to read from the hub.
        strict: raise at the first bad row; else leave it out and list it in Source.problems.

    Returns:
        The sets. Rows are split 80/10/10 into train, dev and test by the hash of the query, so that a query
        never changes sides. A folder with train and no dev gives a tenth of its train queries to dev; one
        without train is for evaluation only.

    Raises:
        DataError: nothing there, offline, or a bad row (strict); the message names the cure.
    """
    problems: list[Problem] = []
    path = at_root(source)
    if source == EMBEDDED:
        return Source(build_api_docs(strict=strict, problems=problems), problems)
    if _is_beir(path):
        beir_set = read_beir(path, strict=strict, problems=problems)
        beir_set.name = dataset
        return Source([with_dev(beir_set)], problems)
    if path.is_file():
        rows = read_rows(path, strict=strict, problems=problems)
        return from_rows(dataset, rows, path, strict=strict, problems=problems)
    if not path.is_dir() and (source.startswith((".", "/", "~")) or source.endswith(ROW_FILES)):
        raise DataError(f"source {source}: no such file or folder ({path}); correct the path. {NO_DOWNLOAD}")
    from nblib.data.hub import load_hub  # datasets takes seconds to import

    return load_hub(str(path) if path.is_dir() else source, dataset, hf_split, strict, problems)


def without_shared_queries(sets: list[BeirSet], problems: list[Problem]) -> list[BeirSet]:
    """Leave a query text that stands in two splits to the one that is measured: test before dev before train.

    Args:
        sets: of one source; their splits are not changed.
        problems: takes a Problem of kind "duplicate" for each query left out.

    Returns:
        The sets; a split that loses all its queries is gone.
    """
    seen: set[str] = set()
    kept: list[dict] = [{} for _ in sets]
    rank = {"train": 0, "dev": 1}  # any other split is measured
    splits = {split for s in sets for split in s.qrels}
    for split in sorted(splits, key=lambda name: rank.get(name, 2), reverse=True):
        texts: set[str] = set()
        for beir_set, qrels in zip(sets, kept, strict=True):
            judged = beir_set.qrels.get(split, {})
            shared = [q for q in judged if beir_set.queries[q] in seen]
            reason = f"the query of the {split} split stands in a split that is measured as well"
            problems += [Problem(f"{beir_set.name}, query {q}", 0, reason, "duplicate") for q in shared]
            if left := {q: docs for q, docs in judged.items() if q not in set(shared)}:
                qrels[split] = left
            texts |= {beir_set.queries[q] for q in left}
        seen |= texts
    pairs = zip(sets, kept, strict=True)
    return [BeirSet(s.name, s.corpus, s.queries, {k: q[k] for k in s.qrels if k in q}) for s, q in pairs]


def _is_beir(path: Path) -> bool:
    return any((path / f"corpus.jsonl{end}").is_file() for end in ("", ".gz"))


def with_dev(beir_set: BeirSet) -> BeirSet:
    """Give a tenth of the train queries (by hash) to dev where a set has train and no dev."""
    if "train" in beir_set.qrels and "dev" not in beir_set.qrels:
        train = beir_set.qrels["train"]
        dev = {q: docs for q, docs in train.items() if bucket(beir_set.queries[q]) == 1}
        beir_set.qrels["train"] = {q: docs for q, docs in train.items() if q not in dev}
        if dev:  # a handful of queries may leave none
            beir_set.qrels["dev"] = dev
    return beir_set


def from_rows(
    name: str,
    rows: Iterable[Row],
    file: str | Path,
    *,
    strict: bool = True,
    problems: list[Problem] | None = None,
) -> Source:
    """Make a set out of training rows: equal texts become one document or query, positives become qrels.

    Args:
        name: of the set.
        rows: as read_rows yields them; rows of the same query are joined.
        file: where the rows come from; rows of ids are looked up in the corpus beside it.
        strict, problems: as in load, for rows of ids that are not in that corpus.

    Returns:
        One set with train, dev and test; negatives and scores of the rows in Source.given.

    Raises:
        DataError: no usable row, or ids without a corpus.
    """
    problems = [] if problems is None else problems
    made = _Gatherer(Path(file), strict, problems)
    for row in rows:
        made.add(row)
    if not made.positives:
        raise DataError(f"{file}: no usable row; see the five forms in nblib/data/rows.py")
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for query_id, docs in made.positives.items():
        split = {0: "test", 1: "dev"}.get(bucket(made.queries[query_id]), "train")
        qrels[split][query_id] = dict.fromkeys(docs, 1)
    qrels = {split: found for split, found in qrels.items() if found}
    given = {
        q: {d: score for d, score in docs.items() if score is not None or d not in made.positives[q]}
        for q, docs in made.given.items()
    }
    return Source([BeirSet(name, made.corpus, made.queries, qrels)], problems, given)


class _Gatherer:
    """Collects rows into a corpus, queries and judgements."""

    def __init__(self, file: Path, strict: bool, problems: list[Problem]):
        self.file, self.strict, self.problems = file, strict, problems
        self.corpus: dict[str, dict[str, str]] = {}
        self.queries: dict[str, str] = {}
        self.positives: dict[str, dict[str, None]] = {}  # query -> documents in order
        self.given: dict[str, dict[str, float | None]] = {}
        self.known: tuple[Mapping, Mapping] | None = None  # corpus and queries beside the file

    def add(self, row: Row) -> None:
        """Take one checked row in; texts without an id get one from their content."""
        if row.query_id:
            if not self._look_up(row):
                return
            query_id, ids = row.query_id, row.positives + row.negatives
        else:
            query_id = text_id(row.query)
            self.queries[query_id] = row.query
            ids = [text_id(text) for text in row.positives + row.negatives]
            texts = zip(ids, row.positives + row.negatives, strict=True)
            self.corpus |= {i: {"title": "", "text": text} for i, text in texts if i not in self.corpus}
        positives = ids[: len(row.positives)]
        self.positives.setdefault(query_id, {}).update(dict.fromkeys(positives))
        scores = row.scores or [None] * len(ids)
        listed = ids if row.scores else ids[len(positives) :]
        if listed:
            pairs = zip(listed, scores[-len(listed) :], strict=True)
            self.given.setdefault(query_id, {}).update(pairs)

    def _look_up(self, row: Row) -> bool:
        """Take the query of a row of ids from the files beside it; False if an id is unknown."""
        if self.known is None:
            try:
                files = [with_gz(self.file.parent / f"{name}.jsonl") for name in ("corpus", "queries")]
            except FileNotFoundError as error:
                raise DataError(
                    f"{self.file}, line {row.line}: a kd-ids row needs its corpus beside it: {error}"
                ) from error
            corpus = read_documents(files[0], strict=self.strict, problems=self.problems)
            queries = read_queries(files[1], strict=self.strict, problems=self.problems)
            self.known = corpus, queries
            self.corpus |= corpus
        corpus, queries = self.known
        unknown = [d for d in row.positives + row.negatives if d not in corpus]
        if unknown or row.query_id not in queries:
            what = f'document id "{unknown[0]}"' if unknown else f'query id "{row.query_id}"'
            reason = f"unknown {what}; add it to the corpus or queries, or leave the row out"
            problem = Problem(str(self.file), row.line, reason)
            if self.strict:
                raise DataError(str(problem))
            self.problems.append(problem)
            return False
        self.queries[row.query_id] = queries[row.query_id]
        return True


def text_id(text: str) -> str:
    """Name a text by its content: 16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bucket(query: str) -> int:
    """Draw 0 to 9 from the hash of a query, whatever its case and spacing: the same on every machine."""
    return int(text_id(" ".join(query.lower().split())), 16) % BUCKETS


def sample_queries(beir_set: BeirSet, most: Mapping[str, int], seed: int) -> BeirSet:
    """Keep at most so many queries of each split; the corpus keeps all documents.

    Args:
        beir_set: is not changed.
        most: split -> number of queries, 0 = all; a split that is not named keeps all.
        seed: of the order in which queries are kept; a larger number keeps those of a smaller one too.

    Returns:
        A set with the kept judgements in their order, and only the queries that they name.
    """
    qrels = {}
    for split, judged in beir_set.qrels.items():
        order = sorted(judged, key=lambda q: text_id(f"{seed}:{q}"))
        kept = set(order[: most.get(split, 0) or None])
        qrels[split] = {q: docs for q, docs in judged.items() if q in kept}
    named = {q for judged in qrels.values() for q in judged}
    queries = {q: text for q, text in beir_set.queries.items() if q in named}
    return BeirSet(beir_set.name, beir_set.corpus, queries, qrels)


def sample_documents(beir_set: BeirSet, most: int, seed: int) -> BeirSet:
    """Shrink the corpus of a set, for a quick look: fewer documents make search easier and scores higher.

    Args:
        beir_set: is not changed; one that also trains keeps its corpus, where its negatives live.
        most: documents kept, 0 = all; a judged document always stays, even above this number.
        seed: of the choice; a larger number keeps those of a smaller one too.

    Returns:
        A set with the kept documents in their order.
    """
    if not most or len(beir_set.corpus) <= most or "train" in beir_set.qrels:
        return beir_set
    judged = {d for split in beir_set.qrels.values() for docs in split.values() for d in docs}
    others = sorted(beir_set.corpus.keys() - judged, key=lambda d: text_id(f"{seed}:{d}"))
    kept = judged | set(others[: max(0, most - len(judged))])
    corpus = {d: doc for d, doc in beir_set.corpus.items() if d in kept}
    return BeirSet(beir_set.name, corpus, beir_set.queries, beir_set.qrels)
