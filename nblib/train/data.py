"""Training rows: which queries meet which documents, of one built set or of several together.

Letters: N rows, Q queries and D documents of a set, K negatives per query, R lines of train_rows.jsonl,
T documents that they name, one line after the other.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from nblib.data.difficulty import CLASSES, classify_difficulty
from nblib.data.lines import DataError
from nblib.data.texts import JoinedTexts, JsonlTexts
from nblib.teachers.given import GivenScores
from nblib.train.built import BuiltSet, open_folder, read_kd_ids
from nblib.train.rows import Lists, Rows, Sets


@dataclass(eq=False)
class TrainingSet(Dataset):
    """Queries, documents and rows of one built set or several; an item is a row of positions in both.

    queries, documents: texts, a list or a sequence that reads them from a file. rows: (query, positive,
    negatives) positions. positives_of: query -> all its positives. queries_of: document -> the queries it
    answers. scores_of: the scores that the rows give, None if they give none. source: [N] number of each
    row's set in source_names. difficulty: [N] position in nblib.data.difficulty.CLASSES, if asked for.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    rows: Rows
    positives_of: Sets
    queries_of: Lists
    scores_of: GivenScores | None = None
    source: np.ndarray | None = None
    source_names: list[str] = field(default_factory=list)
    difficulty: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.rows = self.rows if isinstance(self.rows, Rows) else Rows.of(self.rows)
        if not isinstance(self.positives_of, Sets):
            self.positives_of = Sets.from_mapping(self.positives_of, len(self.queries))
        if not isinstance(self.queries_of, Lists):
            self.queries_of = Lists.from_mapping(self.queries_of, len(self.documents))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, int, list[int]]:
        return self.rows[i]


def load_training_set(
    folder: str | Path | Mapping[str, str | Path],
    num_hard_negatives: int,
    max_docs: int = 0,
    *,
    hard_negative_ratio: float = 1.0,
    negative_seed: int = 0,
    difficulty: bool = False,
    lazy: bool = False,
) -> TrainingSet:
    """Read a set that 01_data_prep built, or several, and keep what training touches.

    Args:
        folder: BEIR folder with train_rows.jsonl (kd-ids rows: positives first, then mined negatives); or
            {name: folder} for several sets, whose texts stay apart.
        num_hard_negatives: K kept per row; the mined order is kept.
        max_docs: keep rows, in the order of their ids' hashes, until they hold this many documents of each
            set; 0 keeps all. So runs of any seed share their documents, and with them the teacher's cache.
            Every query with a positive among them stays: a companion where its negatives are not all there.
        hard_negative_ratio: share of the K negatives that are mined ones. The others are drawn at random from
            the corpus, the same in every epoch: easier, but hardly ever a relevant document that nobody
            judged, as a mined one may be.
        negative_seed: of that draw, which depends on it and the query's id alone.
        difficulty: also class each row by the words that query and positive share.
        lazy: leave the texts in corpus.jsonl and queries.jsonl, for sets larger than memory.

    Returns:
        The set, with only the queries and documents that its rows name.

    Raises:
        FileNotFoundError: 01_data_prep has not built the set or its rows.
        ValueError: no row, rows without negatives where K is above 0, a line or id that cannot be used.
    """
    if not 0 <= hard_negative_ratio <= 1:
        raise ValueError(f"hard_negative_ratio is {hard_negative_ratio}; want 0 to 1")
    mined = int(num_hard_negatives * hard_negative_ratio + 0.5)
    folders = folder if isinstance(folder, Mapping) else {Path(folder).name: folder}
    if not folders:
        raise ValueError("no set to train on; name at least one folder")
    sets = []
    for place in map(Path, folders.values()):
        named = _named(place, mined, num_hard_negatives - mined, negative_seed, lazy)
        sets.append(_trainable(named, max_docs, bool(num_hard_negatives)))
    data = sets[0] if len(sets) == 1 else _join(sets)
    data.source = np.repeat(np.arange(len(sets), dtype=np.int16), [len(s) for s in sets])
    data.source_names = list(folders)
    if difficulty:
        pairs = zip(data.rows.query.tolist(), data.rows.positive.tolist(), strict=True)
        classes = (classify_difficulty(data.queries[q], data.documents[p]) for q, p in pairs)
        data.difficulty = np.fromiter(map(CLASSES.index, classes), np.int8, len(data))
    return data


