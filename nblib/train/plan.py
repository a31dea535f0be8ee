"""Which rows make up which batch: shuffled, by data set, by stage of difficulty, by length.

A plan is the same on every process: all of them see the whole batch. Its order depends on the seed and the
epoch alone, so that a run that goes on from a checkpoint skips batches and finds the rest as it would have
been.

Letters: N rows, B rows of one batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Sampler

from nblib.data.difficulty import CLASSES
from nblib.train.stages import Stage, check_stages


@dataclass(frozen=True)
class _Pool:
    """What a stage draws from: the rows of each data set that takes part, and its weight."""

    rows: list[np.ndarray]
    weights: np.ndarray


class BatchPlan(Sampler[list[int]]):
    """Give the batches of an epoch as lists of row numbers, for DataLoader(batch_sampler=...).

    An epoch has the same number of batches at every stage, as the Trainer counts on: a stage with few rows
    goes over them several times, each time in another order.

    Args:
        n_rows: N.
        batch_rows: B, of all processes together.
        seed: 0 or more.
        source: [N] number of each row's data set; None for one.
        mixing: weight of each data set: its share of the batches (of the rows if not homogeneous). None is
            by size, so that each row comes once an epoch. A weight of 0 leaves a set out.
        homogeneous: each batch holds rows of one data set, so that the data set of a document does not give
            away which query it belongs to.
        difficulty: [N] position of each row's class in nblib.data.difficulty.CLASSES.
        stages: a curriculum; needs `difficulty`. A data set without a whole batch of a stage's classes sits
            that stage out.
        drop_last: leave the rows out that make no whole batch, others each epoch.
        batches_per_epoch: 0 for as many as all rows make.
        accumulation: batches per step of the optimizer, for stages by step.
        total_steps: steps of the optimizer, for stages by share.

    Raises:
        ValueError: fewer rows than a batch in a set or a stage; arrays, weights or stages that do not fit.
    """

    def __init__(
        self,
        n_rows: int,
        batch_rows: int,
        seed: int,
        *,
        source: np.ndarray | None = None,
        mixing: Sequence[float] | None = None,
        homogeneous: bool = True,
        difficulty: np.ndarray | None = None,
        stages: Sequence[Stage] = (),
        drop_last: bool = True,
        batches_per_epoch: int = 0,
        accumulation: int = 1,
        total_steps: int = 0,
    ) -> None:
        for name, value, least in (
            ("batch_rows", batch_rows, 1),
            ("seed", seed, 0),
            ("batches_per_epoch", batches_per_epoch, 0),
            ("accumulation", accumulation, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; want {least} or more")
        self.batch_size, self.seed, self.epoch = batch_rows, seed, 0
        self.n_rows, self.homogeneous, self.drop_last = n_rows, homogeneous, drop_last
        self.lengths, self.bucket_factor = None, 1
        self.accumulation, self.total_steps = accumulation, total_steps
        source = np.zeros(n_rows, np.int8) if source is None else _per_row("source", source, n_rows)
        mixing = _mixing(mixing, int(source.max(initial=0)) + 1)
        self._check_sizes(source, mixing)
        problem = f"the data sets of a weight above 0 make no batch of {batch_rows} rows: lower batch_size"
        everything = self._pool(np.ones(n_rows, bool), source, mixing, problem)
        self.batches_per_epoch = batches_per_epoch or self._full_pass(everything)
        self.pools, self.ends = [everything], [math.inf]
        if stages:
            difficulty = _per_row("difficulty", difficulty, n_rows)
            check_stages(stages, difficulty, total_steps)
            self.pools = [self._stage_pool(stage, difficulty, source, mixing) for stage in stages]
            self.ends = [self._first_batch(stage) for stage in stages[:-1]] + [math.inf]

    def sort_by(self, lengths: np.ndarray, bucket_factor: int = 50) -> "BatchPlan":
        """Let rows of like length share a batch.

        Args:
            lengths: [N] tokens of each row's longest text.
            bucket_factor: rows are sorted within stretches of this many batches: more saves more padding and
                leaves less to chance.

        Raises:
            ValueError: another number of lengths, or a factor under 1.
        """
        if bucket_factor < 1:
            raise ValueError(f"bucket_factor is {bucket_factor}; want 1 or more")
        self.lengths, self.bucket_factor = _per_row("lengths", lengths, self.n_rows), bucket_factor
        return self

    def __len__(self) -> int:
        return self.batches_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; the Trainer calls it at the begin of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        start, stop = self.epoch * len(self), (self.epoch + 1) * len(self)
        for stage, end in enumerate(self.ends):
            last = int(min(stop, end))
            if last > start:
                yield from self._segment(self.epoch, stage, last - start)
                start = last

    def stage_at(self, step: int) -> int:
        """Number the stage, from 0, that the batches of an optimizer step are drawn from."""
        return int(np.searchsorted(self.ends, self._batch_of(step), side="right"))

    def _segment(self, epoch: int, stage: int, count: int) -> Iterator[list[int]]:
        """Draw `count` batches of one stage."""
        pool = self.pools[stage]
        draws = (
            [([rows], np.ones(1)) for rows in pool.rows] if self.homogeneous else [(pool.rows, pool.weights)]
        )
        streams = [
            self._stream(*draw, np.random.Generator(np.random.PCG64([self.seed, epoch, stage, i])))
            for i, draw in enumerate(draws, 1)
        ]
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch, stage, 0]))
        shares = spread(count, pool.weights, rng) if self.homogeneous else [count]
        for turn in rng.permutation(np.repeat(np.arange(len(draws)), shares)).tolist():
            yield next(streams[turn])

    def _stream(
        self, parts: list[np.ndarray], weights: np.ndarray, rng: np.random.Generator
    ) -> Iterator[list[int]]:
        """Draw batches for ever: pass after pass over the parts, each pass in another order."""
        total, size = sum(map(len, parts)), self.batch_size
        while True:
            shares = spread(total, weights, rng)
            rows = np.concatenate([_repeat(part, n, rng) for part, n in zip(parts, shares, strict=True)])
            rng.shuffle(rows)
            rows = rows[: total - total % size] if self.drop_last else rows
            self._sort_stretches(rows)
            for batch in rng.permutation(math.ceil(len(rows) / size)).tolist():
                yield rows[batch * size : (batch + 1) * size].tolist()

    def _sort_stretches(self, rows: np.ndarray) -> None:
        """Sort stretches of bucket_factor batches by length, in place."""
        if self.lengths is not None:
            stretch = self.batch_size * self.bucket_factor
            for start in range(0, len(rows), stretch):
                part = rows[start : start + stretch]
                part[:] = part[np.argsort(self.lengths[part], kind="stable")]

    def _pool(self, chosen: np.ndarray, source: np.ndarray, mixing: np.ndarray | None, problem: str) -> _Pool:
        """Collect the chosen rows of each data set; raise `problem` if they make no batch."""
        numbers = np.unique(source[chosen]) if mixing is None else np.flatnonzero(mixing)
        parts = {int(n): np.flatnonzero(chosen & (source == n)) for n in numbers}
        least = self.batch_size if self.homogeneous and self.drop_last else 1
        parts = {n: rows for n, rows in parts.items() if len(rows) >= least}
        if sum(map(len, parts.values())) < self.batch_size:
            raise ValueError(problem)
        if mixing is not None:
            weights = mixing[list(parts)]
        elif self.homogeneous:
            weights = np.array([self._batches(len(rows)) for rows in parts.values()])
        else:
            weights = np.array([len(rows) for rows in parts.values()])
        kind = np.int32 if len(source) < 2**31 else np.int64
        return _Pool([rows.astype(kind) for rows in parts.values()], weights)

    def _stage_pool(
        self, stage: Stage, difficulty: np.ndarray, source: np.ndarray, mixing: np.ndarray | None
    ) -> _Pool:
        chosen = np.isin(difficulty, [CLASSES.index(name) for name in stage.classes])
        problem = (
            f"the stage until {stage.unit} {stage.until:g} has {chosen.sum()} rows of class "
            f"{' or '.join(stage.classes)}, which make no batch of {self.batch_size}: lower batch_size or "
            "give the stage more classes"
        )
        return self._pool(chosen, source, mixing, problem)

    def _check_sizes(self, source: np.ndarray, mixing: np.ndarray | None) -> None:
        """Refuse a set that makes no batch, and a data set that would never make one of its own."""
        size = self.batch_size
        if len(source) < size:
            raise ValueError(
                f"batch_size {size} is larger than the {len(source)} training rows: lower batch_size"
            )
        least = size if self.homogeneous and self.drop_last else 1
        for number, rows in enumerate(np.bincount(source)):
            wanted = rows > 0 if mixing is None else mixing[number] > 0
            if wanted and rows < least:
                raise ValueError(
                    f"data set {number} has {rows} rows, fewer than batch_size {size}: lower batch_size, "
                    "or give it a weight of 0"
                )

    def _batches(self, n_rows: int) -> int:
        return n_rows // self.batch_size if self.drop_last else math.ceil(n_rows / self.batch_size)

    def _full_pass(self, pool: _Pool) -> int:
        """Count the batches in which every row comes once."""
        sizes = [len(rows) for rows in pool.rows]
        return sum(map(self._batches, sizes)) if self.homogeneous else self._batches(sum(sizes))

    def _first_batch(self, stage: Stage) -> int:
        """Number the first batch after a stage, counted from the first epoch on."""
        if stage.unit == "epoch":
            return round(stage.until * len(self))
        return self._batch_of(round(stage.until * (self.total_steps if stage.unit == "share" else 1)))

    def _batch_of(self, step: int) -> int:
        """Number the first batch of an optimizer step; the last step of an epoch may have fewer of them."""
        epochs, rest = divmod(step, math.ceil(len(self) / self.accumulation))
        return epochs * len(self) + rest * self.accumulation


class PlannedLoader(DataLoader):
    """DataLoader(batch_sampler=a BatchPlan) that hands the epoch on, which the Trainer tells the loader."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.batch_sampler.set_epoch(epoch)


