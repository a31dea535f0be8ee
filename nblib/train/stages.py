"""Stages of a curriculum: from when to when training sees rows of which difficulty."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nblib.data.difficulty import CLASSES

UNITS = ("epoch", "step", "share")


@dataclass(frozen=True)
class Stage:
    """A stretch of training that sees rows of some classes only.

    until: where it ends, in `unit`; the last stage goes on after that. classes: of nblib.data.difficulty.
    unit: "epoch", "step" (of the optimizer) or "share" (0 to 1, of all steps).
    """

    until: float
    classes: tuple[str, ...]
    unit: str = "epoch"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f'unit of a stage is "{self.unit}"; take one of {", ".join(UNITS)}')
        if not self.classes or set(self.classes) - set(CLASSES):
            raise ValueError(
                f"classes of a stage are {list(self.classes)}; take some of {', '.join(CLASSES)}"
            )
        if not 0 < self.until < math.inf or (self.unit == "share" and self.until > 1):
            raise ValueError(f"a stage ends at {self.unit} {self.until}; want more than 0, a share at most 1")


def read_stages(stages: Iterable[Mapping[str, Any]]) -> list[Stage]:
    """Read stages as guide 000 writes them: {"epoch": [0, 3], "difficulty": "easy"}.

    Args:
        stages: each with one of "epoch", "step" and "share", holding [begin, end], and "difficulty", a class
            or a list of classes. Each begins where the one before it ends.

    Raises:
        ValueError: another form, a gap or an overlap, an unknown class.
    """
    found: list[Stage] = []
    for number, raw in enumerate(stages, 1):
        units = [unit for unit in UNITS if unit in raw]
        if len(units) != 1 or set(raw) != {*units, "difficulty"}:
            form = '{"epoch": [0, 3], "difficulty": ["easy"]}'
            raise ValueError(f"stage {number} is {dict(raw)}; write {form}, or step or share for epoch")
        begin, end = _bounds(number, raw[units[0]])
        expected = found[-1].until if found else 0
        if begin != expected:
            raise ValueError(f"stage {number} begins at {units[0]} {begin}; it must begin at {expected}")
        names = [raw["difficulty"]] if isinstance(raw["difficulty"], str) else raw["difficulty"]
        found.append(Stage(end, tuple(names), units[0]))
    return found


def _bounds(number: int, value: Any) -> tuple[float, float]:
    """Read [begin, end]. Raises ValueError if it is anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"stage {number} lasts {value!r}; write [begin, end]")
    if not all(isinstance(bound, int | float) for bound in value):
        raise ValueError(f"stage {number} lasts {value!r}; begin and end are numbers")
    return tuple(value)


def check_stages(stages: Sequence[Stage], difficulty: np.ndarray | None, total_steps: int) -> None:
    """Refuse stages that do not fit together, or that lack what they count by. Raises ValueError."""
    if difficulty is None:
        raise ValueError("stages need the difficulty of each row; load the set with difficulty=True")
    if len({stage.unit for stage in stages}) > 1:
        raise ValueError("stages count in several units; give all of them in epochs, in steps or in shares")
    ends = [stage.until for stage in stages]
    if ends != sorted(set(ends)):
        raise ValueError(f"stages end at {ends}; each must end after the one before it")
    if stages[0].unit == "share" and total_steps < 1:
        raise ValueError("stages by share need total_steps; give the number of optimizer steps")
