"""One run at a time in one output folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(RuntimeError):
    """Another process is running in this folder."""


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold folder/.lock while the block runs; with `wait` only begin when another process is done.

    The kernel of the operating system gives the lock back when the process ends, however it ends, so a
    lock file left behind by a killed run is no obstacle. The file itself stays: removing it would let
    two processes lock two files of one name.

    Raises:
        Locked: names the pid of the run that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.seek(0)
            pid = handle.read().strip() or "unknown"
            raise Locked(
                f"process {pid} is already running in {folder}; wait for it, or stop it with: kill {pid}"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)