@dataclass
class _Named:
    """What the lines of train_rows.jsonl name, sorted by the hash of the query's id, positives first.

    query: [R] position. row: [T] line. docs: [T] position. relevant: [T] bool. scores: [T], NaN = none.
    """

    folder: BuiltSet
    file: Path
    query: np.ndarray
    row: np.ndarray
    docs: np.ndarray
    relevant: np.ndarray
    scores: np.ndarray

    def pick(self, where: np.ndarray) -> None:
        """Keep, or bring into another order, what `where` says."""
        for name in ("row", "docs", "relevant", "scores"):
            setattr(self, name, getattr(self, name)[where])


def _named(folder: Path, mined: int, drawn: int, seed: int, lazy: bool) -> _Named:
    """Read the rows of a folder with `mined` hard negatives and `drawn` random ones each."""
    file = folder / "train_rows.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: run 01_data_prep on a source with a train split first")
    opened = open_folder(folder, lazy)
    query_keys, doc_keys, lengths, scores = read_kd_ids(file)
    query, docs = opened.query_ids.find(query_keys), opened.doc_ids.find(doc_keys)
    row = np.repeat(np.arange(len(query)), lengths)
    unknown = np.concatenate([np.flatnonzero(query < 0), row[docs < 0]])
    if len(unknown):
        raise DataError(
            f"{file}, line {unknown.min() + 1}: an id that is not in the set; rebuild it with 01_data_prep"
        )
    order = np.argsort(query_keys, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    named = _Named(opened, file, query[order], rank[row], docs, opened.relevant(query[row], docs), scores)
    named.pick(np.lexsort((~named.relevant, named.row)))
    negatives_before = np.concatenate([[0], np.cumsum(~named.relevant)])
    starts = np.searchsorted(named.row, np.arange(len(order)))
    named.pick(named.relevant | (negatives_before[:-1] - negatives_before[starts][named.row] < mined))
    if drawn:
        _draw(named, query_keys[order], drawn, seed)
    return named


def _draw(named: _Named, query_keys: np.ndarray, n: int, seed: int) -> None:
    """Add n random negatives to each row with a positive, as far as the corpus has documents for it."""
    n_docs = len(named.folder.documents)
    bounds = np.searchsorted(named.row, np.arange(len(named.query) + 1))
    judged = named.folder.positives
    first, last = (np.searchsorted(judged, (named.query + i) * n_docs) for i in (0, 1))
    rows, docs = array("q"), array("q")
    for r in np.unique(named.row[named.relevant]).tolist():
        refused = {
            *named.docs[bounds[r] : bounds[r + 1]].tolist(),
            *(judged[first[r] : last[r]] % n_docs).tolist(),
        }
        wanted = len(refused) + n
        for attempt in range(100 + 20 * n):
            if len(refused) == wanted:
                break
            digest = blake2b(f"{seed}:{query_keys[r]}:{attempt}".encode(), digest_size=8).digest()
            doc = int.from_bytes(digest, "big") % n_docs
            if doc not in refused:
                refused.add(doc)
                rows.append(r)
                docs.append(doc)
    named.row = np.concatenate([named.row, np.array(rows, dtype=np.int64)])
    named.docs = np.concatenate([named.docs, np.array(docs, dtype=np.int64)])
    named.relevant = np.concatenate([named.relevant, np.zeros(len(rows), dtype=bool)])
    named.scores = np.concatenate([named.scores, np.full(len(rows), np.nan, np.float32)])
    named.pick(np.argsort(named.row, kind="stable"))


def _first_documents(named: _Named, max_docs: int) -> np.ndarray:
    """List the documents of the first rows, in the order they are named, up to max_docs (0 = all)."""
    first = np.sort(np.unique(named.docs, return_index=True)[1])
    ends = np.searchsorted(named.row, np.arange(len(named.query)), side="right")
    fitting = int((np.searchsorted(first, ends) <= max_docs).sum()) if max_docs else len(ends)
    return named.docs[first[first < (ends[fitting - 1] if fitting else 0)]]


def _trainable(named: _Named, max_docs: int, wants_negatives: bool) -> TrainingSet:
    """Number queries and documents anew, as far as they are kept, and make the rows."""
    folder, row = named.folder, named.row
    kept = _first_documents(named, max_docs)
    d = _renumber(kept, len(folder.documents))[named.docs]  # [T], -1 = left out
    found = named.relevant & (d >= 0)
    asked = named.query[row[found]]
    asked = asked[np.sort(np.unique(asked, return_index=True)[1])]
    q = _renumber(asked, len(folder.queries))[named.query[row]]  # [T]
    whole = np.bincount(row[~named.relevant & (d < 0)], minlength=len(named.query)) == 0  # [R]
    at, others = found & whole[row], ~named.relevant & whole[row]
    if not at.any():
        raise ValueError(f"{named.file}: no row names a positive of qrels/train.tsv")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[others], minlength=len(named.query)))])
    rows = Rows(q[at], d[at], d[others], offsets[row[at]], offsets[row[at] + 1])
    if wants_negatives and not (rows.stops > rows.starts).any():
        raise ValueError(
            f"{named.file}: rows hold no negatives; set num_hard_negatives to 0 or mine some in 01"
        )
    pairs = np.divmod(np.unique(q[found] * len(kept) + d[found]), len(kept))
    positives_of = Sets.from_pairs(*pairs, len(asked))
    queries_of = Lists.from_pairs(*pairs[::-1], len(kept))
    scores_of = None
    if (scored := (q >= 0) & (d >= 0) & ~np.isnan(named.scores)).any():
        scores_of = _given_scores(named.file, np.stack([q, d], axis=1)[scored], named.scores[scored])
    documents, queries = _select(folder.documents, kept), _select(folder.queries, asked)
    return TrainingSet(queries, documents, rows, positives_of, queries_of, scores_of)


