"""Training rows as flat arrays: rows and lists of positions, small for millions of rows.

Letters: N rows or texts of the set, Q queries and D documents of one batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nblib.data.texts import spans


class Lists(Mapping[int, list[int]]):
    """One list of numbers per key 0..n-1, in flat arrays; a key without numbers is not in it.

    Args:
        flat: [sum] int32, one list after the other.
        offsets: [n + 1] int64.
    """

    def __init__(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        self.flat, self.offsets = flat, offsets

    @classmethod
    def from_pairs(cls, keys: np.ndarray, values: np.ndarray, n: int):
        """Gather the values of each key, in the order given."""
        offsets = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=n))])
        return cls(values[np.argsort(keys, kind="stable")].astype(np.int32), offsets)

    @classmethod
    def from_mapping(cls, lists: Mapping[int, Iterable[int]], n: int):
        """Take over a mapping of keys 0..n-1."""
        pairs = [(key, value) for key, values in lists.items() for value in values]
        return cls.from_pairs(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T, n)

    def __getitem__(self, key: int) -> list[int]:
        if not 0 <= key < len(self.offsets) - 1 or self.offsets[key] == self.offsets[key + 1]:
            raise KeyError(key)
        return self.flat[self.offsets[key] : self.offsets[key + 1]].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(np.diff(self.offsets)).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(np.diff(self.offsets)))

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find several lists in `flat`: ([n] lengths, [sum] places, one list after the other)."""
        starts = self.offsets[keys]
        lengths = self.offsets[keys + 1] - starts
        return lengths, spans(starts, lengths)


class Sets(Lists):
    """Lists whose items come out as sets."""

    def __getitem__(self, key: int) -> set[int]:
        return set(super().__getitem__(key))


class Rows(Sequence[tuple[int, int, list[int]]]):
    """Rows (query, positive, negatives) in flat arrays; rows of one query share their negatives.

    Args:
        query, positive: [N] int32. negatives: flat int32; row i has negatives[starts[i] : stops[i]].
    """

    def __init__(
        self,
        query: np.ndarray,
        positive: np.ndarray,
        negatives: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
    ) -> None:
        self.query, self.positive = query.astype(np.int32), positive.astype(np.int32)
        self.negatives, self.starts, self.stops = negatives.astype(np.int32), starts, stops

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, Sequence[int]]]) -> "Rows":
        """Take over rows that were made one by one."""
        stops = np.cumsum([len(negatives) for _, _, negatives in rows])
        starts = np.concatenate([[0], stops[:-1]])
        flat = np.array([n for _, _, negatives in rows for n in negatives])
        query, positive = np.array([row[:2] for row in rows]).T
        return cls(query, positive, flat, starts, stops)

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        negatives = self.negatives[self.starts[i] : self.stops[i]].tolist()
        return int(self.query[i]), int(self.positive[i]), negatives

    def longest(self, lengths: np.ndarray, block: int = 100_000) -> np.ndarray:
        """Find the largest value among the documents of each row: [D] values -> [N]."""
        out = lengths[self.positive]
        for at in range(0, len(self), block):
            starts, stops = self.starts[at : at + block], self.stops[at : at + block]
            some = np.flatnonzero(stops > starts)
            counts = (stops - starts)[some]
            values = lengths[self.negatives[spans(starts[some], counts)]]
            if len(some):
                most = np.maximum.reduceat(values, np.cumsum(counts) - counts)
                out[at + some] = np.maximum(out[at + some], most)
        return out


def cells(lengths: np.ndarray, values: np.ndarray, docs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where the documents of each query stand among the documents of a batch.

    Args:
        lengths: [Q] documents listed for each query. values: [sum] these documents.
        docs: [D] distinct documents of the batch, in any order.

    Returns:
        row, column: [hits] each.
    """
    order = np.argsort(docs)
    place = order[np.searchsorted(docs, values, sorter=order).clip(max=len(docs) - 1)]
    hit = docs[place] == values
    return np.repeat(np.arange(len(lengths)), lengths)[hit], place[hit]