def spread(total: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split a whole number by weights: each part is its exact share rounded up or down, right on average.

    Source: systematic sampling, one random start for all parts.

    Args:
        total: to be split.
        weights: [G], not all 0.

    Returns:
        [G] int64 that add up to total.
    """
    ends = np.cumsum(np.asarray(weights, dtype=np.float64))
    start = rng.random() * (1 - 1e-6)  # short of 1, so that rounding cannot carry a whole share over
    bounds = np.floor(np.concatenate([[0.0], total * ends / ends[-1]]) + start)
    return np.diff(bounds).astype(np.int64)


def _repeat(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Take n rows: all of them as often as they fit in, and some at random for the rest."""
    whole, rest = divmod(int(n), len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:rest]])


def _per_row(name: str, values: np.ndarray | None, n_rows: int) -> np.ndarray | None:
    if values is not None and len(values) != n_rows:
        raise ValueError(f"{name} has {len(values)} entries for {n_rows} rows; give one for each")
    return None if values is None else np.asarray(values)


def _mixing(mixing: Sequence[float] | None, n_sets: int) -> np.ndarray | None:
    if mixing is None:
        return None
    weights = np.asarray(mixing, dtype=np.float64)
    if len(weights) != n_sets or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise ValueError(
            f"mixing weights are {list(mixing)} for {n_sets} data sets; give each one number, not all 0"
        )
    return weights
