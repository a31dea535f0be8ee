"""Token ids of sets that may be larger than memory: flat arrays, in memory or in files.

Letters: N texts, T tokens of all of them, B texts of one batch, L tokens of the longest of these.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from nblib.data.texts import spans, texts_identity
from nblib.files import atomic_file
from nblib.idf import tokenizer_rules

Parse = Callable[[dict[str, Any]], str]


def tokenizer_identity(tokenizer) -> str:
    """Hash what a fast tokenizer does to a text, whatever it was last asked to cut: 64 hex digits."""
    return texts_identity([tokenizer_rules(tokenizer), tokenizer.truncation_side])


class TokenStore:
    """Token ids of N texts in one flat array, in memory or in a file that is only mapped.

    Args:
        ids: [T] int32.
        offsets: [N + 1] int64; the ids of text i are ids[offsets[i] : offsets[i + 1]].
        files: where the two arrays lie, if they are mapped: a worker process opens them again.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, files: tuple[Path, Path] | None = None) -> None:
        self.ids, self.offsets, self.files = ids, offsets, files

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        tokenizer,
        max_length: int = 0,
        cache: Path | None = None,
        batch_size: int = 2000,
        progress: Callable[[int], None] | None = None,
    ) -> "TokenStore":
        """Tokenize texts once, as a stream.

        Args:
            texts: documents or queries; with a cache a sequence, since they are hashed first.
            tokenizer: fast tokenizer; special tokens are added.
            max_length: tokens kept per text, special ones included; 0 keeps all.
            cache: folder of the arrays; None holds them in memory. A changed text, tokenizer or length never
                meets old arrays, because all three are in their names.
            batch_size: texts per batch; memory follows it where there is a cache.
            progress: called with the number of texts done.

        Raises:
            ValueError: no text, or one without a single token.
        """
        batches = _encoded(texts, tokenizer, max_length, batch_size, progress)
        if cache is None:
            parts = list(batches)
            lengths = np.concatenate([[0], *(lengths for lengths, _ in parts)])
            return cls(np.concatenate([ids for _, ids in parts]), np.cumsum(lengths, dtype=np.int64))
        key = texts_identity([texts_identity(texts), tokenizer_identity(tokenizer), str(max_length)])[:16]
        files = Path(cache) / f"tokens-{key}.ids.npy", Path(cache) / f"tokens-{key}.offsets.npy"
        if not files[1].exists():  # it comes into place last
            with atomic_file(files[1]) as last, atomic_file(files[0]) as first:
                _write(batches, first, last)
        return cls.open(files)

    @classmethod
    def open(cls, files: tuple[Path, Path]) -> "TokenStore":
        """Map the arrays that `build` left in a cache."""
        return cls(*(np.load(file, mmap_mode="r") for file in files), files=files)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """Give the ids of text i: a view, int32."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def __reduce__(self):
        if self.files:
            return TokenStore.open, (self.files,)
        return TokenStore, (self.ids, self.offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text: [N] int64."""
        return np.diff(self.offsets)

    def take(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the ids of some texts: ([B] lengths, [sum] int32 ids, one text after the other)."""
        rows = np.asarray(rows, dtype=np.int64)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        return lengths, self.ids[spans(starts, lengths)]

    def pad(
        self, rows: Sequence[int] | np.ndarray, pad_id: int, pad_to_multiple_of: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Make the input of an encoder out of some texts.

        Args:
            rows: B positions.
            pad_id: fills up the shorter ones.
            pad_to_multiple_of: L is rounded up to it, which suits tensor cores (8) and keeps the number of
                shapes small; 0 leaves L as it is. It may exceed the length the texts were cut at.

        Returns:
            input_ids, attention_mask: [B, L] int64.
        """
        lengths, ids = self.take(rows)
        step = max(pad_to_multiple_of, 1)
        width = -(-int(lengths.max()) // step) * step
        mask = np.arange(width) < lengths[:, None]  # [B, L]
        padded = np.full(mask.shape, pad_id, dtype=np.int64)
        padded[mask] = ids
        return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))


def ordinary_tokens(vocab_size: int, special_ids: Sequence[int]) -> np.ndarray:
    """Mark the tokens that mean something: [V] bool."""
    ordinary = np.ones(vocab_size, dtype=bool)
    ordinary[list(special_ids)] = False
    return ordinary


def token_cells(store: TokenStore, rows: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    """List the ordinary tokens of some texts, with repeats, as position in rows * V + token: [n] int64."""
    lengths, ids = store.take(rows)
    keep = ordinary[ids]
    return np.repeat(np.arange(len(rows)), lengths)[keep] * len(ordinary) + ids[keep]


def _encoded(texts: Iterable[str], tokenizer, max_length: int, batch_size: int, progress):
    """Yield (lengths, ids) of each batch of texts."""
    texts, done = iter(texts), 0
    while batch := list(islice(texts, batch_size)):
        with _truncation(tokenizer, max_length) as core:
            found = [e.ids for e in core.encode_batch_fast(batch, add_special_tokens=True)]
        lengths = np.array([len(ids) for ids in found], dtype=np.int64)
        if not lengths.all():
            raise ValueError(f"text {done + int(lengths.argmin())} has no token; drop it or give it words")
        yield lengths, np.fromiter(chain.from_iterable(found), np.int32, lengths.sum())
        done += len(batch)
        if progress:
            progress(done)
    if not done:
        raise ValueError("no text to tokenize; is the set empty?")


@contextmanager
def _truncation(tokenizer, max_length: int):
    """Give the tokenizer's core, set to cut at max_length; what it was set to before comes back after."""
    core = tokenizer.backend_tokenizer
    before, padding = core.truncation, core.padding
    core.no_padding()
    if max_length:
        core.enable_truncation(max_length, direction=tokenizer.truncation_side)
    else:
        core.no_truncation()
    try:
        yield core
    finally:
        core.enable_truncation(**before) if before else core.no_truncation()
        if padding:
            core.enable_padding(**padding)


def _write(batches, ids_file: Path, offsets_file: Path) -> None:
    """Write the flat ids and the offsets batch by batch."""
    with open(ids_file, "wb") as ids_handle, open(offsets_file, "wb") as offsets_handle:
        ids_out, offsets_out = _GrowingNpy(ids_handle, np.int32), _GrowingNpy(offsets_handle, np.int64)
        offsets_out.append(np.zeros(1))
        for lengths, ids in batches:
            offsets_out.append(ids_out.size + np.cumsum(lengths))
            ids_out.append(ids)


class _GrowingNpy:
    """A one-dimensional .npy file that grows; numpy leaves room in the header for a longer shape."""

    def __init__(self, handle, dtype) -> None:
        self.handle, self.dtype, self.size = handle, np.dtype(dtype), 0
        self._header()

    def append(self, values: np.ndarray) -> None:
        self.handle.write(np.ascontiguousarray(values, dtype=self.dtype))
        self.size += len(values)
        self.handle.seek(0)
        self._header()
        self.handle.seek(0, 2)

    def _header(self) -> None:
        descr = npy.dtype_to_descr(self.dtype)
        npy.write_array_header_1_0(
            self.handle, {"descr": descr, "fortran_order": False, "shape": (self.size,)}
        )
