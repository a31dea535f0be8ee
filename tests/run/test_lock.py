import os
import signal
import subprocess
import sys

import pytest

from nblib.files import ROOT
from nblib.run.lock import Locked, locked

HOLD = """
import sys, time
from pathlib import Path
from nblib.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_with_the_pid_of_the_first(holder, tmp_path):
    with pytest.raises(Locked, match=f"process {holder.pid} is already running"), locked(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_no_obstacle(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").read_text() == f"{holder.pid}\n", "it left its pid behind"
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / ".lock").read_text() == ""