def _given_scores(file: Path, pairs: np.ndarray, scores: np.ndarray) -> GivenScores:
    try:
        return GivenScores(pairs, scores)
    except ValueError as error:
        raise ValueError(f"{file}: {error} (positions of the query and the document in the set)") from error


def _renumber(kept: np.ndarray, n: int) -> np.ndarray:
    """Give the place of each of n numbers in `kept`: [n], -1 = not kept."""
    places = np.full(n, -1, dtype=np.int64)
    places[kept] = np.arange(len(kept))
    return places


def _select(texts: Sequence[str], positions: np.ndarray) -> Sequence[str]:
    if isinstance(texts, JsonlTexts):
        return texts.select(positions)
    return [texts[i] for i in positions.tolist()]


def _join(sets: list[TrainingSet]) -> TrainingSet:
    """Put sets one after the other; texts that two of them share stay apart."""
    q_starts = np.cumsum([0] + [len(s.queries) for s in sets])[:-1]
    d_starts = np.cumsum([0] + [len(s.documents) for s in sets])[:-1]
    n_starts = np.cumsum([0] + [len(s.rows.negatives) for s in sets])[:-1]
    rows = Rows(
        _shifted([s.rows.query for s in sets], q_starts),
        _shifted([s.rows.positive for s in sets], d_starts),
        _shifted([s.rows.negatives for s in sets], d_starts),
        _shifted([s.rows.starts for s in sets], n_starts),
        _shifted([s.rows.stops for s in sets], n_starts),
    )
    return TrainingSet(
        _texts([s.queries for s in sets]),
        _texts([s.documents for s in sets]),
        rows,
        _join_lists([s.positives_of for s in sets], d_starts),
        _join_lists([s.queries_of for s in sets], q_starts),
        _join_scores([s.scores_of for s in sets], np.stack([q_starts, d_starts], axis=1)),
    )


def _join_scores(parts: list[GivenScores | None], starts: np.ndarray) -> GivenScores | None:
    """Put scores together; `starts` [sets, 2] shifts their pairs."""
    given = [(part, start) for part, start in zip(parts, starts, strict=True) if part is not None]
    if not given:
        return None
    pairs = np.concatenate([part.pairs + start for part, start in given])
    return GivenScores(pairs, np.concatenate([part.values for part, _ in given]))


def _texts(parts: list[Sequence[str]]) -> Sequence[str]:
    in_memory = all(isinstance(part, list) for part in parts)
    return [text for part in parts for text in part] if in_memory else JoinedTexts(parts)


def _shifted(arrays: list[np.ndarray], starts: np.ndarray) -> np.ndarray:
    return np.concatenate([a + start for a, start in zip(arrays, starts, strict=True)])


def _join_lists(parts: list[Lists], starts: np.ndarray) -> Lists:
    """Put lists one after the other; their values are shifted by `starts`."""
    ends = np.cumsum([0] + [len(part.flat) for part in parts])[:-1]
    offsets = _shifted([part.offsets[1:] for part in parts], ends)
    flat = _shifted([part.flat for part in parts], starts).astype(np.int32)
    return type(parts[0])(flat, np.concatenate([[0], offsets]))
