"""Texts that stay in files and are read by their place, for sets larger than memory.

Letters: N texts.
"""

import hashlib
import json
import mmap
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from nblib.data.lines import DataError, RowError, text_field
from nblib.files import sha256_file

Parse = Callable[[dict[str, Any]], str]


def id_key(text_id: str) -> int:
    """Shorten an id to 64 bits: the head of its sha256, so that keys sort as the hashes do."""
    return int.from_bytes(hashlib.sha256(text_id.encode()).digest()[:8], "big")


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """List the positions of several spans, one span after the other: [n] starts and lengths -> [sum]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class JsonlTexts(Sequence[str]):
    """The texts of a .jsonl file as a sequence that holds only where each line starts.

    A worker process gets the places, not the texts: the file is mapped anew where it is first read.

    Args:
        file: plain .jsonl, one object per line.
        starts, stops: [N] int64, first byte and end of each line, in the order of the sequence.
        parse: gives the text of an object; a function of a module, so that it can be pickled.
    """

    def __init__(self, file: str | Path, starts: np.ndarray, stops: np.ndarray, parse: Parse) -> None:
        self.file, self.starts, self.stops, self.parse = Path(file), starts, stops, parse
        self.file_bytes = self.file.stat().st_size
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        line = self._lines()[self.starts[i] : self.stops[i]]
        return self.parse(json.loads(line))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _lines(self) -> mmap.mmap:
        if self._map is None:
            with open(self.file, "rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._map) != self.file_bytes:
                raise ValueError(f"{self.file} has changed since it was opened; start the run again")
        return self._map

    def select(self, positions: np.ndarray) -> "JsonlTexts":
        """Give the texts at these positions, in this order, as another sequence over the same file."""
        return JsonlTexts(self.file, self.starts[positions], self.stops[positions], self.parse)

    @property
    def identity(self) -> str:
        """Hash what the texts are: the file's content and which lines are taken."""
        digest = hashlib.sha256(sha256_file(self.file).encode())
        digest.update(np.ascontiguousarray(self.starts))
        return digest.hexdigest()


def index_jsonl(file: str | Path, parse: Parse) -> tuple[np.ndarray, JsonlTexts]:
    """Find every object of a plain .jsonl file, checking each, without keeping any text.

    Args:
        file: one JSON object with a unique "_id" per line, UTF-8.
        parse: gives the text of an object, or raises RowError.

    Returns:
        keys: [N] uint64, id_key of each "_id". texts: the file as a sequence.

    Raises:
        DataError: a line that cannot be used, or an id that comes twice; names file and line.
    """
    keys, starts, stops, numbers, place = array("Q"), array("q"), array("q"), array("q"), 0
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            start, place = place, place + len(line)
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                parse(row)
                text_id = str(row["_id"]) if type(row.get("_id")) is int else text_field(row, "_id")
            except (ValueError, RecursionError, AttributeError, RowError) as reason:
                raise DataError(f"{file}, line {number}: {reason}; repair the line or leave it out") from None
            keys.append(id_key(text_id))
            starts.append(start)
            stops.append(place)
            numbers.append(number)
    if not keys:
        raise DataError(f"{file}: no usable row; expected one JSON object per line with _id and text")
    found = np.frombuffer(keys, np.uint64)
    order = np.argsort(found, kind="stable")
    if len(again := order[1:][found[order][1:] == found[order][:-1]]):
        raise DataError(
            f"{file}, line {numbers[again[0]]}: its _id stands on an earlier line; make ids unique"
        )
    return found, JsonlTexts(file, np.frombuffer(starts, np.int64), np.frombuffer(stops, np.int64), parse)


class SpooledTexts(Sequence[str]):
    """Texts put into a file without a name, of which only the places are held; it goes with the object.

    Args:
        texts: N texts, read once.
        folder: where the file lies; made if need be.
    """

    def __init__(self, texts: Iterable[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ends = array("q", [0])
        with tempfile.TemporaryFile(dir=folder) as file:
            for text in texts:
                ends.append(ends[-1] + file.write(text.encode()))
            file.flush()
            self._held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if ends[-1] else b""
        self._ends = np.frombuffer(ends, np.int64)  # [N + 1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # counts from the end, or raises IndexError, as a list does
        return self._held[self._ends[i] : self._ends[i + 1]].decode()


class JoinedTexts(Sequence[str]):
    """Several sequences of texts as one, for sets that are trained on together."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # counts from the end, or raises IndexError, as a list does
        part = bisect_right(self.ends, i)
        return self.parts[part][i - (self.ends[part - 1] if part else 0)]

    @property
    def identity(self) -> str:
        """Hash what the texts are."""
        return texts_identity(chain.from_iterable(texts_identity(part) for part in self.parts))


def texts_identity(texts: Iterable[str]) -> str:
    """Hash texts, by the file they come from where they say so: 64 hex digits."""
    if identity := getattr(texts, "identity", ""):
        return identity
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
