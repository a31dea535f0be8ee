"""Progress of long loops: a small file for the runner's live line, or a plain line now and then."""

import os
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nblib.files import write_json

T = TypeVar("T")
FILE_EVERY_S = 0.5
PRINT_EVERY_S = 10.0
FILE = ""  # no loop has an empty label
_started: dict[str, tuple[float, int]] = {}  # label -> (when first seen, how much was done then)
_last_shown: dict[str, float] = {}  # label, or FILE -> when
_written: dict = {}  # the state now in the file


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and report each; for loops that take more than a few seconds.

    Args:
        iterable: anything; its len() is the total where it has one.
        label: a word or two for the reader, such as "encode documents".
        total: number of items, where the iterable has no len(); 0 or None = not known.
    """
    if total is None:
        total = len(iterable) if hasattr(iterable, "__len__") else 0
    report(label, 0, total)
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        report(label, done, total)
    if done != total:
        report(label, done, done)  # the true end of a loop of unknown length, or of another one than said


def report(label: str, done: int, total: int) -> None:
    """Report that `done` of `total` items are finished (total 0 = not known).

    Writes progress.json at most twice a second into the folder named by NBLIB_PROGRESS_DIR, which the
    runner reads; without it prints one line at most every 10 seconds. Never raises for a full disk.
    """
    now, done, total = time.time(), int(done), int(total)
    first = _started.get(label)
    if first is None or done < first[1] or done == 0:
        _started[label] = first = (now, done)
        _last_shown[label] = now  # prints only when the loop proves long
    state = {"label": label, "done": done, "total": total, "started": first[0], "from": first[1]}
    if folder := os.environ.get("NBLIB_PROGRESS_DIR"):
        if now - _last_shown.get(FILE, 0.0) >= FILE_EVERY_S:
            _last_shown[FILE] = now
            _write(Path(folder), state)
        elif done == total and _written.get("label") == label:
            _write(Path(folder), state)  # else the reader would see 449/450 until the next loop
    elif now - _last_shown[label] >= PRINT_EVERY_S:
        _last_shown[label] = now
        print(line(state, now))


def _write(folder: Path, state: dict) -> None:
    _written.update(state)
    with suppress(OSError):  # the display must not stop a training run
        write_json(folder / "progress.json", state)


def line(state: dict, now: float) -> str:
    """Put a progress state into words: "train 120/450, 4:10 left".

    Args:
        state: label, done, total, started (seconds since the epoch), from (done at that time).
        now: seconds since the epoch.
    """
    done, total = state["done"], state["total"]
    text = f"{state['label']} {done:,}" + (f"/{total:,}" if total else "")
    since = done - state["from"]
    if total > done and since > 0:
        text += f", {clock((now - state['started']) / since * (total - done))} left"
    return text


def clock(seconds: float) -> str:
    """Format a duration: 0:07, 12:30, 1:02:30."""
    minutes, s = divmod(int(round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def columns(text: str) -> int:
    """Count the columns that a text takes on a terminal: a Korean letter takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
